"""Step by step the same losses as TRL 1.16's trainers, wherever a loss is defined the same: 24 steps in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trl_curves import BATCH, SHARED, in_our_order, run_trl, settings

from prefdata.train.batches import order
from prefdata.train.objectives import fitting
from prefdata.train.specs import DpoSpec, KtoSpec
from prefdata.train.train import train_dpo, train_kto

pytestmark = pytest.mark.peers
STEPS = 24


@pytest.fixture
def rows(make_pairs: Any) -> list[dict[str, Any]]:
    return make_pairs(48)


def curves_of_dpo(rows: Any, policy: Path, tmp_path: Path, write_jsonl: Any, theirs: dict, ours: dict) -> list[float]:
    """TRL's losses; ours are in `tmp_path / "ours"`. Exponential divergences get a lower learning rate: at the higher
    one they blow rounding errors up."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    args = settings(DPOConfig, tmp_path / "trl", **theirs)
    if ours.get("f_divergence") in ("forward-kl", "alpha"):
        args.learning_rate = 2e-5
    losses, _ = run_trl(
        DPOTrainer,
        in_our_order(rows),
        model=AutoModelForCausalLM.from_pretrained(policy),
        ref_model=AutoModelForCausalLM.from_pretrained(policy),
        args=args,
        processing_class=AutoTokenizer.from_pretrained(policy),
    )
    spec = DpoSpec(model=str(policy), **{**SHARED, "lr": args.learning_rate}, **ours)
    train_dpo(write_jsonl(tmp_path / "p.jsonl", rows), spec, tmp_path / "ours")
    return losses


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"loss": "sigmoid-mean"}, {"loss_type": ["sigmoid_norm"], "beta": 5.0}),
        ({"loss": "robust"}, {"loss_type": ["robust"], "label_smoothing": 0.1}),
        ({"loss": "ipo-mean"}, {"loss_type": ["ipo"]}),
        ({"loss": "hinge"}, {"loss_type": ["hinge"]}),
        ({"loss": "exo", "label_smoothing": 0.01}, {"loss_type": ["exo_pair"], "label_smoothing": 0.01}),
        ({"loss": "nca"}, {"loss_type": ["nca_pair"]}),
        ({"loss": "bco-pair"}, {"loss_type": ["bco_pair"]}),
        ({"loss": "sppo"}, {"loss_type": ["sppo_hard"]}),
        ({"loss": "apo-zero"}, {"loss_type": ["apo_zero"]}),
        ({"loss": "apo-down"}, {"loss_type": ["apo_down"]}),
        ({"loss": "discopop"}, {"loss_type": ["discopop"]}),
        ({"loss": "aot"}, {"loss_type": ["aot"]}),
        ({"loss": "aot-unpaired", "label_smoothing": 0.1}, {"loss_type": ["aot_unpaired"], "label_smoothing": 0.1}),
        ({"f_divergence": "forward-kl"}, {"f_divergence_type": "forward_kl"}),
        ({"f_divergence": "js"}, {"f_divergence_type": "js_divergence"}),
        (
            {"f_divergence": "alpha", "f_alpha": 0.3},
            {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
        ),
        ({"ld_alpha": 0.3}, {"ld_alpha": 0.3}),
        ({"wpo": True}, {"use_weighting": True}),
    ],
    ids=lambda one: "-".join(map(str, one.values())) if "loss_type" not in one else "",
)
def test_losses_of_pairs(
    ours: dict, theirs: dict, rows: Any, tiny_policy: Path, tmp_path: Path, write_jsonl: Any, read_metrics: Any
) -> None:
    losses = curves_of_dpo(rows, tiny_policy, tmp_path, write_jsonl, theirs, ours)
    lines = read_metrics(tmp_path / "ours")
    assert len(lines) == len(losses) == STEPS
    assert abs(losses[-1] - losses[0]) > 1e-2 * abs(losses[0])  # it moves
    # Of the loss where that is above 1, as SPPO's is: float32 holds seven digits, and 24 steps blow rounding up.
    assert [line["loss"] for line in lines] == pytest.approx(losses, abs=1e-4, rel=1e-4)


def even(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with chosen responses of one length: a mean over all tokens is that of the responses' means."""
    return [
        {**row, "chosen": [{"role": "assistant", "content": f"{number:04} fine"}]} for number, row in enumerate(rows)
    ]


def test_the_mixed_in_nll_of_responses_of_one_length(
    rows: Any, tiny_policy: Path, tmp_path: Path, write_jsonl: Any, read_metrics: Any
) -> None:
    theirs = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
    losses = curves_of_dpo(even(rows), tiny_policy, tmp_path, write_jsonl, theirs, {"nll_weight": 0.5})
    assert losses[-1] < 0.8 * losses[0]
    assert [line["loss"] for line in read_metrics(tmp_path / "ours")] == pytest.approx(losses, abs=1e-4)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"loss": "simpo"}, {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0}),
        ({"loss": "simpo", "nll_weight": 1.0}, {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0}),
        ({"loss": "cpo", "nll_weight": 0.0}, {"loss_type": "sigmoid", "cpo_alpha": 0.0}),
        ({"loss": "cpo"}, {"loss_type": "sigmoid"}),
    ],
    ids=["simpo", "cpo-simpo", "cpo without nll", "cpo"],
)
def test_losses_without_a_reference(
    ours: dict, theirs: dict, make_pairs: Any, tiny_policy: Path, tmp_path: Path, write_jsonl: Any, read_metrics: Any
) -> None:
    """Plain texts, which TRL's older trainers tokenise as we do; chosen responses of one length."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    rows = [{**row, "chosen": f"{number:04} fine"} for number, row in enumerate(make_pairs(48, chat=False))]
    losses, _ = run_trl(
        CPOTrainer,
        in_our_order(rows),
        model=AutoModelForCausalLM.from_pretrained(tiny_policy),
        args=settings(CPOConfig, tmp_path / "trl", **theirs),
        processing_class=AutoTokenizer.from_pretrained(tiny_policy),
    )
    spec = DpoSpec(model=str(tiny_policy), **SHARED, **ours)
    train_dpo(write_jsonl(tmp_path / "p.jsonl", rows), spec, tmp_path / "ours")
    lines = read_metrics(tmp_path / "ours")
    assert len(lines) == len(losses) == STEPS
    assert losses[-1] < losses[0]
    assert [line["loss"] for line in lines] == pytest.approx(losses, abs=1e-4)


def test_the_odds_ratio_of_orpo(
    make_pairs: Any, tiny_policy: Path, tmp_path: Path, write_jsonl: Any, read_metrics: Any
) -> None:
    """TRL's NLL covers the prompt, ours the response: only odds ratios are compared, of a model that stands still."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    rows = make_pairs(48, chat=False)
    args = settings(ORPOConfig, tmp_path / "trl")
    args.learning_rate = 1e-12
    _, log = run_trl(
        ORPOTrainer,
        in_our_order(rows),
        model=AutoModelForCausalLM.from_pretrained(tiny_policy),
        args=args,
        processing_class=AutoTokenizer.from_pretrained(tiny_policy),
    )
    spec = DpoSpec(model=str(tiny_policy), **{**SHARED, "lr": 1e-12}, loss="orpo", lam=1.0, nll_weight=0.0)
    train_dpo(write_jsonl(tmp_path / "p.jsonl", rows), spec, tmp_path / "ours")
    ours = [line["loss"] for line in read_metrics(tmp_path / "ours")]
    assert ours == pytest.approx([-line["log_odds_ratio"] for line in log], abs=2e-4)
    assert max(ours) - min(ours) > 0.01


@pytest.mark.parametrize("name", ["kto", "apo-zero"])
def test_losses_of_labels(
    name: str,
    rows: Any,
    tiny_policy: Path,
    tmp_path: Path,
    write_jsonl: Any,
    read_metrics: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TRL rolls responses by one within each batch to mismatch them: the same ones are handed to ours."""
    from dataclasses import replace

    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import KTOConfig, KTOTrainer

    single = [
        {"prompt": row["prompt"], "completion": row["chosen" if n % 3 else "rejected"], "label": bool(n % 3)}
        for n, row in enumerate([*rows, *rows])
    ]
    placed = order(len(single), 0, 0).tolist()

    def rolled(examples: Any, seed: int, max_length: Any) -> Any:
        out = list(examples)
        for start in range(0, len(placed) if examples else 0, BATCH):
            block = placed[start : start + BATCH]
            for place, partner in zip(block, [block[-1], *block[:-1]], strict=True):
                out[place] = replace(
                    examples[place], responses=(examples[place].responses[0], examples[partner].responses[0])
                )
        return out

    monkeypatch.setattr(fitting, "mismatched", rolled)
    theirs, log = run_trl(
        KTOTrainer,
        [single[place] for place in placed],
        model=AutoModelForCausalLM.from_pretrained(tiny_policy),
        ref_model=AutoModelForCausalLM.from_pretrained(tiny_policy),
        args=settings(KTOConfig, tmp_path / "trl", loss_type={"kto": "kto", "apo-zero": "apo_zero_unpaired"}[name]),
        processing_class=AutoTokenizer.from_pretrained(tiny_policy),
    )
    spec = KtoSpec(model=str(tiny_policy), **{**SHARED, "epochs": 1}, loss=name)
    train_kto(write_jsonl(tmp_path / "k.jsonl", single), spec, tmp_path / "ours")
    lines = read_metrics(tmp_path / "ours")
    assert len(lines) == len(theirs) == STEPS
    assert max(theirs) - min(theirs) > 0.05
    assert [line["loss"] for line in lines] == pytest.approx(theirs, abs=1e-4)
    if name == "kto":
        assert max(line["kl"] for line in log) > 0.1
        assert [line["kl"] for line in lines] == pytest.approx([line["kl"] for line in log], abs=2e-3)
