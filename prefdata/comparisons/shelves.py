"""Rows that wait on disk, cut into shares by their prompts: all that belongs to a prompt lies together.

Candidates, prompts and verdicts lie in files of different orders. Each is read once, a batch at a time, and put on
shelves; then a share of each is held at a time, and memory does not grow with the run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from prefdata.disk import refused, written_by_the_living
from prefdata.store import Run

BATCH = 16_384
"""Rows that are read at a time."""


class Shelves:
    """Rows with a prompt_id, by share; a single share is held in memory and needs no disk."""

    def __init__(self, folder: Path, shares: int) -> None:
        """Shelves in `folder`, which is made when something is put there."""
        self.shares = shares
        self._folder = folder
        self._held: list[pl.DataFrame] = []
        self._open: dict[int, tuple[Any, Any]] = {}

    def put(self, rows: pl.DataFrame) -> None:
        """Take rows, each for the share of its prompt."""
        if self.shares == 1:
            self._held.append(rows)
            return
        digits = pl.col("prompt_id").str.slice(0, 8).str.to_integer(base=16, dtype=pl.UInt64)
        numbered = rows.with_columns(_share=digits * self.shares // 2**32)
        with refused(self._folder):
            for (share,), some in numbered.partition_by("_share", as_dict=True, include_key=False).items():
                self._write(int(share), some.to_arrow(compat_level=pl.CompatLevel.oldest()))

    def share(self, number: int) -> pl.DataFrame | None:
        """All rows of a share; None where there are none."""
        if self.shares == 1:
            return pl.concat(self._held) if self._held else None
        if number not in self._open:
            return None
        self._open[number][0].flush()
        with self._path(number).open("rb") as file:
            frame = pl.from_arrow(pa.ipc.open_stream(file).read_all())
        assert isinstance(frame, pl.DataFrame)
        return frame

    def close(self) -> None:
        """Let go of the files."""
        for file, _ in self._open.values():
            file.close()

    def _write(self, share: int, rows: pa.Table) -> None:
        if share not in self._open:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = self._path(share).open("wb")
            self._open[share] = (file, pa.ipc.new_stream(file, rows.schema))
        self._open[share][1].write_table(rows)

    def _path(self, share: int) -> Path:
        return self._folder / f"{share:05d}.arrow"


def batches(parts: Iterable[Path], columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """The rows of parts, some at a time."""
    for part in parts:
        for batch in pq.ParquetFile(part).iter_batches(BATCH, columns=list(columns)):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield frame


@contextmanager
def shelf_room(run: Run) -> Iterator[Path]:
    """Room for shelves in the run's folder, cleared at the end; what killed processes left goes as well."""
    for left in run.path.glob("_tmp-*-shelves"):
        if not written_by_the_living(left.name):
            shutil.rmtree(left, ignore_errors=True)
    room = run.path / f"_tmp-{os.getpid()}-shelves"
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)
