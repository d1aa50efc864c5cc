"""The run directory: tables as Hive partitions of immutable Parquet parts.

    runs/demo/candidates/sampler=policy/{_spec.json, part-00000.parquet, …, _SUCCESS}

What holds, whatever is killed and whenever:

1. A part is written under a temporary name beside its final one, fsynced and renamed: readers see whole parts.
2. `_spec.json` (the Lineage) is there before the first part, `_SUCCESS` (the Report) after the last. Without `_SUCCESS`
   the partition is unfinished and the same command continues it.
3. A partition that is a pure function of others is built in a folder of its own and renamed into place: it is never
   seen unfinished, and the old one stays until the new one is complete.
4. Readers skip names that start with `_`, as Hadoop's do.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from prefdata.ahead import ahead, cores
from prefdata.disk import refused, sync_folder, write_file
from prefdata.errors import InputError, NotReady, StorageError, UsageError, did_you_mean
from prefdata.folders import Folder, Lineage, Outcome, State, Success
from prefdata.ids import digest
from prefdata.reports import Report
from prefdata.tables import TABLES, Table, evenly, last_of_each, superseded, write_parquet

__all__ = ["Appender", "Folder", "Lineage", "Outcome", "Partition", "Run", "State", "Success", "name_of"]

PART_ROWS = 250_000
"""Rows of a part where a partition is written in one go: each core writes one at a time."""

SMALL_PART = 8 << 20
"""Bytes below which a part is joined with others, where there are more than `FEW_PARTS` such."""
FEW_PARTS = 64
JOINED_ROWS = 100_000
"""Rows at which a joined part is full: texts that are much alike take little room on disk and much in memory."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LONGEST_NAME = 100  # file systems take 255 with what stands around it


class Partition(Folder):
    """One partition of one table: `RUN/candidates/sampler=policy`."""

    def __init__(self, run: Path, table: Table, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} cannot name a {table.partition}: use letters, digits, dots, dashes, underscores."
            )
        path = run / table.name / f"{table.partition}={name}"
        if len(name) > LONGEST_NAME and not os.path.lexists(path):
            raise UsageError(
                f"{name[:20]}… cannot name a {table.partition}: it has {len(name)} characters, {LONGEST_NAME} are the "
                f"most. Give a shorter one with --{'source' if table.partition == 'source' else 'name'}."
            )
        super().__init__(path)
        self.table = table
        self.name = name

    def __str__(self) -> str:
        return f"{self.table.name}/{self.name}"

    @property
    def content(self) -> str:
        """The id of what is in it now."""
        success = self.success()
        return success.content if success else digest([part.name for part in self.parts()])

    def parts(self) -> list[Path]:
        """The parts, in order."""
        return sorted(self.path.glob("part-*.parquet"))

    def readable(self) -> list[Path]:
        """The parts, in order, for whoever reads them one by one.

        Raises:
            InputError: a part is damaged, or was written by another version of the contract.
        """
        return [part for part, _ in self.sized()]

    def sized(self) -> list[tuple[Path, int]]:
        """The parts, in order, each with its rows; raises what `readable` does."""
        return [(part, self._checked(part)) for part in self.parts()]

    def as_it_lies(self) -> str:
        """The id of how its parts lie on disk: their names, sizes and times. Parts are never changed in place."""
        return digest([[part.name, part.stat().st_size, part.stat().st_mtime_ns] for part in self.parts()])

    def append(self, rows: pa.Table) -> Path:
        """Write `rows` as one more immutable part; another process may be appending as well."""
        temporary = self.path / f"_tmp-{os.getpid()}.parquet"
        try:
            return self._place(self._write(rows, temporary.name))
        finally:
            temporary.unlink(missing_ok=True)

    def _write(self, rows: pa.Table, name: str) -> Path:
        rows, path = self._signed(rows), self.path / name
        with refused(self.path):
            write_file(path, lambda file: write_parquet(rows, file))
        return path

    def rewrite(self, rows: pa.Table, lineage: Lineage, report: Report) -> None:
        """Make the whole partition `rows`, at once."""
        self.rebuild(lineage, lambda path: self._fill(path, rows, report))

    def derive(
        self,
        lineage: Lineage,
        compute: Callable[[], tuple[pa.Table, Report]],
        *,
        replace: bool = False,
    ) -> Outcome:
        """Make the partition a pure function of what `lineage` names, unless it is that already.

        Raises:
            SpecConflict, InputError: as `check`, unless `replace`.
        """
        return self.remake(lineage, lambda path: self._fill(path, *compute()), replace=replace)

    def derive_in_pieces(
        self,
        lineage: Lineage,
        compute: Callable[[], Generator[pa.Table, None, Report]],
        *,
        replace: bool = False,
        seen: Mapping[str, str] | None = None,
    ) -> Outcome:
        """As `derive`, from rows that come a table at a time; the generator's value at the end is the Report."""
        return self.remake(lineage, lambda path: self._fill_in_pieces(path, compute()), replace=replace, seen=seen)

    def _fill(self, path: Path, rows: pa.Table, report: Report) -> Report:
        def whole() -> Generator[pa.Table, None, Report]:
            yield rows
            return report

        return self._fill_in_pieces(path, whole())

    def _fill_in_pieces(self, path: Path, pieces: Generator[pa.Table, None, Report]) -> Report:
        building = Partition(path.parent, self.table, self.name)
        building.path = path
        ended: list[Report] = []
        numbers = itertools.count()

        def given() -> Iterator[pa.Table]:
            ended.append((yield from pieces))

        def written(rows: pa.Table) -> Path:
            return building._write(rows.combine_chunks(), f"_tmp-{os.getpid()}-{next(numbers)}.parquet")

        conformed = ahead(given(), self.table.conform, cores())
        for temporary in ahead(evenly(self.table.empty(), conformed, PART_ROWS), written, cores()):
            building._place(temporary)
        return ended[0]

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows; one row a key, even if two processes did the same work.

        Raises:
            InputError: a part is damaged, or was written by another version of the contract.
        """
        parts = self.readable()
        wanted = None if columns is None else list(dict.fromkeys([*columns, *self.table.key]))
        tables = [pq.read_table(part, columns=wanted, partitioning=None) for part in parts]
        rows = pa.concat_tables(tables) if tables else self.table.empty().select(wanted or self.table.schema.names)
        rows = last_of_each(rows, self.table.key) if len(parts) > 1 else rows
        return rows if columns is None else rows.select(list(columns))

    def compact(self, key: Sequence[str]) -> None:
        """Drop rows whose `key` a later row has too, and join small parts: one row a key, and not a file every second.

        Only for the one process that ends the work. Killed in the middle, rows may be there twice, in an old part and
        in the new one: `read` takes them once, and the next `compact` drops them. Parts are read one after the other.
        """
        parts = self.parts()
        twice = superseded(parts, list(key))
        sizes = [part.stat().st_size for part in parts]
        rows = [pq.read_metadata(part).num_rows for part in parts]
        small = sum(size < SMALL_PART for size in sizes) > FEW_PARTS
        group: list[int] = []
        for number, size in enumerate(sizes):
            if number in twice or (small and size < SMALL_PART):
                group.append(number)
            if sum(sizes[n] for n in group) >= SMALL_PART or sum(rows[n] for n in group) >= JOINED_ROWS:
                self._join([(parts[n], twice.get(n, [])) for n in group])
                group = []
        self._join([(parts[n], twice.get(n, [])) for n in group])

    def discard(self, rows: dict[int, list[int]]) -> None:
        """Drop rows, given by their numbers for the number of each part."""
        parts = self.parts()
        for number, gone in rows.items():
            self._join([(parts[number], gone)])

    def _join(self, group: list[tuple[Path, list[int]]]) -> None:
        """Replace parts by one part with their rows, without the rows of these numbers."""
        tables = []
        for part, dropped in group:
            rows = pq.read_table(part, partitioning=None)
            gone = set(dropped)
            kept = pa.array([row for row in range(rows.num_rows) if row not in gone], pa.int64())
            tables.append(rows.take(kept) if gone else rows)
        if not tables or (len(tables) == 1 and not group[0][1]):
            return
        whole = pa.concat_tables(tables)
        if whole.num_rows:
            self.append(whole)
        with refused(self.path):
            for part, _ in group:
                part.unlink()

    def _checked(self, part: Path) -> int:
        """The rows of a part that this version can read."""
        try:
            footer = pq.read_metadata(part)
            said = (footer.metadata or {}).get(b"version", b"").decode()
        except FileNotFoundError:
            raise  # another process has joined it with others
        except (pa.ArrowInvalid, OSError) as error:
            if getattr(error, "errno", None) is not None:  # the disk's or the system's fault, and not the file's
                raise InputError(f"cannot read {part}: {error}.") from None
            same = f"the same `{MADE_BY[self.table.name]}` command again"
            streamed = self.table.name in ("candidates", "comparisons", "scores")
            todo = f"Remove it and run {same} for what is missing." if streamed else f"Run {same}, with --replace."
            raise InputError(f"{part} is damaged: {str(error).splitlines()[0].rstrip('.')}. {todo}") from None
        if said != str(self.table.version):
            raise InputError(
                f"{part} has version {said or 'none'} of the {self.table.name} contract, and this prefdata "
                f"reads version {self.table.version}. Read it with the prefdata that wrote it, or make it anew."
            )
        return int(footer.num_rows)

    def _signed(self, rows: pa.Table) -> pa.Table:
        lineage = self.lineage()
        assert lineage is not None, f"{self} was written before it was begun"
        rows = self.table.conform(rows)
        return rows.replace_schema_metadata({**rows.schema.metadata, "prefdata": lineage.model_dump_json()})

    def _place(self, temporary: Path) -> Path:
        # link() fails where the name is taken, so that two processes never overwrite each other's part.
        number = len(self.parts())
        with refused(self.path):
            while True:
                final = self.path / f"part-{number:05d}.parquet"
                try:
                    os.link(temporary, final)
                except FileExistsError:
                    number += 1
                else:
                    temporary.unlink()
                    sync_folder(self.path)
                    return final


class Appender:
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


MADE_BY = {
    "prompts": "prefdata ingest",
    "candidates": "prefdata sample",
    "comparisons": "prefdata rank --judge|--pairwise MODEL",
    "scores": "prefdata rank",
    "selections": "prefdata select",
    "pairs": "prefdata pair",
    "unpaired": "prefdata pair --as unpaired",
    "groups": "prefdata pair --as groups",
    "demonstrations": "prefdata pair --as demonstrations",
}
"""The command that makes each table."""

_MAY_BE_PARTIAL = ("prompts", "candidates", "comparisons", "scores", "selections")
"""What the steps that read it take unfinished with `--partial`; export and train want all of it."""


class Run:
    """A run directory; it needs no making, the first step creates it."""

    def __init__(self, path: Path | str) -> None:
        """The run in this folder.

        Raises:
            NotReady: it is a file.
        """
        self.path = Path(path)
        if self.path.is_file():
            raise NotReady(f"{self} is a file and no run: a run is the folder that `prefdata ingest RUN FILE…` makes.")

    def __str__(self) -> str:
        return str(self.path)

    def partition(self, table: str, name: str) -> Partition:
        """The partition of that name, there or not."""
        return Partition(self.path, TABLES[table], name)

    def partitions(self, table: str) -> list[Partition]:
        """The partitions that are there, by name."""
        prefix = f"{TABLES[table].partition}="
        names = sorted(f.name.removeprefix(prefix) for f in self.path.glob(f"{table}/{prefix}*") if f.is_dir())
        return [self.partition(table, name) for name in names]

    def only(self, table: str, name: str | None = None, *, partial: bool = False) -> Partition:
        """The partition to read: the one named, or the only one there is.

        Raises:
            NotReady: there is none yet, or it is unfinished and `partial` was not asked for.
            UsageError: there are several and none was named, or none has that name.
        """
        there = self.partitions(table)
        key = TABLES[table].partition
        if not there:
            more = (
                f", or `prefdata ingest {self.path} FILE --as comparisons` for people's"
                if table == "comparisons"
                else ""
            )
            raise NotReady(f"{self.path} has no {table} yet: run `{MADE_BY[table]} {self.path} …` first{more}.")
        if name is None and len(there) > 1:
            names = ", ".join(p.name for p in there)
            raise UsageError(f"{self.path} has {len(there)} sets of {table} ({names}): say which with --{key}.")
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
        return partition


def name_of(path: str) -> str:
    """A partition's name made from a model's or a file's: its last component, with dashes for what no name may have."""
    last = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).name.partition(":")[0]).strip("-._")
    return (last if len(last) <= LONGEST_NAME else f"{last[:79]}-{digest(last)}") or "unnamed"
