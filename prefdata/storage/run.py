"""The run directory: tables as Hive partitions.

runs/demo/candidates/sampler=policy/{_spec.json, part-00000-0b1f2c3d4e5f6a7b.parquet, …, _SUCCESS}
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, Self

from prefdata.errors import NotReady, StorageError, UsageError, did_you_mean
from prefdata.ids import digest
from prefdata.storage.artifact import Artifact, State
from prefdata.storage.atomic import is_temporary, names_in, replaced_name
from prefdata.storage.exchange import settle
from prefdata.storage.lineage import Lineage, Outcome, Success
from prefdata.storage.partition import LONGEST_NAME, MADE_BY, Partition
from prefdata.storage.schemas import TABLES

__all__ = ["MADE_BY", "Artifact", "Lineage", "Outcome", "PartWriter", "Partition", "Run", "State", "Success", "name_of"]


class PartWriter:
    """Rows, one at a time, into the parts of a partition.

    A part is written every `rows` rows or `seconds` seconds, and at the end: also when the end is an exception or
    Ctrl-C, so that nothing that was finished is lost.
    """

    def __init__(self, partition: Partition, *, rows: int = 10_000, seconds: float = 3.0) -> None:
        self._partition = partition
        self._rows: list[dict[str, Any]] = []
        self._limit = rows
        self._seconds = seconds
        self._last = time.monotonic()

    def add(self, row: dict[str, Any]) -> None:
        """Take one row; it is on disk after the next flush."""
        self._rows.append(row)
        if len(self._rows) >= self._limit or time.monotonic() - self._last >= self._seconds:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting as one part."""
        waiting, self._rows = self._rows, []
        self._last = time.monotonic()
        if waiting:
            self._partition.append(self._partition.table.from_rows(waiting))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, StorageError):
            self.flush()


_MAY_BE_PARTIAL = ("prompts", "candidates", "comparisons", "scores", "selections")
"""What the steps that read it take unfinished with `--partial`; export and train want all of it."""


class Run:
    """A run directory; it needs no making, the first step creates it."""

    def __init__(self, path: Path | str) -> None:
        """Open the run in this folder.

        Raises:
            NotReady: it is a file.
        """
        self.path = Path(path)
        if self.path.is_file():
            raise NotReady(f"{self} is a file and no run: a run is the folder that `prefdata ingest RUN FILE…` makes.")

    def __str__(self) -> str:
        return str(self.path)

    def partition(self, table: str, name: str) -> Partition:
        """Return the partition of that name, whether or not it exists."""
        return Partition(self.path, TABLES[table], name)

    def partitions(self, table: str) -> list[Partition]:
        """Return the partitions that exist, by name."""
        prefix = f"{TABLES[table].partition}="
        names = [name for name in folders(self.path / table) if name.startswith(prefix)]
        return [self.partition(table, name.removeprefix(prefix)) for name in names]

    def only(self, table: str, name: str | None = None, *, partial: bool = False) -> Partition:
        """Return the partition to read: the one named, or the only one in the run.

        Raises:
            NotReady: there is none yet, or it is unfinished and `partial` was not asked for.
            UsageError: there are several and none was named, or none has that name.
        """
        there = self.partitions(table)
        if not there:
            more = (
                f", or `prefdata ingest {self.path} FILE --as comparisons` for people's"
                if table == "comparisons"
                else ""
            )
            raise NotReady(f"{self.path} has no {table} yet: run `{MADE_BY[table]} {self.path} …` first{more}.")
        if name is None and len(there) > 1:
            names = ", ".join(p.name for p in there)
            raise UsageError(
                f"{self.path} has {len(there)} sets of {table} ({names}): say which with {TABLES[table].flag}."
            )
        chosen = there[0] if name is None else next((p for p in there if p.name == name), None)
        if chosen is None:
            raise UsageError(
                f"{self.path} has no {table} named {name!r}.{did_you_mean(str(name), [p.name for p in there])}"
            )
        return self.ready(chosen, partial=partial)

    def all(self, table: str, *, partial: bool = False) -> list[Partition]:
        """Every partition of a table, all of them finished.

        Raises:
            NotReady: there is none, or one is unfinished and `partial` was not asked for.
        """
        there = self.partitions(table)
        if not there:
            raise NotReady(f"{self.path} has no {table} yet: run `{MADE_BY[table]} {self.path} …` first.")
        return [self.ready(partition, partial=partial) for partition in there]

    @staticmethod
    def ready(partition: Partition, *, partial: bool = False) -> Partition:
        """`partition`, if a later step may read it.

        Raises:
            NotReady: it is unfinished and `partial` was not asked for.
        """
        if partition.state != "finished" and not partial:
            raise NotReady(
                f"{partition} is unfinished: run the same `{MADE_BY[partition.table.name]}` command again to finish it"
                + (", or take what is there with --partial." if partition.table.name in _MAY_BE_PARTIAL else ".")
            )
        partition.upgrade()
        return partition


def folders(path: Path) -> list[str]:
    """List the folders in a folder by name, those too that are just being replaced; not temporary ones."""
    names = {replaced_name(name) or name for name in names_in(path)}
    return sorted(name for name in names if not is_temporary(name) and _is_folder(path / name))


def _is_folder(path: Path) -> bool:
    # Missing only for the moment between two renames: look again when its replacement is there.
    if not path.is_dir():
        settle(path)
    return path.is_dir()


def name_of(path: str) -> str:
    """Make a partition's name from a model's or a file's: its last component, dashes for what is not allowed."""
    last = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).name.partition(":")[0]).strip("-._")
    return (last if len(last) <= LONGEST_NAME else f"{last[:79]}-{digest(last)}") or "unnamed"
