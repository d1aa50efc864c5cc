"""The best weights by the loss on held-out data, and early stopping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefdata.errors import UsageError
from prefdata.train.specs import DpoSpec
from prefdata.train.train import train_dpo


class Killed(Exception):
    """Stands for whatever stops a run."""


@pytest.fixture
def pairs(tmp_path: Path, make_pairs: Any, write_jsonl: Any) -> Path:
    """What the train split prefers the test split does not, so that the loss on it soon rises."""
    rows = [{**row, "split": "test" if i % 3 == 0 else "train"} for i, row in enumerate(make_pairs(30))]
    for row in rows[::3]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    return write_jsonl(tmp_path / "pairs.jsonl", rows)


@pytest.fixture
def settings(tiny_policy: Path) -> DpoSpec:
    return DpoSpec(
        model=str(tiny_policy), lr=1e-3, batch_size=5, epochs=3, warmup=0, lr_scheduler="constant", keep_best=2
    )


def losses(metrics: list[dict[str, float]]) -> dict[int, float]:
    """The loss on held-out data by step."""
    return {int(line["step"]): line["eval/loss"] for line in metrics if "eval/loss" in line}


def saved(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_the_weights_of_the_best_evaluation_are_saved(
    pairs: Path, settings: DpoSpec, tmp_path: Path, read_metrics: Any
) -> None:
    """They are those of a run that ends at that step; the report has that evaluation's metrics."""
    report = train_dpo(pairs, settings, tmp_path / "best").report
    found = losses(read_metrics(tmp_path / "best"))
    assert list(found) == [2, 4, 6, 8, 10, 12]
    best = min(found, key=lambda step: found[step])
    assert best < 12  # or the test shows nothing
    assert (report.figures["best_step"], report.figures["steps"]) == (best, 12)
    assert report.figures["eval/loss"] == found[best]
    short = settings.model_copy(update={"keep_best": 0, "max_steps": best})
    train_dpo(pairs, short, tmp_path / "short")
    assert saved(tmp_path / "best") == saved(tmp_path / "short")
    assert not (tmp_path / "best" / "_best").exists()


def test_training_stops_when_there_are_no_better_weights(
    pairs: Path, settings: DpoSpec, tmp_path: Path, read_metrics: Any
) -> None:
    patient = settings.model_copy(update={"patience": 2})
    report = train_dpo(pairs, patient, tmp_path / "early").report
    found = losses(read_metrics(tmp_path / "early"))
    best = min(found, key=lambda step: found[step])
    assert list(found)[-1] == report.figures["steps"] == best + 4
    assert report.figures["best_step"] == best


def test_a_run_that_was_stopped_keeps_the_same_weights(
    pairs: Path, settings: DpoSpec, tmp_path: Path, read_metrics: Any
) -> None:
    patient = settings.model_copy(update={"patience": 2, "save_every": 3})
    whole = train_dpo(pairs, patient, tmp_path / "whole").report
    for step in (2, 4, 5):

        def stop(done: int, total: int, *, step: int = step, **figures: float) -> None:
            if done == step and "tokens" in figures:
                raise Killed

        with pytest.raises(Killed):
            train_dpo(pairs, patient, tmp_path / "cut", progress=stop)
    assert train_dpo(pairs, patient, tmp_path / "cut").report.figures == whole.figures
    assert saved(tmp_path / "whole") == saved(tmp_path / "cut")
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "cut")


def test_an_evaluation_without_a_loss_is_never_the_best(tmp_path: Path) -> None:
    import torch

    from prefdata.train.best import BestWeights

    model = torch.nn.Linear(1, 1, bias=False)
    best = BestWeights(tmp_path / "_best", model, every=5, patience=3)
    assert [best.is_due(done, 12) for done in (4, 5, 10, 11, 12)] == [False, True, True, False, True]
    assert best.restore() == {}
    for number, (loss, stops) in enumerate([(np.nan, False), (2.0, False), (2.0, False), (np.nan, False), (3.0, True)]):
        torch.nn.init.constant_(model.weight, number)
        assert best.see(number + 1, {"eval/loss": loss}) is stops
    assert best.restore() == {"eval/loss": 2.0, "best_step": 2}
    assert model.weight.item() == 1.0


def test_what_has_no_effect_is_refused(settings: DpoSpec, tmp_path: Path, make_pairs: Any, write_jsonl: Any) -> None:
    with pytest.raises(UsageError, match="--patience goes with --keep-best"):
        DpoSpec.parse({"model": "m", "patience": 2})
    data = write_jsonl(tmp_path / "train.jsonl", make_pairs(6))
    with pytest.raises(UsageError, match="--keep-best compares weights on the test split, and no example is in it"):
        train_dpo(data, settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()
