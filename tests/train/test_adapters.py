"""Adapters: trained in the place of the model's weights, saved, loaded, merged; without one it is the reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from prefdata.errors import UsageError
from prefdata.models.files import identify
from prefdata.train.batches import Example, collate
from prefdata.train.logps import response_logps
from prefdata.train.models import load, load_chat
from prefdata.train.reference import compute, frozen_model
from prefdata.train.specs import DpoSpec, KtoSpec, RmSpec, SftSpec
from prefdata.train.train import train_dpo, train_kto, train_rm, train_sft

Sums = Callable[[Any], torch.Tensor]


class Killed(Exception):
    """Stands for whatever stops a run."""


@pytest.fixture
def pairs(tmp_path: Path, make_pairs: Any, write_jsonl: Any) -> Path:
    return write_jsonl(tmp_path / "pairs.jsonl", make_pairs(24))


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    ids = np.random.default_rng(0).integers(4, 260, 400).astype(np.int32)
    return [Example(ids[at : at + 6], (ids[at + 6 : at + 11], ids[at + 11 : at + 20])) for at in range(0, 80, 20)]


def sums(model: Any, examples: list[Example]) -> torch.Tensor:
    with torch.no_grad():
        return response_logps(model.eval(), collate(examples, np.arange(len(examples)))).sums


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


KINDS = pytest.mark.parametrize("kind", [{}, {"dora": True}], ids=["lora", "dora"])


@KINDS
def test_an_adapter_is_saved_loaded_and_merged_with_equal_log_probabilities(
    kind: dict[str, Any], pairs: Path, tiny_policy: Path, tmp_path: Path, examples: list[Example]
) -> None:
    settings = DpoSpec(model=str(tiny_policy), lr=1e-2, batch_size=6, lora_r=4, **kind)
    train_dpo(pairs, settings, tmp_path / "adapter")
    train_dpo(pairs, settings.model_copy(update={"merge": True}), tmp_path / "merged")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_dora"]) == (4, 8, bool(kind))
    assert config["base_model_name_or_path"] == str(tiny_policy.resolve())

    adapted = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    want = sums(adapted.get_base_model(), examples)
    assert torch.allclose(want, sums(merged, examples), atol=1e-4)
    assert not torch.allclose(want, sums(AutoModelForCausalLM.from_pretrained(tiny_policy), examples), atol=0.1)
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter").chat_template  # so that it is sampled as trained


@KINDS
def test_without_the_adapter_it_is_the_reference(
    kind: dict[str, Any], tiny_policy: Path, examples: list[Example]
) -> None:
    """The log-probabilities are those of the model alone, to the bit, whatever the adapter has learned."""
    files, spec = identify(str(tiny_policy), "causal-lm"), DpoSpec(model=str(tiny_policy), lora_r=4, **kind)
    tokenizer = load_chat(files, spec).tokenizer
    loaded = load(files, spec, tokenizer)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    alone = load(files, spec, tokenizer, frozen=True)
    assert alone.adapter is None
    want = compute(alone, examples, range(len(examples)))
    assert np.array_equal(compute(loaded, examples, range(len(examples))), want)
    batch = collate(examples, np.arange(len(examples)), loaded.layout)
    with torch.no_grad():
        off = response_logps(frozen_model(loaded, loaded), batch).sums.numpy()
        on = response_logps(loaded.model, batch).sums.numpy()
    assert np.array_equal(off, compute(alone, examples, range(len(examples))))
    assert not np.allclose(on, want, atol=0.1)
    assert all(p.requires_grad for name, p in loaded.model.named_parameters() if "lora_" in name)


def test_the_cached_reference_serves_whole_models_and_adapters(pairs: Path, tiny_policy: Path, tmp_path: Path) -> None:
    train_dpo(pairs, DpoSpec(model=str(tiny_policy), batch_size=24), tmp_path / "whole")
    before = sorted((tmp_path / "_reference").iterdir())
    adapted = DpoSpec(model=str(tiny_policy), batch_size=24, lora_r=2)
    train_dpo(pairs, adapted, tmp_path / "adapter")
    assert sorted((tmp_path / "_reference").iterdir()) == before


def test_the_first_loss_of_an_adapter_is_that_of_the_model(
    pairs: Path, tiny_policy: Path, tmp_path: Path, read_metrics: Any
) -> None:
    """ln 2: a new adapter changes nothing, and policy and reference agree."""
    train_dpo(pairs, DpoSpec(model=str(tiny_policy), lr=1e-2, batch_size=6, epochs=3, lora_r=4), tmp_path / "dpo")
    losses = [line["loss"] for line in read_metrics(tmp_path / "dpo")]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-6)
    assert losses[-1] < losses[0] - 0.1


def test_a_reward_models_head_is_trained_and_saved_with_the_adapter(
    pairs: Path, tiny_policy: Path, tmp_path: Path, examples: list[Example]
) -> None:
    """Scores of the reloaded adapter are those of the merged model; its head has moved from where it began."""
    settings = RmSpec(model=str(tiny_policy), lr=1e-2, batch_size=6, lora_r=4)
    train_rm(pairs, settings, tmp_path / "adapter")
    train_rm(pairs, settings.model_copy(update={"merge": True}), tmp_path / "merged")
    assert "base_model.model.score.weight" in tensors(tmp_path / "adapter")

    base = AutoModelForSequenceClassification.from_pretrained(tiny_policy, num_labels=1)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    ids = torch.tensor(np.stack([example.prompt for example in examples]), dtype=torch.long)
    with torch.no_grad():
        assert torch.allclose(adapted(input_ids=ids).logits, merged(input_ids=ids).logits, atol=1e-4)
    train_rm(pairs, settings.model_copy(update={"lr": 1e-9}), tmp_path / "first")
    head = "base_model.model.score.weight"
    assert not torch.allclose(tensors(tmp_path / "adapter")[head], tensors(tmp_path / "first")[head], atol=1e-3)


def test_prefdata_scores_with_an_adapter_as_with_the_merged_model(
    pairs: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    from prefdata.scorers.classifier.hf import RewardModel
    from prefdata.scorers.protocol import ScoringItem

    settings = RmSpec(model=str(tiny_policy), lr=1e-2, batch_size=6, lora_r=4)
    train_rm(pairs, settings, tmp_path / "adapter")
    train_rm(pairs, settings.model_copy(update={"merge": True}), tmp_path / "merged")
    asked = [ScoringItem(str(i), ({"role": "user", "content": f"Review {i}"},), "good film", False) for i in range(5)]
    scores = [
        [
            scored.score
            for scored in RewardModel(identify(str(tmp_path / name), "reward-model"), device="cpu").score(asked)
        ]
        for name in ("adapter", "merged")
    ]
    assert len(set(scores[0])) == 5
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_an_adapter_is_sampled_from_and_trained_on(
    prefdata: Any, pairs: Path, tiny_policy: Path, tmp_path: Path, write_jsonl: Any
) -> None:
    """`sample` takes the folder as the model; a new adapter on it is one of both, so that it must be merged."""
    adapter, run = tmp_path / "adapter", tmp_path / "run"
    train_dpo(pairs, DpoSpec(model=str(tiny_policy), lr=1e-2, batch_size=6, lora_r=4), adapter)
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"Review {i}"} for i in range(3)])
    assert prefdata("ingest", run, prompts)[0] == 0
    code, _, errors = prefdata("sample", run, "--model", adapter, "-n", 2, "--max-tokens", 8, "--name", "adapter")
    assert code == 0, errors
    again = DpoSpec(model=str(adapter), batch_size=6, lora_r=4)
    with pytest.raises(UsageError, match="is an adapter, and a new one would belong to both"):
        train_dpo(pairs, again, tmp_path / "again")
    train_dpo(pairs, again.model_copy(update={"merge": True}), tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").exists()


@pytest.mark.parametrize("trainer", ["sft", "rm", "dpo", "kto"])
def test_stopped_and_continued_gives_the_same_bits(
    trainer: str, tiny_policy: Path, tmp_path: Path, make_pairs: Any, write_jsonl: Any
) -> None:
    """The checkpoint has the adapter, its optimiser and no copy of the model."""
    rows = make_pairs(24)
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    if trainer == "sft":
        data = write_jsonl(tmp_path / "sft.jsonl", [{"messages": row["prompt"] + row["chosen"]} for row in rows])
    if trainer == "kto":
        labelled = [
            {"prompt": row["prompt"], "completion": row["chosen"], "label": i % 2 == 0} for i, row in enumerate(rows)
        ]
        data = write_jsonl(tmp_path / "kto.jsonl", labelled)
    train, spec = {
        "sft": (train_sft, SftSpec),
        "rm": (train_rm, RmSpec),
        "dpo": (train_dpo, DpoSpec),
        "kto": (train_kto, KtoSpec),
    }[trainer]
    settings = spec(model=str(tiny_policy), lr=1e-3, batch_size=5, save_every=2, lora_r=2, lora_dropout=0.2)

    def stop(done: int, total: int, **figures: float) -> None:
        if done == 3 and "tokens" in figures:
            raise Killed

    train(data, settings, tmp_path / "whole")
    with pytest.raises(Killed):
        train(data, settings, tmp_path / "cut", progress=stop)
    stored = load_file(tmp_path / "cut" / "_checkpoint")
    assert not [name for name in stored if "base_layer" in name or "embed_tokens" in name]
    train(data, settings, tmp_path / "cut")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


@pytest.mark.parametrize("trainer", ["rm", "dpo"])
def test_the_adapters_dropout_is_on_in_every_objective(
    trainer: str, pairs: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    """Preference losses train without the model's own dropout; a share that was asked for is no empty word."""
    train, spec = {"rm": (train_rm, RmSpec), "dpo": (train_dpo, DpoSpec)}[trainer]
    for dropout in (0.0, 0.5):
        settings = spec(model=str(tiny_policy), lr=1e-3, batch_size=6, lora_r=2, lora_dropout=dropout)
        train(pairs, settings, tmp_path / str(dropout))
    one, other = (tensors(tmp_path / str(dropout)) for dropout in (0.0, 0.5))
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_settings_of_an_adapter_reach_it(pairs: Path, tiny_policy: Path, tmp_path: Path) -> None:
    settings = SftSpec(model=str(tiny_policy), lora_r=2, lora_alpha=7, lora_targets=("q_proj", "mlp.down_proj"))
    files = identify(str(tiny_policy), "causal-lm")
    loaded = load(files, settings, load_chat(files, settings).tokenizer)
    trained = {
        name.split(".lora_")[0].split("layers.")[1] for name, p in loaded.model.named_parameters() if p.requires_grad
    }
    assert trained == {f"{layer}.{target}" for layer in (0, 1) for target in ("self_attn.q_proj", "mlp.down_proj")}
    assert loaded.adapter.peft_config["default"].lora_alpha == 7
    with pytest.raises(UsageError, match=r"--lora-targets nothing: .* has no such linear layer. It has down_proj,"):
        train_dpo(pairs, DpoSpec(model=str(tiny_policy), lora_r=2, lora_targets=("nothing",)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"lora_alpha": 4}, "--lora-alpha goes with --lora-r"),
        ({"lora_dropout": 0.1}, "--lora-dropout goes with --lora-r"),
        ({"lora_targets": ("q_proj",)}, "--lora-targets goes with --lora-r"),
        ({"dora": True}, "--dora goes with --lora-r"),
        ({"merge": True}, "--merge goes with --lora-r"),
        ({"lora_r": 2, "sync_ref_every": 3}, "--sync-ref-every is for whole models"),
    ],
)
def test_settings_without_effect_are_refused(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        DpoSpec.parse({"model": "m", **given})
    with pytest.raises(UsageError, match="leave out --from-scratch"):
        SftSpec.parse({"model": "m", "lora_r": 2, "from_scratch": True})


@pytest.mark.parametrize("dtype", ["bf16-mixed", "bfloat16"])
def test_in_bfloat16_the_frozen_weights_take_two_bytes(
    dtype: str, pairs: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    """bf16-mixed: the adapter is float32, and the weights below it, which no step changes, are bfloat16."""
    files, spec = identify(str(tiny_policy), "causal-lm"), DpoSpec(model=str(tiny_policy), lora_r=2, dtype=dtype)
    loaded = load(files, spec, load_chat(files, spec).tokenizer)
    kinds = {p.requires_grad: p.dtype for p in loaded.model.parameters()}
    assert kinds == {False: torch.bfloat16, True: torch.float32 if dtype == "bf16-mixed" else torch.bfloat16}
    assert loaded.computed["dtype"] == dtype
    settings = spec.model_copy(update={"batch_size": 6, "merge": True, "gradient_checkpointing": True})
    train_dpo(pairs, settings, tmp_path / "merged")
    one, other = (load_file(folder / "model.safetensors") for folder in (tiny_policy, tmp_path / "merged"))
    assert torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])  # not rounded


def test_what_the_kl_is_taken_to_is_the_model_without_the_adapter(
    tiny_policy: Path, tmp_path: Path, make_pairs: Any, write_jsonl: Any, read_metrics: Any
) -> None:
    """SLiC's regulariser reads the reference's distributions: a second model of whole weights gives the same loss."""
    data = write_jsonl(tmp_path / "p.jsonl", make_pairs(12))
    settings = DpoSpec(model=str(tiny_policy), loss="slic-margin", regularizer="kl", lora_r=2, batch_size=6)
    train_dpo(data, settings, tmp_path / "adapter")
    whole = settings.model_copy(update={"lora_r": None})
    train_dpo(data, whole, tmp_path / "whole")
    one, other = (read_metrics(tmp_path / name) for name in ("adapter", "whole"))
    assert one[0]["loss"] == pytest.approx(other[0]["loss"], rel=1e-5)
