"""The reference: computed once and kept in parts, another model, or one that follows the policy."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prefdata.errors import ModelError, SpecConflict, UsageError
from prefdata.models.memory import TokenBudget
from prefdata.train import reference
from prefdata.train.batches import Example, collate
from prefdata.train.logps import response_logps
from prefdata.train.models import LoadedModel
from prefdata.train.reference import LiveReference, cached_reference
from prefdata.train.specs import DpoSpec, KtoSpec
from prefdata.train.train import train_dpo, train_kto


class Stopped(Exception):
    """Stands for whatever stops a run."""


def example(prompt: int, *responses: int, seed: int = 0) -> Example:
    draw = np.random.default_rng([prompt, seed])
    ids = [draw.integers(4, 260, length).astype(np.int32) for length in (prompt, *responses)]
    return Example(ids[0], tuple(ids[1:]))


EXAMPLES = [example(4 + i % 5, 3, 2 + i % 4, seed=i) for i in range(40)]


@pytest.fixture
def loaded(tiny_policy: Path) -> LoadedModel:
    model = AutoModelForCausalLM.from_pretrained(tiny_policy).eval()
    return LoadedModel(model, None, torch.device("cpu"), None, torch.float32, TokenBudget(8))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[range]:
    """The windows that were computed."""
    windows: list[range] = []
    compute = reference.compute

    def counted(loaded: Any, examples: Any, window: range, ld_alpha: float) -> Any:
        windows.append(window)
        return compute(loaded, examples, window, ld_alpha)

    monkeypatch.setattr(reference, "compute", counted)
    return windows


def stop_after(count: int) -> Callable[..., None]:
    calls = iter(range(count - 1))

    def progress(done: int, total: int, **_: float) -> None:
        if next(calls, None) is None:
            raise Stopped

    return progress


def direct(loaded: LoadedModel) -> torch.Tensor:
    with torch.no_grad():
        return response_logps(loaded.model, collate(EXAMPLES, np.arange(len(EXAMPLES)))).sums


def test_it_is_computed_once_in_the_order_of_the_data(
    loaded: LoadedModel, tmp_path: Path, computed: list[range]
) -> None:
    first = cached_reference(loaded, "model", EXAMPLES, tmp_path)
    assert torch.allclose(first.values, direct(loaded), atol=1e-5)
    assert [i for window in computed for i in window] == list(range(40))
    assert len(computed) > 3
    computed.clear()
    again = cached_reference(loaded, "model", EXAMPLES, tmp_path)
    assert computed == []
    assert torch.equal(again.values, first.values)


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["written at once", "written when stopped"])
def test_what_is_stopped_goes_on_where_it_was(
    loaded: LoadedModel, tmp_path: Path, computed: list[range], monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """To the same bits; what stops it by an exception (Ctrl-C) loses nothing at all."""
    whole = cached_reference(loaded, "model", EXAMPLES, tmp_path / "whole").values
    count = len(computed)
    monkeypatch.setattr(reference, "WRITE_SECONDS", seconds)
    with pytest.raises(Stopped):
        cached_reference(loaded, "model", EXAMPLES, tmp_path / "cut", stop_after(2))
    parts = list((tmp_path / "cut").glob("*.parquet"))
    assert len(parts) == (2 if seconds == 0 else 1)
    computed.clear()
    got = cached_reference(loaded, "model", EXAMPLES, tmp_path / "cut").values
    assert len(computed) == count - 2
    assert torch.equal(got, whole)


def test_a_damaged_part_is_computed_again(loaded: LoadedModel, tmp_path: Path, computed: list[range]) -> None:
    whole = cached_reference(loaded, "model", EXAMPLES, tmp_path).values
    (part,) = tmp_path.glob("*.parquet")
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 1
    part.write_bytes(content)
    count = len(computed)
    assert torch.equal(cached_reference(loaded, "model", EXAMPLES, tmp_path).values, whole)
    assert len(computed) == 2 * count


def test_equal_windows_each_have_their_values(loaded: LoadedModel, tmp_path: Path) -> None:
    """The same example over and over: the windows have one key, and every example still has its number."""
    same = [example(9, 5, 6)] * 60
    values = cached_reference(loaded, "model", same, tmp_path).values
    assert (values < -1).all()
    assert torch.allclose(values, values[:1], atol=1e-5)


@pytest.mark.parametrize("change", ["weights", "tokens", "mask", "precision", "ld_alpha"])
def test_whatever_decides_the_numbers_decides_what_is_found(
    loaded: LoadedModel, tmp_path: Path, computed: list[range], change: str
) -> None:
    from dataclasses import replace

    cached_reference(loaded, "model", EXAMPLES, tmp_path)
    count = len(computed)
    examples, revision, other = list(EXAMPLES), "model", loaded
    last = examples[-1]
    if change == "weights":
        revision = "another"
    elif change == "tokens":
        examples[-1] = replace(last, prompt=last.prompt[1:])
    elif change == "mask":
        examples[-1] = replace(last, trained=tuple(np.arange(len(r)) > 0 for r in last.responses))
    elif change == "precision":
        other = replace(loaded, autocast=torch.bfloat16)
    cached_reference(other, revision, examples, tmp_path, ld_alpha=0.5 if change == "ld_alpha" else 1.0)
    again = len(computed) - count
    assert again == (1 if change in ("tokens", "mask") else count)


@pytest.mark.parametrize("prompt", [4, 0])
def test_surplus_tokens_weigh_what_ld_dpo_says(loaded: LoadedModel, tmp_path: Path, prompt: int) -> None:
    """Responses of 3 and 5 tokens, alpha 0.5: the longer one's last two count half, whichever model is the reference.

    Without a prompt nothing predicts the first tokens, so that two and four count, and again the last two half.
    """
    pair = [example(prompt, 3, 5)]
    batch = collate(pair, np.arange(1))
    with torch.no_grad():
        tokens = response_logps(loaded.model, batch).tokens
    own = 3 if prompt else 2
    want = torch.stack([tokens[:own].sum(), tokens[own:-2].sum() + tokens[-2:].sum() / 2])
    for found in (
        cached_reference(loaded, "model", pair, tmp_path, ld_alpha=0.5),
        LiveReference(loaded, 1, 0.5, ld_alpha=0.5),
    ):
        assert torch.allclose(found.logps(batch)[0], want, atol=1e-5)


def test_a_loss_without_a_reference_takes_none() -> None:
    for more in ({"ref_model": "x"}, {"sync_ref_every": 2}):
        with pytest.raises(UsageError, match="--loss simpo has no reference: leave out --"):
            DpoSpec.parse({"model": "m", "loss": "simpo", **more})
    DpoSpec.parse({"model": "m", "loss": "slic-rank", "regularizer": "kl", "ref_model": "x"})


def test_groups_of_unequal_size(loaded: LoadedModel, tmp_path: Path) -> None:
    examples = [example(4, 3, 2, 5), example(6, 2), example(5, 2, 2)] * 9
    cached = cached_reference(loaded, "model", examples, tmp_path)
    batch = collate(examples, np.array([1, 2]))
    with torch.no_grad():
        assert torch.allclose(cached.logps(batch), response_logps(loaded.model, batch).sums, atol=1e-5)


@pytest.fixture
def pairs(tmp_path: Path, make_pairs: Any, write_jsonl: Any) -> Path:
    rows = [{**row, "split": "test" if i % 5 == 0 else "train"} for i, row in enumerate(make_pairs(30))]
    return write_jsonl(tmp_path / "pairs.jsonl", rows)


def losses(folder: Path, name: str = "loss") -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def test_the_cache_is_beside_the_model_and_serves_other_settings(
    pairs: Path, tiny_policy: Path, tmp_path: Path, computed: list[range]
) -> None:
    for beta in (0.1, 0.5):
        train_dpo(pairs, DpoSpec(model=str(tiny_policy), beta=beta), tmp_path / "models" / str(beta))
    assert list((tmp_path / "models" / "_reference").glob("*.parquet"))
    assert [window.stop for window in computed] == [24, 6]  # the train and the test split, once each


def test_another_model_is_the_reference(pairs: Path, tiny_policy: Path, make_policy: Any, tmp_path: Path) -> None:
    """The first loss is -log s(beta h) of the two models' log-ratios, and not ln 2."""
    other = make_policy(tmp_path / "other", seed=7)
    settings = {"model": str(tiny_policy), "batch_size": 100}
    train_dpo(pairs, DpoSpec(**settings), tmp_path / "own")
    train_dpo(pairs, DpoSpec(**settings, ref_model=str(other)), tmp_path / "theirs")
    train_dpo(pairs, DpoSpec(model=str(other), batch_size=100), tmp_path / "swapped")
    ours, theirs = (losses(tmp_path / name, "logps/chosen")[0] for name in ("own", "swapped"))
    assert losses(tmp_path / "own")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses(tmp_path / "theirs", "rewards/chosen")[0] == pytest.approx(0.1 * (ours - theirs), abs=1e-4)
    with pytest.raises(SpecConflict, match="ref_model"):
        train_dpo(pairs, DpoSpec(**settings), tmp_path / "theirs")


def test_another_model_is_the_reference_of_kto(
    pairs: Path, tiny_policy: Path, make_policy: Any, tmp_path: Path
) -> None:
    """Rewards are 0 at first with the model's own reference, and change sign when the models change places."""
    other = make_policy(tmp_path / "other", seed=7)
    models = {"own": (tiny_policy, None), "theirs": (tiny_policy, str(other)), "swapped": (other, str(tiny_policy))}
    rewards = {}
    for name, (model, other_model) in models.items():
        train_kto(pairs, KtoSpec(model=str(model), ref_model=other_model, batch_size=100), tmp_path / name)
        rewards[name] = losses(tmp_path / name, "rewards/desirable")[0]
    assert rewards["own"] == pytest.approx(0, abs=1e-6)
    assert abs(rewards["theirs"]) > 1e-3
    assert rewards["swapped"] == pytest.approx(-rewards["theirs"], abs=1e-5)


def test_a_reference_of_another_tokenizer_is_refused(
    pairs: Path, tiny_policy: Path, make_policy: Any, tmp_path: Path
) -> None:
    other = make_policy(tmp_path / "other", seed=7)
    values = json.loads((other / "tokenizer.json").read_text())
    values["model"]["vocab"]["xy"] = 260
    (other / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match="has other tokens than"):
        train_dpo(pairs, DpoSpec(model=str(tiny_policy), ref_model=str(other)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="leave out --ref-model"):
        DpoSpec.parse({"model": "m", "ref_model": "x", "sync_ref_every": 2})


def test_a_reference_that_is_replaced_in_every_step_is_the_policy(
    pairs: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    """With alpha 1 after each step every loss is ln 2, while the weights move."""
    spec = DpoSpec(model=str(tiny_policy), lr=1e-3, batch_size=8, epochs=2, sync_ref_every=1, sync_ref_alpha=1.0)
    train_dpo(pairs, spec, tmp_path / "dpo")
    assert losses(tmp_path / "dpo") == pytest.approx([math.log(2)] * 6, abs=1e-6)
    assert losses(tmp_path / "dpo", "logps/chosen")[0] != losses(tmp_path / "dpo", "logps/chosen")[3]


def test_a_reference_moves_by_its_share_when_it_is_due(loaded: LoadedModel) -> None:
    """ref <- 0.25 policy + 0.75 ref after every third step: from 0 towards a policy of ones, 0.25, then 0.4375."""
    live = LiveReference(loaded, 3, 0.25)
    policy = AutoModelForCausalLM.from_config(loaded.model.config)
    with torch.no_grad():
        for value, module in ((0.0, live.model), (1.0, policy)):
            for parameter in module.parameters():
                parameter.fill_(value)
    seen = []
    for done in range(1, 7):
        live.follow(policy, done)
        seen.append(next(live.model.parameters()).flatten()[0].item())
    assert seen == [0, 0, 0.25, 0.25, 0.25, 0.4375]
    assert not any(parameter.requires_grad for parameter in live.model.parameters())


def test_a_moving_reference_is_the_same_after_a_stop(pairs: Path, tiny_policy: Path, tmp_path: Path) -> None:
    spec = DpoSpec(model=str(tiny_policy), lr=1e-3, batch_size=8, epochs=2, sync_ref_every=2, save_every=1)
    train_dpo(pairs, spec, tmp_path / "whole")

    def progress(done: int, total: int, **_: float) -> None:
        if done == 3:
            raise Stopped

    with pytest.raises(Stopped):
        train_dpo(pairs, spec, tmp_path / "cut", progress=progress)
    train_dpo(pairs, spec, tmp_path / "cut")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_kl_is_to_the_reference_that_is_named(
    tiny_policy: Path, make_policy: Any, tmp_path: Path, write_jsonl: Any
) -> None:
    """At the first step it is 0 to the model itself, and more to another; replaced in every step, it stays 0."""
    rows = [{"prompt": f"{n}: ", "completions": ["fine", "so slow"], "scores": [1, 0]} for n in range(8)]
    data, other = write_jsonl(tmp_path / "g.jsonl", rows), make_policy(tmp_path / "other", seed=7)
    shared = {"model": str(tiny_policy), "loss": "slic-rank", "regularizer": "kl", "batch_size": 4, "lr": 1e-3}
    first = {}
    for name, more in (("own", {}), ("theirs", {"ref_model": str(other)})):
        for weight in (0.0, 1.0):
            spec = DpoSpec(**shared, **more, reg_weight=weight)
            train_dpo(data, spec, tmp_path / f"{name}{weight}")
            first[name, weight] = losses(tmp_path / f"{name}{weight}")
    assert first["own", 1.0][0] == pytest.approx(first["own", 0.0][0], abs=1e-5)
    assert first["own", 1.0][1] > first["own", 0.0][1] - 1e-3
    assert first["theirs", 1.0][0] > first["theirs", 0.0][0] + 1e-3
    moving = DpoSpec(**shared, sync_ref_every=1, sync_ref_alpha=1.0)
    train_dpo(data, moving, tmp_path / "moving")
    assert losses(tmp_path / "moving") == pytest.approx(first["own", 0.0], abs=1e-4)
