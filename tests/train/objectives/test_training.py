"""Every loss through its command: it trains, it does not depend on micro-batches, and it refuses what does not fit."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from prefdata.errors import ModelError, UsageError
from prefdata.train import train
from prefdata.train.batches import Example
from prefdata.train.objectives.catalog import LOSSES
from prefdata.train.objectives.fitting import mismatched
from prefdata.train.objectives.registry import Loss
from prefdata.train.specs import DpoSpec, KtoSpec, RmSpec, SftSpec

SPECS: dict[str, Any] = {"sft": SftSpec, "rm": RmSpec, "dpo": DpoSpec, "kto": KtoSpec}
TRAIN: dict[str, Callable[..., Any]] = {
    "sft": train.train_sft, "rm": train.train_rm, "dpo": train.train_dpo, "kto": train.train_kto,
}  # fmt: skip
ALL = [pytest.param(loss, id=f"{loss.command}-{loss.name}") for loss in LOSSES.losses]
WORDS = ("good", "bad", "fine", "film", "plot", "slow", "dull", "great", "nice", "long")


def sentence(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, 6)))


def rows_for(kind: str, count: int = 9) -> list[dict[str, Any]]:
    """Plain-text rows of a kind of data, of unequal lengths; groups of two to four, one of them all tied."""
    draw, rows = random.Random(7), []
    for number in range(count):
        row: dict[str, Any] = {"prompt": f"Review {number} {sentence(draw)}: "}
        if kind == "pairs":
            row |= {"chosen": f"{sentence(draw)}.", "rejected": f"{sentence(draw)}?", "margin": 0.5, "probability": 0.8}
        elif kind == "groups":
            size = 2 + number % 3
            row["completions"] = [f"{sentence(draw)} {k}" for k in range(size)]
            row["scores"] = [1.0] * size if number == 4 else [float(draw.randint(0, 3)) + k / 8 for k in range(size)]
        elif kind == "rated":
            row |= {"completion": sentence(draw), "score": draw.random()}
        elif kind == "demonstrations":
            row |= {"completion": sentence(draw)}
        elif kind == "unpaired":
            row |= {"completion": sentence(draw), "label": number % 3 > 0}
        rows.append(row)
    return rows


def spec_for(loss: Loss, model: Path, **more: Any) -> Any:
    settings = {"lr": 1e-3, "batch_size": 4, "save_every": 0, **more}
    return SPECS[loss.command](model=str(model), loss=loss.name, **settings)


@pytest.mark.parametrize("loss", ALL)
def test_every_loss_trains_and_does_not_depend_on_micro_batches(
    loss: Loss, tiny_policy: Path, tmp_path: Path, write_jsonl: Any, read_metrics: Any
) -> None:
    """Whole optimiser steps and one example at a time end with the same weights.

    The first step's loss and gradient are the same to rounding; AdamW blows rounding up in the steps after it.
    """
    data = write_jsonl(tmp_path / "data.jsonl", rows_for(loss.data))
    for name, micro in (("whole", 100_000), ("single", 1)):
        done = TRAIN[loss.command](data, spec_for(loss, tiny_policy, micro_tokens=micro), tmp_path / name)
        report = done.report
        assert report.rows_in == 9 == report.rows_out + sum(report.dropped.values())
        assert report.dropped.get("all_tied", 0) == (1 if loss.ranks else 0)
    lines = [read_metrics(tmp_path / name) for name in ("whole", "single")]
    assert all(math.isfinite(value) for value in lines[0][-1].values())
    assert lines[0][0]["grad_norm"] == pytest.approx(lines[1][0]["grad_norm"], rel=1e-5)
    for step, (one, other) in enumerate(zip(*lines, strict=True)):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5, rel=1e-4 if step else 1e-6)
        assert one["grad_norm"] > 0
    one, other, start = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", tmp_path / "single", tiny_policy)
    )
    assert all(torch.allclose(one[name], other[name], atol=3e-4) for name in one)
    assert not all(torch.equal(one[name], start[name]) for name in start if name in one)
    assert not any(name.startswith("length_head") for name in one)


def test_a_policy_learns_to_rank_groups(tiny_policy: Path, tmp_path: Path, write_jsonl: Any, read_metrics: Any) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", rows_for("groups"))
    for name in ("rrhf", "plackett-luce"):
        spec = DpoSpec(model=str(tiny_policy), loss=name, lr=2e-3, batch_size=4, epochs=6)
        train.train_dpo(data, spec, tmp_path / name)
        assert read_metrics(tmp_path / name)[-1]["rewards/accuracies"] > 0.9


def test_several_heads_are_saved_with_their_names(tiny_policy: Path, tmp_path: Path, write_jsonl: Any) -> None:
    """Ratings that are missing are left out; the labels of the saved model are the attributes."""
    rows = [
        {"prompt": f"{n}: ", "completion": "fine " * (n + 1), "helpful": n, "clear": None if n else 2} for n in range(6)
    ]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    spec = RmSpec(model=str(tiny_policy), loss="mse", attributes=("helpful", "clear"), batch_size=3)
    train.train_rm(data, spec, tmp_path / "rm")
    config = json.loads((tmp_path / "rm/config.json").read_text())
    assert config["id2label"] == {"0": "helpful", "1": "clear"}
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").score.out_features == 2


@pytest.mark.parametrize("loss", ["mse", "ensemble"])
def test_the_heads_of_a_reward_model_are_trained_further(
    loss: str, tiny_policy: Path, tmp_path: Path, write_jsonl: Any
) -> None:
    """With a learning rate of nearly 0 the heads stay as they are: they are not drawn again."""
    rows = rows_for("pairs") if loss == "ensemble" else rated("helpful", "clear")
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    more = {"members": 2} if loss == "ensemble" else {"attributes": ("helpful", "clear")}
    train.train_rm(data, RmSpec(model=str(tiny_policy), loss=loss, seed=1, **more), tmp_path / "first")
    further = RmSpec(model=str(tmp_path / "first"), loss=loss, lr=1e-12, **more)
    train.train_rm(data, further, tmp_path / "second")
    first, second = (load_file(tmp_path / name / "model.safetensors")["score.weight"] for name in ("first", "second"))
    assert torch.allclose(first, second, atol=1e-6)
    assert len(first) == 2


def rated(*names: str) -> list[dict[str, Any]]:
    return [{"prompt": f"{n}: ", "completion": "fine", **dict.fromkeys(names, n)} for n in range(4)]


@pytest.mark.parametrize(
    ("names", "attributes", "problem"),
    [
        (("LABEL_0",), ("helpful", "clear"), "has 1 label, and this training has 2"),
        (
            ("helpful", "clear"),
            ("clear", "helpful"),
            "has the labels helpful, clear. Give --attributes in the same",
        ),
        (("helpful", "clear"), ("helpful", "clear", "short"), "has 2 labels, and this training has 3"),
    ],
)
def test_heads_that_are_not_those_of_the_reward_model_are_refused(
    names: tuple[str, ...],
    attributes: tuple[str, ...],
    problem: str,
    make_reward_model: Any,
    tmp_path: Path,
    write_jsonl: Any,
) -> None:
    folder = make_reward_model(tmp_path / "rm", labels=len(names), id2label=dict(enumerate(names)))
    data = write_jsonl(tmp_path / "data.jsonl", rated("helpful", "clear", "short"))
    spec = RmSpec(model=str(folder), loss="mse", attributes=attributes)
    with pytest.raises(ModelError, match=problem):
        train.train_rm(data, spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ensemble_members_differ(tiny_policy: Path, tmp_path: Path, write_jsonl: Any, read_metrics: Any) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", rows_for("pairs"))
    train.train_rm(data, RmSpec(model=str(tiny_policy), loss="ensemble", members=3, lr=1e-2, epochs=3), tmp_path / "rm")
    head = load_file(tmp_path / "rm/model.safetensors")["score.weight"]
    assert head.shape[0] == 3
    assert read_metrics(tmp_path / "rm")[-1]["rewards/variance"] > 0


def test_kto_takes_pairs_apart(tiny_policy: Path, tmp_path: Path, write_jsonl: Any) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", rows_for("pairs", 3))
    report = train.train_kto(data, KtoSpec(model=str(tiny_policy)), tmp_path / "kto").report
    assert (report.rows_in, report.rows_out) == (6, 6)


def test_kto_of_one_response_has_no_kl(tiny_policy: Path, tmp_path: Path, write_jsonl: Any, read_metrics: Any) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", rows_for("unpaired", 1))
    train.train_kto(data, KtoSpec(model=str(tiny_policy), epochs=3, lr=1e-2, batch_size=1), tmp_path / "kto")
    assert [line["kl"] for line in read_metrics(tmp_path / "kto")] == [0.0] * 3


def example(prompt: list[int], response: list[int], **more: Any) -> Example:
    return Example(np.array(prompt, np.int32), (np.array(response, np.int32),), **more)


def test_mismatched_responses_are_those_to_other_prompts() -> None:
    """Of 7 examples, 3 share a prompt; each gets another prompt's response, by the seed, whatever the order of rows."""
    examples = [example([n if n > 2 else 0], [10 + n, n]) for n in range(7)]
    prompt_of = {10 + n: (n if n > 2 else 0) for n in range(7)}
    found = mismatched(examples, 3, None)
    assert [one.responses[0].tolist() for one in found] == [one.responses[0].tolist() for one in examples]
    assert all(prompt_of[int(one.responses[1][0])] != int(one.prompt[0]) for one in found)
    distinct = [example([n], [10 + n]) for n in range(20)]
    taken = [int(one.responses[1][0]) for one in mismatched(distinct, 0, None)]
    assert sorted(taken) == list(range(10, 30))
    assert taken != [int(one.responses[1][0]) for one in mismatched(distinct, 1, None)]


def test_mismatched_responses_fit_and_keep_their_marks() -> None:
    long = example([1, 2], [5, 6, 7, 8], trained=(np.array([False, True, True, True]),))
    other = example([3, 4, 5, 6], [9])
    first, second = mismatched([long, other], 0, 6)
    assert second.responses[1].tolist() == [5, 6]
    assert second.trained is not None
    assert second.trained[1].tolist() == [False, True]
    assert first.trained is not None
    assert first.trained[1].tolist() == [True]
    (alone,) = mismatched([long], 0, None)
    assert len(alone.responses) == 1
    same = mismatched([other, replace(other, responses=(np.array([8], np.int32),))], 0, None)
    assert [len(one.responses) for one in same] == [1, 1]


@pytest.mark.parametrize(
    ("command", "loss", "kind", "problem"),
    [
        ("dpo", "rrhf", "demonstrations", "train dpo --loss rrhf wants groups (prompt, completions and scores)"),
        ("dpo", "simpo", "groups", "train dpo --loss simpo wants pairs (prompt, chosen and rejected)"),
        ("kto", "kto", "groups", "train kto --loss kto wants labelled responses (prompt, completion and label)"),
        ("rm", "k-wise", "unpaired", "train rm --loss k-wise wants groups"),
        ("rm", "mse", "pairs", "train rm --loss mse wants rated responses (prompt, completion and a column"),
        ("sft", "nll", "prompts", "train sft --loss nll wants demonstrations (messages, or prompt and completion)"),
    ],
)
def test_a_loss_says_which_data_it_wants(
    command: str, loss: str, kind: str, problem: str, tiny_policy: Path, tmp_path: Path, write_jsonl: Any, prefdata: Any
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", rows_for(kind))
    code, _, err = prefdata("train", command, data, "--model", tiny_policy, "--out", tmp_path / "x", "--loss", loss)
    assert code == 2
    assert problem in err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("dpo", "--loss", "simpo", "--tau", "1"), "--loss simpo has no --tau, which discopop has: leave it out"),
        (("dpo", "--gamma", "1"), "--loss sigmoid has no --gamma, which simpo has: leave it out"),
        (("dpo", "--loss", "orpo", "--beta", "0.1"), "--loss orpo has no --beta, which sigmoid, sigmoid-mean,"),
        (("dpo", "--loss", "robust", "--soft-labels"), "--loss robust has no --soft-labels, which"),
        (("rm", "--loss", "bce", "--use-margin"), "--loss bce has no --use-margin, which bradley-terry, k-wise,"),
        (("rm", "--loss", "k-wise", "--center-rewards", "0.1"), "--loss k-wise has no --center-rewards"),
        (("dpo", "--loss", "ipo"), "--loss ipo: use ipo-mean (TRL's) or ipo-sum (the paper's)"),
        (("dpo", "--loss", "sppo_hard"), "--loss sppo_hard: use sppo"),
        (("dpo", "--loss", "kto"), "--loss kto is one of `train kto`, not of `train dpo`"),
        (("dpo", "--loss", "simpoo"), '--loss simpoo: there is no such loss. Did you mean "simpo"?'),
        (("dpo", "--loss", "exo", "--label-smoothing", "0"), "--loss exo needs --label-smoothing above 0"),
        (("dpo", "--f-alpha", "0.3"), "--f-alpha goes with --f-divergence alpha"),
    ],
)
def test_settings_that_do_not_fit(flags: tuple[str, ...], problem: str, prefdata: Any) -> None:
    command, *rest = flags
    code, _, err = prefdata("train", command, "d", "--model", "m", "--out", "o", *rest)
    assert code == 2
    assert problem in err
    assert err.count("\n") == 1


def test_aot_refuses_weights(tiny_policy: Path, tmp_path: Path, write_jsonl: Any) -> None:
    rows = [{**row, "weight": 1 + n} for n, row in enumerate(rows_for("pairs"))]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    with pytest.raises(UsageError, match="--loss aot compares sorted values over the examples of a batch"):
        train.train_dpo(data, DpoSpec(model=str(tiny_policy), loss="aot"), tmp_path / "aot")


def test_settings_as_printed_give_the_same_settings(prefdata: Any, tmp_path: Path) -> None:
    for loss in (LOSSES.find("dpo", "simpo"), LOSSES.find("dpo", "rrhf"), LOSSES.find("rm", "mse")):
        flags = ("train", loss.command, "d", "--out", "o", "--model", "m", "--loss", loss.name, "--print-config")
        code, printed, _ = prefdata(*flags)
        assert code == 0
        (tmp_path / "c.yaml").write_text(printed)
        flags = ("train", loss.command, "d", "--out", "o", "-c", tmp_path / "c.yaml", "--print-config")
        assert prefdata(*flags)[:2] == (0, printed)


def test_a_losss_own_defaults_are_no_part_of_its_fingerprint() -> None:
    """So that a setting which a later version adds, off by default, changes no fingerprint; other values do."""
    for loss in LOSSES.losses:
        spec = SPECS[loss.command](model="m", loss=loss.name)
        given = {name: value for name, value in loss.settings.items() if value not in (False, ())}
        assert SPECS[loss.command](model="m", loss=loss.name, **given).fingerprint() == spec.fingerprint()
        assert set(spec.non_default_identity(spec.identity())) <= {"model", "loss"}
    assert DpoSpec(model="m", loss="simpo", beta=0.1).fingerprint() != DpoSpec(model="m", loss="simpo").fingerprint()


def test_help_lists_every_loss_in_80_columns(prefdata: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, everything, _ = prefdata("train", "--help")
    for command in SPECS:
        _, page, _ = prefdata("train", command, "--help")
        assert max(map(len, page.splitlines())) <= 80
        for loss in LOSSES.of(command):  # type: ignore[arg-type]
            for text in (page, everything):
                assert (
                    sum(line.split()[:1] == [loss.name] and line.endswith(loss.line) for line in text.splitlines()) >= 1
                )


@pytest.mark.parametrize(
    ("command", "settings", "problem"),
    [
        ("dpo", {"loss": "rrhf", "pairing": "x"}, "--loss rrhf reads groups: name them with --input"),
        ("dpo", {"input": "x"}, "--loss sigmoid reads pairs: name them with --pairing"),
        ("rm", {"loss": "bce", "pairing": "x"}, "--loss bce reads unpaired: name them with --input"),
        ("kto", {"input": "x", "pairing": "y"}, "--input and --pairing name two things"),
    ],
)
def test_the_part_of_a_run_is_of_the_kind_that_is_read(command: str, settings: dict[str, str], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        SPECS[command].parse({"model": "m", **settings})


@pytest.mark.parametrize(
    ("command", "loss"), [("kto", "kto"), ("rm", "poe-length"), ("rm", "ensemble"), ("dpo", "slic-list")]
)
def test_stopped_and_continued_gives_the_same_bits(
    command: str, loss: str, tiny_policy: Path, tmp_path: Path, write_jsonl: Any, read_metrics: Any
) -> None:
    """Mismatched responses, the length expert, bootstrap samples and the KL's reference are the same afterwards."""
    entry = LOSSES.find(command, loss)  # type: ignore[arg-type]
    data = write_jsonl(tmp_path / "data.jsonl", rows_for(entry.data))
    more = {"regularizer": "kl"} if loss == "slic-list" else {}
    spec = spec_for(entry, tiny_policy, epochs=2, save_every=1, **more)

    class KilledError(Exception):
        pass

    def stop(done: int, total: int, **figures: float) -> None:
        if done == 3 and "tokens" in figures:  # the reference pass has none
            raise KilledError

    TRAIN[command](data, spec, tmp_path / "whole")
    with pytest.raises(KilledError):
        TRAIN[command](data, spec, tmp_path / "cut", progress=stop)
    assert TRAIN[command](data, spec, tmp_path / "cut").did == "continued"
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "cut")


@pytest.mark.parametrize(
    ("command", "loss"), [("dpo", "simpo"), ("dpo", "rrhf"), ("rm", "k-wise"), ("rm", "bce"), ("sft", "nll")]
)
def test_a_weight_of_two_is_the_row_twice(
    command: str, loss: str, tiny_policy: Path, tmp_path: Path, write_jsonl: Any, read_metrics: Any
) -> None:
    entry = LOSSES.find(command, loss)  # type: ignore[arg-type]
    rows = rows_for(entry.data, 4)
    weighted = [{**row, "weight": 2.0 if n == 1 else 1.0} for n, row in enumerate(rows)]
    found = []
    for name, given in (("once", rows), ("weighted", weighted), ("twice", [*rows, rows[1]])):
        data = write_jsonl(tmp_path / f"{name}.jsonl", given)
        TRAIN[command](data, spec_for(entry, tiny_policy, lr=1e-12, batch_size=9), tmp_path / name)
        found.append(read_metrics(tmp_path / name)[0]["loss"])
    assert found[1] == pytest.approx(found[2], rel=1e-6)
    assert abs(found[0] - found[1]) > 1e-4
