"""What a sampler has drawn already: which samples of which prompts, in some bytes a candidate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from prefdata.keyed_random import id_prefix64
from prefdata.storage.run import Partition
from prefdata.storage.schemas import read_part

_COLUMNS = ["prompt_id", "sample_index", "finish_reason", "max_tokens"]


class ExistingSamples:
    """The samples of a partition, except those truncated by a smaller limit that a larger one is to sample again."""

    def __init__(self, partition: Partition | None, max_tokens: int | None = None) -> None:
        """Read what is there (nothing, for None); `max_tokens` is the limit that asks for truncated answers again."""
        self._partition = partition
        self._max_tokens = max_tokens
        self._read: set[Path] = set()
        self._prompts = np.empty(0, np.uint64)
        self._indices = np.empty(0, np.int32)
        self.refresh()

    def refresh(self) -> None:
        """Read the parts that came since."""
        parts = [] if self._partition is None else self._partition.stored(self._read)
        found = [self._samples(part) for part in parts]
        self._read.update(parts)
        if found:
            prompts = np.concatenate([self._prompts, *(one for one, _ in found)])
            indices = np.concatenate([self._indices, *(indices for _, indices in found)])
            order = np.argsort(prompts, kind="stable")
            self._prompts, self._indices = prompts[order], indices[order]

    def missing(self, prompt_ids: Sequence[str], n: int) -> list[list[int]]:
        """For each prompt the indices below `n` that are not there."""
        if len(self._prompts) == 0:
            return [list(range(n)) for _ in prompt_ids]
        asked = id_prefix64(pl.Series(prompt_ids, dtype=pl.String))
        first = np.searchsorted(self._prompts, asked, "left").tolist()
        behind = np.searchsorted(self._prompts, asked, "right").tolist()
        there = [set(self._indices[a:b].tolist()) for a, b in zip(first, behind, strict=True)]
        return [[index for index in range(n) if index not in one] for one in there]

    def _samples(self, part: Path) -> tuple[np.ndarray, np.ndarray]:
        rows = read_part(part, _COLUMNS)
        if self._max_tokens is not None:
            redo = (pl.col("finish_reason") == "length") & (pl.col("max_tokens") < self._max_tokens)
            rows = rows.filter(~redo.fill_null(False))
        return id_prefix64(rows["prompt_id"]), rows["sample_index"].to_numpy().astype(np.int32)
