"""Precision and memory: stochastic rounding, bfloat16 weights, layers that are computed again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prefdata.errors import SpecConflict
from prefdata.train.batches import Example, collate
from prefdata.train.logps import response_logps
from prefdata.train.optimizer import StochasticAdamW, gradient_norm
from prefdata.train.precision import recompute_layers, round_stochastically
from prefdata.train.specs import DpoSpec, RmSpec, SftSpec
from prefdata.train.train import train_dpo, train_rm, train_sft


class Killed(Exception):
    """Stands for whatever stops a run."""


@pytest.fixture
def pairs(tmp_path: Path, make_pairs: Any, write_jsonl: Any) -> Path:
    return write_jsonl(tmp_path / "pairs.jsonl", make_pairs(24))


def test_rounding_goes_up_or_down_so_that_the_mean_is_exact() -> None:
    """1 + 2^-10 lies an eighth of the way from 1 to its neighbour in bfloat16, 1 + 2^-7: one in eight is rounded up.

    Of 40,000 the share has a standard deviation of sqrt(1/8 * 7/8 / 40000) = 0.0017.
    """
    torch.manual_seed(0)
    for sign in (1.0, -1.0):
        rounded = round_stochastically(torch.full((40000,), sign * (1 + 2**-10)))
        assert set(rounded.float().tolist()) == {sign, sign * (1 + 2**-7)}
        assert (rounded.float().abs() > 1).float().mean().item() == pytest.approx(0.125, abs=0.007)


def test_what_bfloat16_has_is_not_rounded() -> None:
    exact = torch.randn(1000).bfloat16().float()
    odd = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 2.0**-130])
    for values in (exact, odd):
        assert torch.equal(round_stochastically(values).float(), values)
    assert round_stochastically(torch.tensor([torch.nan])).isnan().all()


def test_on_float32_weights_it_is_adamw() -> None:
    ours, theirs = (torch.nn.Linear(7, 5, bias=False) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    settings: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.95)}
    optimizers = [StochasticAdamW(ours.parameters(), **settings), torch.optim.AdamW(theirs.parameters(), **settings)]
    for optimizer in optimizers:
        optimizer.param_groups[0]["weight_decay"] = 0.3
    for step in range(5):
        gradient = torch.randn(5, 7, generator=torch.Generator().manual_seed(step))
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            model.weight.grad = gradient.clone()
            optimizer.step()
    assert torch.allclose(ours.weight, theirs.weight, rtol=1e-5, atol=1e-7)


def test_small_steps_of_bfloat16_weights_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a constant gradient Adam moves each weight by lr a step: 1 - 100 * 1e-4 = 0.99 after 100 steps.

    Half of the distance between 1 and the next smaller bfloat16 is 2^-9 = 0.002, so that rounding to the nearest would
    leave every weight at 1. A parameter in chunks is the same parameter.
    """
    monkeypatch.setattr("prefdata.train.optimizer.CHUNK", 1000)
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.ones(64, 50, dtype=torch.bfloat16))
    optimizer = StochasticAdamW([weight], lr=1e-4, betas=(0.9, 0.999))
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert weight.float().mean().item() == pytest.approx(0.99, abs=2e-4)
    assert {slot.dtype for name, slot in optimizer.state[weight].items() if name != "step"} == {torch.bfloat16}


def test_the_second_moment_of_bfloat16_weights_falls() -> None:
    """After one gradient of 1, v = 0.001; 693 steps without any halve it: 0.001 * 0.999^693 = 0.0005."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.ones(2000, dtype=torch.bfloat16))
    optimizer = StochasticAdamW([weight], lr=0.0, betas=(0.9, 0.999))
    for step in range(694):
        weight.grad = torch.full_like(weight, float(step == 0))
        optimizer.step()
    assert optimizer.state[weight]["exp_avg_sq"].float().mean().item() == pytest.approx(0.0005, rel=0.02)


def test_the_norm_of_bfloat16_gradients_is_not_rounded() -> None:
    """4,097 gradients of 1 have the norm sqrt(4097) = 64.0078, which bfloat16 rounds to 64."""
    weight = torch.nn.Parameter(torch.ones(4097, dtype=torch.bfloat16))
    weight.grad = torch.ones_like(weight)
    assert gradient_norm([weight]).item() == pytest.approx(4097**0.5, rel=1e-6)


@pytest.mark.parametrize("dtype", ["bf16-mixed", "bfloat16"])
@pytest.mark.parametrize("trainer", ["sft", "rm", "dpo"])
def test_bfloat16_learns_as_float32_does(
    trainer: str, dtype: str, tiny_policy: Path, tmp_path: Path, make_pairs: Any, write_jsonl: Any, read_metrics: Any
) -> None:
    rows = make_pairs(24)
    data = {
        "sft": write_jsonl(tmp_path / "s.jsonl", [{"messages": row["prompt"] + row["chosen"]} for row in rows]),
        "rm": write_jsonl(tmp_path / "p.jsonl", rows),
    }
    train, spec = {"sft": (train_sft, SftSpec), "rm": (train_rm, RmSpec), "dpo": (train_dpo, DpoSpec)}[trainer]
    losses = {}
    for name in ("float32", dtype):
        settings = spec(model=str(tiny_policy), lr=1e-3, batch_size=6, epochs=5, dtype=name)
        train(data.get(trainer, data["rm"]), settings, tmp_path / name)
        losses[name] = [line["loss"] for line in read_metrics(tmp_path / name)]
    assert losses[dtype] != losses["float32"]  # it was used
    fallen = losses["float32"][0] - losses["float32"][-1]
    assert fallen > 0.01
    assert losses[dtype] == pytest.approx(losses["float32"], abs=0.25 * fallen)
    saved = load_file(tmp_path / dtype / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}  # of the model that it started from


def test_bfloat16_weights_stopped_and_continued_give_the_same_bits(
    pairs: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    settings = DpoSpec(model=str(tiny_policy), lr=1e-3, batch_size=4, save_every=1, dtype="bfloat16")

    def stop(done: int, total: int, **figures: float) -> None:
        if done == 3 and "tokens" in figures:
            raise Killed

    train_dpo(pairs, settings, tmp_path / "whole")
    with pytest.raises(Killed):
        train_dpo(pairs, settings, tmp_path / "cut", progress=stop)
    checkpoint = load_file(tmp_path / "cut" / "_checkpoint")
    stored = {name: tensor.dtype for name, tensor in checkpoint.items() if "weight" in name or "exp_avg" in name}
    assert set(stored.values()) == {torch.bfloat16}
    train_dpo(pairs, settings, tmp_path / "cut")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_scores_of_bfloat16_weights_are_float32(tiny_policy: Path) -> None:
    from prefdata.models.files import identify
    from prefdata.train.models import load, load_chat
    from prefdata.train.objectives.forward import reward_values

    spec = RmSpec(model=str(tiny_policy), loss="poe-length", dtype="bfloat16")
    files = identify(spec.model, "reward-start")
    loaded = load(files, spec, load_chat(files, spec).tokenizer)
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.model.model.rotary_emb.inv_freq.dtype == torch.float32  # positions need its digits
    ids = np.arange(4, 40, dtype=np.int32)
    batch = collate(
        [Example(ids[:5], (ids[5 + i : 9 + i], ids[6 + i : 12 + i])) for i in range(8)], np.arange(8), loaded.layout
    )
    scores = reward_values(loaded.model, batch, spec.loss_settings, 0).scores
    assert scores.dtype == torch.float32
    assert (scores.bfloat16().float() != scores).any()


def test_another_precision_is_another_model(pairs: Path, tiny_policy: Path, tmp_path: Path) -> None:
    settings = DpoSpec(model=str(tiny_policy), batch_size=8)
    train_dpo(pairs, settings, tmp_path / "dpo")
    same = settings.model_copy(update={"dtype": "float32"})
    assert train_dpo(pairs, same, tmp_path / "dpo").did == "kept"
    for dtype in ("bfloat16", "bf16-mixed"):
        with pytest.raises(SpecConflict, match=f"was begun in float32 on cpu, and this is {dtype}"):
            train_dpo(pairs, settings.model_copy(update={"dtype": dtype}), tmp_path / "dpo")
    mixed = train_dpo(pairs, settings.model_copy(update={"dtype": "bf16-mixed"}), tmp_path / "mixed")
    assert mixed.report.figures["dtype"] == "bf16-mixed"
    assert train_dpo(pairs, settings, tmp_path / "mixed").did == "kept"


def _kept_bytes(model: Any, batch: Any) -> tuple[int, dict[str, torch.Tensor]]:
    """How many bytes the layers keep for the backward pass, and the gradients."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    torch.manual_seed(0)  # of dropout
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = response_logps(model, batch).sums.sum()
    total.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return sum(size for place, size in kept.items() if place not in weights), gradients


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_layers_computed_again_give_equal_gradients_and_keep_less(
    mode: str, make_policy: Callable[..., Path], tmp_path: Path
) -> None:
    """In eval mode too, in which transformers' own switch has no effect; dropout is the same both times."""
    ids = np.random.default_rng(0).integers(4, 260, 3000).astype(np.int32)
    examples = [
        Example(ids[at : at + 20], (ids[at + 20 : at + 60], ids[at + 60 : at + 90])) for at in range(0, 900, 90)
    ]
    batch = collate(examples, np.arange(10))
    found = []
    for again in (False, True):
        model = AutoModelForCausalLM.from_pretrained(
            make_policy(tmp_path / str(again), num_hidden_layers=6, attention_dropout=0.2)
        )
        model.train(mode == "train")
        if again:
            recompute_layers(model, "policy")
        found.append(_kept_bytes(model, batch))
    (whole, want), (least, got) = found
    assert least < whole / 4
    for name, gradient in want.items():
        assert torch.equal(gradient, got[name]), name


def test_gradient_checkpointing_changes_no_bit(
    pairs: Path, tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no part of what the model is: the same command with it continues the run."""
    ran = []
    monkeypatch.setattr("prefdata.train.models.recompute_layers", lambda *args: ran.append(recompute_layers(*args)))
    settings = DpoSpec(model=str(tiny_policy), lr=1e-3, batch_size=4)
    train_dpo(pairs, settings, tmp_path / "without")
    again = settings.model_copy(update={"gradient_checkpointing": True})
    train_dpo(pairs, again, tmp_path / "with")
    assert len(ran) == 1
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("without", "with"))
    assert one == other
    assert train_dpo(pairs, again, tmp_path / "without").did == "kept"
