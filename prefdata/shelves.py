"""Shelves: rows that wait, cut into shares by their prompts, so that all that belongs to a prompt lies together.

Candidates, scores, prompts and verdicts lie in files of different orders. Each is read once and put on shelves; then a
share of each is held at a time, and memory does not grow with the run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import polars as pl
import pyarrow as pa

from prefdata.disk import is_abandoned, refused, temporary_name
from prefdata.store import Run

TOGETHER = 500_000
"""Rows that are cut into shares at a time: small pieces cost more to write and to read than their rows."""

MOST_SHARES = 256
"""Each has a file that is open; three shelves stay below the 1,024 that a process is commonly allowed."""

_OPEN: set[Path] = set()  # this process's rooms: several threads may be at it


def how_many_shares(rows: int, each: int) -> int:
    """How many shares rows are cut into: of about `each` rows, and of more where there would be too many."""
    return min(MOST_SHARES, max(1, -(-rows // each)))


class Shelves:
    """Rows with a prompt_id, by share; a single share is held in memory and needs no disk."""

    def __init__(self, folder: Path, shares: int, empty: pl.DataFrame) -> None:
        """Shelves in `folder` for rows with the columns of `empty`; its own rows, if it has some, are not put there."""
        self.shares = shares
        self._folder = folder
        self._held = [empty.clear()]
        self._uncut: list[pl.DataFrame] = []
        self._open: dict[int, tuple[Any, Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, rows: pl.DataFrame) -> None:
        """Take rows, each for the share of its prompt: shares are in the order of the prompts' ids."""
        if self.shares == 1:
            self._held.append(rows)
            return
        self._uncut.append(rows)
        if sum(some.height for some in self._uncut) >= TOGETHER:
            self._cut()

    def _cut(self) -> None:
        if not self._uncut:
            return
        digits = pl.col("prompt_id").str.slice(0, 8).str.to_integer(base=16, dtype=pl.UInt64)
        rows = pl.concat(self._uncut).with_columns(_share=digits * self.shares // 2**32)
        self._uncut = []
        for (share,), some in rows.partition_by("_share", as_dict=True, include_key=False).items():
            self.put_in(int(share), some)

    def put_in(self, number: int, rows: pl.DataFrame) -> None:
        """Take rows of one share."""
        if self.shares == 1:
            self._held.append(rows)
            return
        if rows.height == 0:
            return
        table = rows.to_arrow()
        with refused(self._folder):
            if number not in self._open:
                self._folder.mkdir(parents=True, exist_ok=True)
                file = self._path(number).open("wb")
                self._open[number] = (file, pa.ipc.new_stream(file, table.schema))
            self._open[number][1].write_table(table)

    def share(self, number: int) -> pl.DataFrame:
        """All rows of a share, in the order in which they came; more may be put there later."""
        if self.shares == 1:
            return pl.concat(self._held)
        self._cut()
        if number not in self._open:
            return self._held[0]
        with refused(self._folder):
            self._open[number][0].flush()
        with pa.memory_map(str(self._path(number))) as file:
            frame = pl.from_arrow(pa.ipc.open_stream(file).read_all())
        assert isinstance(frame, pl.DataFrame)
        return frame

    def take(self, number: int) -> pl.DataFrame:
        """All rows of a share, which then has none."""
        rows = self.share(number)
        del self._held[1:]
        if number in self._open:
            self._open.pop(number)[0].close()
            self._path(number).unlink()
        return rows

    def close(self) -> None:
        """Let go of the files."""
        for file, _ in self._open.values():
            file.close()

    def _path(self, share: int) -> Path:
        return self._folder / f"{share:05d}.arrow"


@contextmanager
def shelf_room(run: Run) -> Iterator[Path]:
    """Room for shelves in the run's folder, cleared at the end; what killed processes left goes as well.

    It is made when something is put there: a run whose rows are few is not touched.
    """
    with refused(run.path):
        for left in run.path.glob("_tmp-*-shelves"):
            if left not in _OPEN and is_abandoned(left):
                shutil.rmtree(left, ignore_errors=True)
    room = temporary_name(run.path / "shelves")
    _OPEN.add(room)
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)
        _OPEN.discard(room)
