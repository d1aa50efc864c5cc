"""Metrics: one JSON object a line in metrics.jsonl, and the same numbers in TensorBoard where it is installed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from prefdata.train.objectives import Sums

METRICS_FILE = "metrics.jsonl"

log = logging.getLogger("prefdata.train")


class Means:
    """Means that are added up piece by piece, exactly restorable from JSON."""

    def __init__(self, sums: dict[str, list[float]] | None = None) -> None:
        self.sums = sums or {}

    def add(self, more: dict[str, tuple[float, float]]) -> None:
        """Add (sum, count) by name."""
        for name, (total, count) in more.items():
            mine = self.sums.setdefault(name, [0.0, 0.0])
            mine[0] += total
            mine[1] += count

    def take(self) -> dict[str, float]:
        """The means since the last take."""
        means = self.means()
        self.sums = {}
        return means

    def means(self) -> dict[str, float]:
        """The means of what was added."""
        return {name: total / count if count else 0.0 for name, (total, count) in self.sums.items()}


class RunMeans:
    """The means of a run's metrics over all of its steps, and over the first and the last tenth of them.

    Args:
        steps: how many the run has.
        sums: of an earlier part of the run, as `sums` has them.
    """

    def __init__(self, steps: int, sums: dict[str, dict[str, list[float]]] | None = None) -> None:
        self._first, self._last = max(1, steps // 10), steps - max(1, steps // 10)
        self._means = {part: Means((sums or {}).get(part)) for part in ("", " first", " last")}

    @property
    def sums(self) -> dict[str, dict[str, list[float]]]:
        """What `RunMeans` continues from, as JSON values."""
        return {part: means.sums for part, means in self._means.items()}

    def add(self, step: int, metrics: dict[str, tuple[float, float]]) -> None:
        """Add the (sum, count) of each metric of a step (from 0)."""
        parts = {"": True, " first": step < self._first, " last": step >= self._last}
        for part, inside in parts.items():
            if inside:
                self._means[part].add(metrics)

    def figures(self, names: Sequence[str]) -> dict[str, float]:
        """The means of these metrics, where there are such: `loss`, `loss first`, `loss last`."""
        parts = {part: means.means() for part, means in self._means.items()}
        return {f"{name}{part}": means[name] for name in names for part, means in parts.items() if name in means}


def fetch(pieces: list[Sums], **more: Tensor) -> dict[str, tuple[float, float]]:
    """The sums of the micro-batches of one step, and `more` single numbers, in one transfer from the device."""
    names = list(pieces[0])
    stacked = torch.stack([torch.stack([piece[name][0].double() for name in names]) for piece in pieces]).sum(0)
    numbers = torch.cat([stacked, *(number.detach().double().reshape(1) for number in more.values())]).tolist()
    counts = [sum(piece[name][1] for piece in pieces) for name in names] + [1.0] * len(more)
    return dict(zip([*names, *more], zip(numbers, counts, strict=True), strict=True))


class Log:
    """metrics.jsonl and TensorBoard, from a given step on.

    Args:
        folder: the model's folder.
        position: bytes of metrics.jsonl that a checkpoint vouches for; what lies beyond belongs to steps that are run
            again, and is cut off.
        step: the first step that will be logged.
    """

    def __init__(self, folder: Path, position: int = 0, step: int = 0) -> None:
        self._file: IO[bytes] = (folder / METRICS_FILE).open("ab")
        self._file.truncate(position)
        self._board = _tensorboard(folder / "tensorboard", step)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line: the step (from 1) and its numbers."""
        self._file.write(json.dumps({"step": step, **values}).encode() + b"\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def sync(self) -> int:
        """Wait until the disk has all lines; returns how many bytes they are."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close both."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("tensorboard is not installed, so metrics go to %s only.", METRICS_FILE)
        return None
    return SummaryWriter(str(folder), purge_step=step)
