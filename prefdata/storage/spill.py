"""Rows that wait on disk, in buckets by their prompts: all rows of a prompt are in one bucket.

What `rank` compares needs candidates, prompts and verdicts, which are stored in different orders. Each is read once and
written to buckets; then one bucket of each is held at a time, and memory does not grow with the run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from prefdata.storage.atomic import is_abandoned, storage_errors, temporary_name
from prefdata.storage.run import Run

PUT_ROWS = 500_000
"""Rows that are divided among the buckets at a time: small pieces cost more to write and to read than their rows."""

MAX_BUCKETS = 256
"""Each has a file that is open; three sets of them stay below the 1,024 that a process is commonly allowed."""

_OPEN: set[Path] = set()  # this process's folders: several threads may be at it


def bucket_count(rows: int, each: int) -> int:
    """Return the number of buckets of about `each` rows: `MAX_BUCKETS` at most, larger ones where those are too few."""
    return min(MAX_BUCKETS, max(1, -(-rows // each)))


class SpillBuckets:
    """Rows with a prompt_id, by bucket; a single bucket is held in memory and needs no disk."""

    def __init__(self, folder: Path, count: int, empty: pl.DataFrame) -> None:
        """So many buckets in `folder`, for rows with the columns of `empty`."""
        self.count = count
        self._folder = folder
        self._held = [empty.clear()]
        self._waiting: list[pl.DataFrame] = []
        self._open: dict[int, tuple[Any, Any]] = {}

    def put(self, rows: pl.DataFrame) -> None:
        """Take rows, each for the bucket of its prompt: buckets are in the order of the prompts' ids."""
        if self.count == 1:
            self._held.append(rows)
            return
        self._waiting.append(rows)
        if sum(some.height for some in self._waiting) >= PUT_ROWS:
            self._divide()

    def _divide(self) -> None:
        if not self._waiting:
            return
        digits = pl.col("prompt_id").str.slice(0, 8).str.to_integer(base=16, dtype=pl.UInt64)
        rows = pl.concat(self._waiting).with_columns(_bucket=digits * self.count // 2**32)
        self._waiting = []
        for (number,), some in rows.partition_by("_bucket", as_dict=True, include_key=False).items():
            self._write(int(number), some.to_arrow())

    def _write(self, number: int, rows: pa.Table) -> None:
        with storage_errors(self._folder):
            if number not in self._open:
                self._folder.mkdir(parents=True, exist_ok=True)
                file = self._path(number).open("wb")
                self._open[number] = (file, pa.ipc.new_stream(file, rows.schema))
            self._open[number][1].write_table(rows)

    def bucket(self, number: int) -> pl.DataFrame:
        """All rows of a bucket, in the order in which they came; more may be put there later."""
        if self.count == 1:
            return pl.concat(self._held)
        self._divide()
        if number not in self._open:
            return self._held[0]
        with storage_errors(self._folder):
            self._open[number][0].flush()
        with pa.memory_map(str(self._path(number))) as file:
            return pl.DataFrame(pa.ipc.open_stream(file).read_all())

    def close(self) -> None:
        """Close the files."""
        for file, _ in self._open.values():
            file.close()

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:05d}.arrow"


@contextmanager
def spill_dir(run: Run) -> Iterator[Path]:
    """Create a folder in the run's for temporary rows, removed at the end, as are those of killed processes.

    It is made when something is written there: a run whose rows are few is not touched.
    """
    with storage_errors(run.path):
        for left in run.path.glob("_tmp-*-spill"):
            if left not in _OPEN and is_abandoned(left):
                shutil.rmtree(left, ignore_errors=True)
    folder = temporary_name(run.path / "spill")
    _OPEN.add(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _OPEN.discard(folder)
