"""Which candidates some partitions hold, in eight bytes each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefdata.keyed_random import distinct, id_prefix64, isin_sorted
from prefdata.storage.run import Partition
from prefdata.storage.schemas import read_part


class CandidateKeySet:
    """The candidates that are in some partitions, by the first 64 bits of their ids."""

    def __init__(self, partitions: Sequence[Partition], *, growing: bool = False) -> None:
        """Read the ids that are there; `growing` partitions are being added to, and need not hold what they should."""
        self._partitions = partitions
        self._growing = growing
        self._read: set[Path] = set()
        self._keys = np.empty(0, np.uint64)
        self.refresh()

    def __len__(self) -> int:
        return len(self._keys)

    def refresh(self) -> None:
        """Read the parts that were added since."""
        read = self._read
        parts = [
            part
            for one in self._partitions
            for part in (one.stored(read) if self._growing else one.checked_parts())
            if part not in read
        ]
        found = [id_prefix64(read_part(part, ["candidate_id"])["candidate_id"]) for part in parts]
        self._read.update(parts)
        self._keys = distinct(np.concatenate([self._keys, *found]))

    def has(self, candidate_ids: pl.Series) -> NDArray[np.bool_]:
        """Whether each id is there, shape (ids,)."""
        return isin_sorted(self._keys, id_prefix64(candidate_ids))

    def lacks(self, other: CandidateKeySet) -> int:
        """How many candidates of another set are not in this one."""
        return int((~np.isin(other._keys, self._keys, assume_unique=True)).sum())
