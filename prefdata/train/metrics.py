"""Metrics: one JSON object a line in metrics.jsonl, and the same numbers in TensorBoard where it is installed.

Sums stay on the device until a line is written, so that no step waits for the device.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

METRICS_FILE = "metrics.jsonl"

MetricSums = Mapping[str, tuple[Tensor | float, Tensor | float]]
"""Metrics as (sum, count), so that the means do not depend on the micro-batches."""

log = logging.getLogger("prefdata.train")


class MetricMeans:
    """Running means in float64, exactly restorable from JSON.

    Args:
        sums: [sum, count] by name, of the steps before.
    """

    def __init__(self, sums: Mapping[str, Sequence[float]] | None = None) -> None:
        self._sums = {name: torch.tensor(pair, dtype=torch.float64) for name, pair in (sums or {}).items()}

    def add(self, more: Mapping[str, Tensor]) -> None:
        """Add `[2]` tensors of sum and count by name, as `stack_sums` makes them."""
        for name, pair in more.items():
            own = self._sums.get(name)
            self._sums[name] = pair if own is None else own.to(pair.device) + pair

    @property
    def sums(self) -> dict[str, list[float]]:
        """The state that `MetricMeans` continues from, as JSON values; waits for the device."""
        return to_host(self._sums)

    def pop(self) -> dict[str, float]:
        """Return the means since the last `pop`."""
        means = self.means()
        self._sums = {}
        return means

    def means(self) -> dict[str, float]:
        """Return the means of all values added; a metric without a value has none."""
        return {name: total / count for name, (total, count) in self.sums.items() if count}


class RunMeans:
    """The means of a run's metrics over all of its steps, and over the first and the last tenth of them.

    Args:
        steps: number of steps of the run.
        sums: of the steps before, as `sums` returns them.
    """

    def __init__(self, steps: int, sums: Mapping[str, Mapping[str, Sequence[float]]] | None = None) -> None:
        self.first_steps, self._last = max(1, steps // 10), steps - max(1, steps // 10)
        self._means = {part: MetricMeans((sums or {}).get(part)) for part in ("", " first", " last")}

    @property
    def sums(self) -> dict[str, dict[str, list[float]]]:
        """The state that `RunMeans` continues from, as JSON values."""
        return {part: means.sums for part, means in self._means.items()}

    def add(self, step: int, metrics: Mapping[str, Tensor]) -> None:
        """Add the sums and counts of a step's (from 0) metrics, as `MetricMeans.add` takes them."""
        parts = {"": True, " first": step < self.first_steps, " last": step >= self._last}
        for part, inside in parts.items():
            if inside:
                self._means[part].add(metrics)

    def figures(self, names: Sequence[str]) -> dict[str, float]:
        """Return the means of those metrics that exist: `loss`, `loss first`, `loss last`."""
        parts = {part: means.means() for part, means in self._means.items()}
        return {f"{name}{part}": means[name] for name in names for part, means in parts.items() if name in means}


def stack_sums(pieces: Sequence[MetricSums]) -> dict[str, Tensor]:
    """Sum `pieces` into `[2]` float64 tensors of sum and count by name, each on the device of its sums."""
    sums: dict[str, Tensor] = {}
    for piece in pieces:
        for name, (total, count) in piece.items():
            device = total.device if isinstance(total, Tensor) else None
            pair = torch.stack([torch.as_tensor(part, dtype=torch.float64, device=device) for part in (total, count)])
            sums[name] = pair if name not in sums else sums[name] + pair
    return sums


def to_host(sums: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Copy `[2]` tensors by name to the host in one transfer."""
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for name, pair in sums.items():
        by_device.setdefault(pair.device, {})[name] = pair.detach()
    tables = {device: torch.stack(list(pairs.values())).tolist() for device, pairs in by_device.items()}
    rows = {device: dict(zip(pairs, tables[device], strict=True)) for device, pairs in by_device.items()}
    return {name: rows[pair.device][name] for name, pair in sums.items()}


class MetricsWriter:
    """Writer of metrics.jsonl and TensorBoard, from a given step on.

    Args:
        folder: the model's folder.
        position: bytes of metrics.jsonl at the checkpoint; later lines, of steps that are run again, are removed.
        step: the first step that will be logged.
    """

    def __init__(self, folder: Path, position: int = 0, step: int = 0) -> None:
        self._file: IO[bytes] = (folder / METRICS_FILE).open("ab")
        self._file.truncate(position)
        self._board = _tensorboard(folder / "tensorboard", step)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write one line: the step (from 1) and its metrics."""
        self._file.write(json.dumps({"step": step, **values}).encode() + b"\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def sync(self) -> int:
        """Sync all lines to disk; returns their length in bytes."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file and TensorBoard."""
        self._file.close()
        if self._board is not None:
            self._board.close()


class NoMetrics:
    """What processes but the first have in the place of a MetricsWriter."""

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write nothing."""

    def sync(self) -> int:
        """Return 0."""
        return 0

    def close(self) -> None:
        """Close nothing."""


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("tensorboard is not installed, so metrics go to %s only.", METRICS_FILE)
        return None
    return SummaryWriter(str(folder), purge_step=step)
