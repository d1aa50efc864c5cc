"""The reference of a policy: its log-probabilities, computed once, or a model that follows the policy.

Log-probabilities that are computed once are cached in Parquet, so that no second model is in memory. They are computed
in windows, in the order of the data, and written every few seconds: an interrupted run loses no more than that. The key
of a window hashes all that its values depend on: the reference's weights and config, the tokens and which of them
count, and the settings of the computation.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash
from torch import Tensor, nn

from prefdata.errors import UsageError
from prefdata.ids import FORMAT, digest
from prefdata.progress import Progress, no_progress
from prefdata.storage.atomic import atomic_write, checksum, storage_errors
from prefdata.train import distributed
from prefdata.train.adapter import WithoutAdapter
from prefdata.train.batches import Batch, Example, content_hash, micro_batches
from prefdata.train.logps import response_logps
from prefdata.train.models import LoadedModel
from prefdata.train.objectives.forward import weighted_logps

WINDOW = 16
"""Micro-batches per window; each has responses of similar lengths."""

WRITE_SECONDS = 5.0
"""Seconds that computed windows are in memory only."""

_PART = pa.schema({"window": pa.string(), "logps": pa.list_(pa.list_(pa.float32()))})


class Reference(Protocol):
    """Log-probabilities that a policy is compared with."""

    def logps(self, batch: Batch) -> Tensor:
        """Return the log-probabilities `[E, K]` of a batch's responses, nats summed over tokens, on its device."""


@dataclass(frozen=True, slots=True)
class CachedReference:
    """Log-probabilities of all the data under a model that does not change.

    Attributes:
        values: `[examples, K]` in the order of the data, on the CPU.
    """

    values: Tensor

    def logps(self, batch: Batch) -> Tensor:
        """Look up those of the batch's examples."""
        return self.values[batch.index, : batch.counts.shape[1]].to(batch.weight.device, non_blocking=True)


class LiveReference:
    """A second model that follows the policy: `ref <- alpha policy + (1 - alpha) ref` every so many steps.

    TR-DPO, Gorbatovski et al. (2024, arXiv:2404.09656), equations 4 and 5.

    Args:
        loaded: the policy, which the reference is a copy of.
        every: steps between updates.
        alpha: the policy's weight in an update; 1 replaces the reference.
        ld_alpha: LD-DPO's weight of surplus tokens.
    """

    def __init__(self, loaded: LoadedModel, every: int, alpha: float, ld_alpha: float = 1.0) -> None:
        self._loaded, self._every, self._alpha, self._ld_alpha = loaded, every, alpha, ld_alpha
        self.model: nn.Module = deepcopy(loaded.model).eval().requires_grad_(False)

    @torch.no_grad()
    def logps(self, batch: Batch) -> Tensor:
        """Compute those of the batch's examples under the reference as it is now."""
        with self._loaded.precision():
            return weighted_logps(batch, response_logps(self.model, batch), self._ld_alpha)

    @torch.no_grad()
    def follow(self, policy: nn.Module, done: int) -> None:
        """Update the reference if it is due after so many steps."""
        if done % self._every == 0:
            for own, new in zip(self.model.parameters(), policy.parameters(), strict=True):
                own.lerp_(new, self._alpha)


def frozen_model(frozen: LoadedModel, policy: LoadedModel) -> Any:
    """Return a model whose distributions a policy is held to: the policy without its adapter, or a model of its own.

    Raises:
        UsageError: its batch layout differs from the policy's.
    """
    if frozen is policy:
        if policy.adapter is not None:
            return WithoutAdapter(policy.model, policy.adapter)
        return deepcopy(policy.model).eval().requires_grad_(False)
    if frozen.layout != policy.layout:
        raise UsageError("the reference and the policy need different batch layouts: set --batch-layout padded.")
    return frozen.model.eval().requires_grad_(False)


def cached_reference(
    loaded: LoadedModel,
    revision: str,
    examples: Sequence[Example],
    cache: Path,
    progress: Progress = no_progress,
    ld_alpha: float = 1.0,
) -> CachedReference:
    """Compute the log-probabilities of every response under `loaded` as it is now, or read them from `cache`.

    Args:
        loaded: the model that is the reference, before its first step.
        revision: the id of its weights and config.
        examples: the data.
        cache: the folder of cached log-probabilities.
        progress: called after each window.
        ld_alpha: LD-DPO's weight of surplus tokens.
    """
    values = torch.zeros(len(examples), max((len(example.responses) for example in examples), default=1))
    identity = {"format": FORMAT, "model": revision, "dtype": str(loaded.autocast), "layout": loaded.layout}
    identity |= {} if ld_alpha == 1 else {"ld_alpha": ld_alpha}
    if (weights := next(loaded.model.parameters()).dtype) != torch.float32:
        identity["weights"] = str(weights)
    windows = [(_key(identity, [examples[i] for i in window]), window) for window in _windows(examples, loaded)]
    known = _read(cache, {key for key, _ in windows})
    # What any process lacks, so that all of them divide the same windows.
    lacked = set[str]().union(*distributed.gathered({key for key, _ in windows if key not in known}))
    missing = [(key, window) for key, window in windows if key in lacked]
    done = len(examples) - sum(len(window) for _, window in missing)
    with storage_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
    with _Writer(cache) as writer:
        for number, (key, window) in enumerate(missing):
            if number % distributed.world() == distributed.rank():
                known[key] = compute(loaded, examples, window, ld_alpha)
                writer.add(key, known[key])
            done += len(window)
            progress(done, len(examples))
    if distributed.world() > 1:
        distributed.barrier()
        known |= _read(cache, {key for key, _ in missing if key not in known})
    for key, window in windows:
        values[window.start : window.stop, : known[key].shape[1]] = torch.from_numpy(known[key])
    return CachedReference(values)


@torch.no_grad()
def compute(loaded: LoadedModel, examples: Sequence[Example], window: range, ld_alpha: float = 1.0) -> np.ndarray:
    """Compute `[E, K]` log-probabilities of the examples of a window, in the order of the data."""
    loaded.model.eval()
    width = max(len(examples[i].responses) for i in window)

    def within(tokens: int) -> np.ndarray:
        values = np.zeros((len(window), width), dtype=np.float32)
        for batch in micro_batches(examples, window, tokens, loaded.layout):
            moved = batch.to(loaded.device)
            with loaded.precision(), loaded.without_adapter():
                found = weighted_logps(moved, response_logps(loaded.model, moved), ld_alpha)
            values[batch.index - window.start] = found.cpu()
        return values

    return loaded.micro.whole(within)


def _windows(examples: Sequence[Example], loaded: LoadedModel) -> Iterator[range]:
    """Cut the examples into windows of `WINDOW` micro-batches; the cuts depend on the data only, not on restarts."""
    start = tokens = 0
    for place, example in enumerate(examples):
        if tokens and tokens + example.tokens > WINDOW * loaded.micro.given:
            yield range(start, place)
            start, tokens = place, 0
        tokens += example.tokens
    if start < len(examples):
        yield range(start, len(examples))


def _key(identity: Mapping[str, Any], examples: Sequence[Example]) -> str:
    return digest({**identity, "data": content_hash(examples)})


class _Writer:
    """Writes windows in parts named by their checksums, every few seconds and at the end, also after an error."""

    def __init__(self, cache: Path) -> None:
        self._cache, self._since = cache, time.monotonic()
        self._waiting: dict[str, np.ndarray] = {}

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()

    def add(self, key: str, values: np.ndarray) -> None:
        """Buffer a window's values until the next write."""
        self._waiting[key] = values
        if time.monotonic() - self._since > WRITE_SECONDS:
            self._write()

    def _write(self) -> None:
        if not self._waiting:
            return
        rows = [{"window": key, "logps": values.tolist()} for key, values in self._waiting.items()]
        encoded = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, _PART), encoded)
        path = self._cache / f"{xxhash.xxh3_64_hexdigest(encoded.getbuffer())}.parquet"
        atomic_write(path, lambda file: file.write(encoded.getbuffer()))
        self._waiting, self._since = {}, time.monotonic()


def _read(cache: Path, keys: set[str]) -> dict[str, np.ndarray]:
    """Read the windows of these keys from the cache; damaged files count as missing."""
    found: dict[str, np.ndarray] = {}
    for path in cache.glob("*.parquet"):
        if checksum(path) != path.stem:
            continue
        table = pq.read_table(path, partitioning=None)
        for key, rows in zip(table["window"].to_pylist(), table["logps"], strict=True):
            if key in keys:
                found[key] = np.array(rows.as_py(), dtype=np.float32)
    return found
