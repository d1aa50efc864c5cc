"""The loop: how the gradient of a step is put together, the optimiser's settings, and what is logged when."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from prefdata.errors import UsageError
from prefdata.models.memory import TokenBudget
from prefdata.train.advice import too_easy, unusual_lr
from prefdata.train.batches import Example, micro_batches
from prefdata.train.metrics import MetricMeans, stack_sums
from prefdata.train.models import LoadedModel
from prefdata.train.objectives.catalog import LOSSES
from prefdata.train.objectives.objective import Objective
from prefdata.train.objectives.registry import Loss
from prefdata.train.optimizer import make_optimizer
from prefdata.train.reference import CachedReference
from prefdata.train.specs import DpoSpec, SftSpec, TrainSpec
from prefdata.train.steps import StepGradient, measure
from prefdata.train.train import train_dpo, train_sft


def example(prompt: int, *responses: int, seed: int = 0) -> Example:
    draw = np.random.default_rng([prompt, seed])
    ids = [draw.integers(4, 260, length).astype(np.int32) for length in (prompt, *responses)]
    return Example(ids[0], tuple(ids[1:]), label=seed % 3 > 0)


EXAMPLES = [example(4 + i % 5, 3, 2 + i % 4, seed=i) for i in range(12)]


REFERENCE = CachedReference(-18 + torch.randn(12, 2, generator=torch.Generator().manual_seed(0)))


COUPLED = [pytest.param(loss, id=f"{loss.command}-{loss.name}") for loss in LOSSES.losses if loss.coupled]
"""Losses that couple the examples of a step; of single responses the second one is the mismatched one."""


def objective_of(loss: Loss) -> Objective:
    return Objective(loss, {**loss.settings, "beta": 0.5}, REFERENCE)


Step = Callable[..., tuple[dict[str, torch.Tensor], float]]


@pytest.fixture
def step(make_policy: Any, tmp_path: Path) -> Step:
    """One step's gradients and loss over all examples."""

    def run(loss: Loss, micro_tokens: int, dropout: float = 0.0) -> Any:
        folder = make_policy(tmp_path / str(dropout), attention_dropout=dropout)
        model = AutoModelForCausalLM.from_pretrained(folder)
        model.train(dropout > 0)
        loaded = LoadedModel(model, None, torch.device("cpu"), None, torch.float32, TokenBudget(micro_tokens))
        objective = objective_of(loss)
        gradient = StepGradient(loaded, objective, objective.size(EXAMPLES), reseed=lambda n: torch.manual_seed(n))
        pieces = gradient.add(micro_batches(EXAMPLES, range(12), micro_tokens))
        sums = stack_sums(pieces)["loss"]
        return {n: p.grad for n, p in model.named_parameters()}, float(sums[0] / sums[1])

    return run


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, gradient in one.items():
        assert torch.allclose(gradient, other[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("loss", COUPLED)
def test_a_loss_that_couples_examples_sees_the_whole_step(step: Step, loss: Loss) -> None:
    whole, value = step(loss, 10**6)
    for micro_tokens in (1, 60):
        parts, same = step(loss, micro_tokens)
        assert_close(whole, parts)
        assert same == pytest.approx(value, rel=1e-5)
    alone, other = step(replace(loss, coupled=False), 60)
    assert other != pytest.approx(value, rel=1e-3)
    assert not torch.allclose(whole["lm_head.weight"], alone["lm_head.weight"], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"ld_alpha": 0.5, "wpo": True, "nll_weight": 0.7}], ids=["", "options"])
def test_the_second_pass_of_a_coupled_loss_drops_out_the_same(step: Step, options: dict[str, Any]) -> None:
    """A loss that couples nothing has one gradient either way, if both passes drop the same units."""
    loss = LOSSES.find("dpo", "sigmoid")
    loss = replace(loss, settings={**loss.settings, **options})
    plain, value = step(loss, 60, dropout=0.5)
    twice, same = step(replace(loss, coupled=True), 60, dropout=0.5)
    assert same == pytest.approx(value, rel=1e-5)
    assert_close(plain, twice)


@pytest.mark.parametrize("loss", COUPLED)
def test_a_coupled_loss_is_evaluated_whole(tiny_policy: Path, loss: Loss) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_policy).eval()
    loaded = LoadedModel(model, None, torch.device("cpu"), None, torch.float32, 60)
    found = [
        stack_sums(measure(loaded, objective_of(loss), micro_batches(EXAMPLES, range(12), tokens)))["loss"]
        for tokens in (60, 10**6)
    ]
    assert torch.allclose(found[0], found[1], rtol=1e-5)


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_beta2_is_the_decay_of_squared_gradients(dtype: torch.dtype, rel: float) -> None:
    """Two steps with gradients 1 and 3 from 0, lr 0.1, beta1 0.9.

    Step 1 moves by lr, whatever beta2. In step 2 the bias-corrected means are m = (0.9 * 0.1 * 1 + 0.1 * 3) / 0.19 and
    v = (b * (1 - b) * 1 + (1 - b) * 9) / (1 - b^2) = (b + 9) / (1 + b), and it moves by lr * m / sqrt(v).
    """
    for beta2 in (0.5, 0.95):
        model = torch.nn.Linear(1, 1, bias=False, dtype=dtype)
        torch.nn.init.zeros_(model.weight)
        optimizer = make_optimizer(model, TrainSpec(model="m", lr=0.1, beta2=beta2))
        for gradient in (1.0, 3.0):
            model.weight.grad = torch.full((1, 1), gradient, dtype=dtype)
            optimizer.step()
        want = -0.1 - 0.1 * (0.39 / 0.19) / ((beta2 + 9) / (1 + beta2)) ** 0.5
        assert model.weight.item() == pytest.approx(want, rel=rel)


def test_weight_decay_is_of_matrices_and_not_of_norms_and_biases(tiny_policy: Path) -> None:
    """With gradients of zero AdamW only decays: matrices by 1 - lr * weight_decay, and nothing else at all."""
    model = AutoModelForCausalLM.from_pretrained(tiny_policy)
    model.register_parameter("extra_bias", torch.nn.Parameter(torch.ones(3)))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(model, TrainSpec(model="m", lr=0.1, weight_decay=0.5)).step()
    kinds = set()
    for name, parameter in model.named_parameters():
        kinds.add(parameter.ndim)
        factor = 0.95 if parameter.ndim == 2 else 1.0
        assert torch.allclose(parameter, factor * before[name], rtol=1e-6), name
    assert kinds == {1, 2}


def test_settings_of_the_optimiser_reach_it(
    tiny_policy: Path, tmp_path: Path, make_pairs: Any, write_jsonl: Any
) -> None:
    """Each of them changes the weights that come out."""
    data = write_jsonl(tmp_path / "p.jsonl", make_pairs(8))
    shared = {"model": str(tiny_policy), "lr": 1e-2, "batch_size": 2}
    saved = set()
    for number, more in enumerate(({}, {"beta2": 0.5}, {"weight_decay": 1.0}, {"max_grad_norm": 0.1})):
        train_dpo(data, DpoSpec(**shared, **more), tmp_path / str(number))
        saved.add((tmp_path / str(number) / "model.safetensors").read_bytes())
    assert len(saved) == 4


def test_layouts_train_the_same(
    tiny_policy: Path, tmp_path: Path, make_pairs: Any, write_jsonl: Any, read_metrics: Any
) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", make_pairs(16))
    for layout in ("auto", "packed", "padded"):
        spec = DpoSpec(model=str(tiny_policy), lr=1e-3, batch_size=4, epochs=2, batch_layout=layout)
        figures = train_dpo(data, spec, tmp_path / layout).report.figures
        assert figures["batch_layout"] == ("padded" if layout == "padded" else "packed")
    packed, padded = (read_metrics(tmp_path / name) for name in ("packed", "padded"))
    assert read_metrics(tmp_path / "auto") == packed
    for name in ("loss", "grad_norm", "logps/chosen"):
        assert [line[name] for line in packed] == pytest.approx([line[name] for line in padded], rel=1e-4), name


def test_entropies_are_logged_when_asked_for_on_the_lines_that_are_written(
    tiny_policy: Path, tmp_path: Path, make_pairs: Any, write_jsonl: Any, read_metrics: Any, monkeypatch: Any
) -> None:
    from prefdata.train.objectives import forward

    asked = []
    compute = forward.response_logps

    def counted(model: Any, batch: Any, *, entropies: bool = False, **more: Any) -> Any:
        asked.append(entropies)
        return compute(model, batch, entropies=entropies, **more)

    monkeypatch.setattr(forward, "response_logps", counted)
    rows = [{"messages": row["prompt"] + row["chosen"]} for row in make_pairs(24)]
    data = write_jsonl(tmp_path / "s.jsonl", rows)
    spec = SftSpec(model=str(tiny_policy), batch_size=4, log_every=3, micro_tokens=100000)
    train_sft(data, spec, tmp_path / "without")
    assert not any("entropy" in line for line in read_metrics(tmp_path / "without"))
    assert not any(asked)
    asked.clear()
    train_sft(data, spec.model_copy(update={"log_entropy": True}), tmp_path / "with")
    assert all(0 < line["entropy"] < np.log(260) for line in read_metrics(tmp_path / "with"))
    assert asked == [False, False, True] * 2


def test_means_are_added_up_and_restored_exactly() -> None:
    pieces = [{"loss": (torch.tensor(0.1), 3.0)}, {"loss": (torch.tensor(0.7), torch.tensor(4))}]
    means = MetricMeans()
    means.add(stack_sums(pieces))
    restored = MetricMeans(json.loads(json.dumps(means.sums)))
    for one in (means, restored):
        one.add(stack_sums([{"loss": (torch.tensor(1.0), 1.0), "new": (2.0, 4.0)}]))
    assert means.sums == restored.sums
    assert restored.pop() == {"loss": pytest.approx(1.8 / 8), "new": 0.5}
    assert restored.pop() == {}


def test_a_metric_without_a_value_is_not_0() -> None:
    """A batch without undesirable responses has no mean reward of them."""
    means = MetricMeans()
    means.add(stack_sums([{"rewards/desirable": (0.5, 2.0), "rewards/undesirable": (0.0, 0.0)}]))
    assert means.pop() == {"rewards/desirable": 0.25}


@pytest.mark.parametrize(
    ("epochs", "steps"), [(1, 10), (2, 20), (2.0, 20), (0.5, 5), (0.45, 5), (0.1, 1), (0.3, 3), (0.001, 1)]
)
def test_epochs_may_be_fractions(epochs: float, steps: int) -> None:
    """Of 10 steps an epoch; 0.3 * 10 is 3.0000000000000004 in floating point, and no 4 steps."""
    spec = SftSpec(model="m", epochs=epochs)
    assert spec.total_steps(10) == steps
    assert SftSpec(model="m", epochs=epochs, max_steps=2).total_steps(10) == min(2, steps)
    assert spec.fingerprint() == SftSpec(model="m", epochs=float(epochs)).fingerprint()


@pytest.mark.parametrize("epochs", [0, -1.5, float("nan"), float("inf")])
def test_epochs_are_a_number_above_0(epochs: float) -> None:
    with pytest.raises(UsageError, match="epochs"):
        SftSpec.parse({"model": "m", "epochs": epochs})


def test_half_an_epoch_sees_half_of_the_data(
    prefdata: Any, tiny_policy: Path, tmp_path: Path, make_pairs: Any, write_jsonl: Any, read_metrics: Any
) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", make_pairs(16))
    command = ("train", "dpo", data, "--model", tiny_policy, "--batch-size", 2)
    code, _, errors = prefdata(*command, "--epochs", "0.5", "--out", tmp_path / "half")
    assert code == 0, errors
    assert read_metrics(tmp_path / "half")[-1]["epoch"] == 0.5
    assert len(read_metrics(tmp_path / "half")) == 4


def test_pairs_that_are_easy_from_the_start_are_warned_of(
    tiny_policy: Path, tmp_path: Path, write_jsonl: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """ORPO's accuracy needs no step: all chosen responses are likelier, being what the model writes best."""
    assert too_easy({"rewards/accuracies": (50.0, 50.0)}) is not None
    assert too_easy({"rewards/accuracies": (49.0, 50.0)}) is None
    assert too_easy({"rewards/accuracies": (49.0, 49.0)}) is None
    assert too_easy({}) is None
    rows = [{"prompt": f"{i}: ", "chosen": "a", "rejected": f"{i} " + "zq" * 20} for i in range(120)]
    data = write_jsonl(tmp_path / "p.jsonl", rows)
    spec = DpoSpec(model=str(tiny_policy), loss="cpo", batch_size=60, lr=1e-7)
    train_dpo(data, spec, tmp_path / "cpo")
    assert [record.message[:50] for record in caplog.records if "win all 60 pairs" in record.message]


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (DpoSpec(model="m"), None),
        (SftSpec(model="m"), None),
        (DpoSpec(model="m", lr=1e-3), "--lr 0.001 is unusual for train dpo of all weights"),
        (DpoSpec(model="m", lora_r=8), "--lr 1e-06 is unusual for a LoRA adapter"),
        (DpoSpec(model="m", lora_r=8, lr=1e-4), None),
    ],
)
def test_a_learning_rate_that_is_unusual_for_the_method_is_warned_of(spec: TrainSpec, problem: str | None) -> None:
    found = unusual_lr(spec, 500_000_000)
    assert found is None if problem is None else problem in str(found)
    assert unusual_lr(spec, 1_000_000) is None  # small models want larger ones
