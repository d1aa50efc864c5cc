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

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Literal, Self, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from prefdata.errors import InputError, NotReady, SpecConflict, StorageError, UsageError, did_you_mean, storage_error
from prefdata.ids import ID_DIGITS, digest
from prefdata.reports import Report
from prefdata.specs import Spec, difference
from prefdata.tables import TABLES, Table

State = Literal["absent", "unfinished", "finished"]

SPEC_FILE = "_spec.json"
SUCCESS_FILE = "_SUCCESS"
PART_ROWS = 1_000_000
"""Rows of a part where a partition is written in one go."""

Said = TypeVar("Said", bound=BaseModel)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Lineage(BaseModel):
    """Where rows came from: what every footer and `_spec.json` say.

    `spec` is the spec's identity, `parents` maps what was read (`candidates/policy`, or a file) to its content's id.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    spec: dict[str, Any]
    fingerprint: str
    parents: dict[str, str] = {}
    versions: dict[str, str] = Field(default_factory=lambda: {"prefdata": version("prefdata")})

    @classmethod
    def of(
        cls,
        spec: Spec,
        parents: dict[str, str] | None = None,
        *,
        resolved: dict[str, Any] | None = None,
        **versions: str,
    ) -> Lineage:
        """The lineage of what `spec` makes from `parents`; `versions` are those of the libraries that matter.

        `resolved` replaces or adds to the spec's identity what was only known at run time: a model's weights for its
        path, the engine that `auto` meant.
        """
        identity = {**spec.identity(), **(resolved or {})}
        return cls(
            step=spec.step,
            spec=identity,
            fingerprint=digest({"step": spec.step, **identity}),
            parents=parents or {},
            versions={"prefdata": version("prefdata"), **versions},
        )

    def versions_text(self) -> str:
        """The libraries' versions on one line."""
        return ", ".join(f"{name} {said}" for name, said in self.versions.items())

    @property
    def content(self) -> str:
        """The id of what this lineage makes: the steps are deterministic, so spec and inputs name the result."""
        return digest({"fingerprint": self.fingerprint, "parents": self.parents})


class Success(BaseModel):
    """What `_SUCCESS` says: the step's Report, the content's id and when it was finished."""

    model_config = ConfigDict(frozen=True)

    report: Report
    content: str
    finished: str


@dataclass(frozen=True)
class Outcome:
    """What a command did: the Report, where the result lies, and how it came about.

    made: from nothing; continued: what was missing was added; remade: replaced, because its inputs or settings changed;
    kept: it was there already and nothing was done.
    """

    report: Report
    path: Path
    did: Literal["made", "continued", "remade", "kept"]


class Folder:
    """A folder that one spec fills: a table's partition, a model, an export."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def state(self) -> State:
        """absent, unfinished (begun, no `_SUCCESS`) or finished."""
        if (self.path / SUCCESS_FILE).exists():
            return "finished"
        return "unfinished" if (self.path / SPEC_FILE).exists() else "absent"

    def lineage(self) -> Lineage | None:
        """What the folder is being or was made from, or None where it was not begun."""
        return _load(self.path / SPEC_FILE, Lineage)

    def success(self) -> Success | None:
        """What `_SUCCESS` says, or None where the folder is not finished."""
        return _load(self.path / SUCCESS_FILE, Success)

    def check(self, lineage: Lineage) -> State:
        """The folder's state, when it is free for `lineage` or was made by the same spec; touches nothing.

        Raises:
            SpecConflict: it was made by another spec; the message shows the difference.
            InputError: it holds files that prefdata did not write.
        """
        there = self.lineage()
        if there is None:
            if self.path.is_dir() and any(not f.name.startswith("_") for f in self.path.iterdir()):
                raise InputError(f"{self.path} holds files that prefdata did not write. Choose another folder or name.")
            return "absent"
        if there.fingerprint != lineage.fingerprint:
            changed = difference({"step": there.step, **there.spec}, {"step": lineage.step, **lineage.spec})
            raise SpecConflict(
                f"{self.path} was made with other settings ({changed}). "
                "Give the new one another name, or --replace the old one."
            )
        return self.state

    def begin(self, lineage: Lineage, *, replace: bool = False) -> State:
        """Make the folder ready to be filled; returns the state that it was in.

        With `replace` whatever was there, by whatever spec, is removed first.

        Raises:
            SpecConflict, InputError: as `check`.
            StorageError: the folder cannot be written.
        """
        state: State = "absent" if replace else self.check(lineage)
        with refused(self.path):
            if replace and self.path.exists():
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            self._sweep()
            if state == "absent" or self.lineage() != lineage:
                self.write_text(SPEC_FILE, lineage.model_dump_json(indent=2))
        return state

    def reopen(self) -> None:
        """Take `_SUCCESS` back, because more is to be added."""
        with refused(self.path):
            (self.path / SUCCESS_FILE).unlink(missing_ok=True)

    def finish(self, report: Report) -> None:
        """Write `_SUCCESS`, last of all."""
        lineage = self.lineage()
        assert lineage is not None, f"{self.path} was finished before it was begun"
        success = Success(report=report, content=lineage.content, finished=datetime.now(UTC).isoformat("T", "seconds"))
        self.write_text(SUCCESS_FILE, success.model_dump_json(indent=2))

    def write_text(self, name: str, text: str) -> None:
        """Write one small file atomically."""
        write_atomically(self.path / name, lambda file: file.write(text.encode()))

    def _sweep(self) -> None:
        # Temporary files of processes that died; those of living ones carry a living pid.
        for left in self.path.glob("_tmp-*"):
            if not _alive(left.name):
                left.unlink(missing_ok=True)


class Partition(Folder):
    """One partition of one table: `RUN/candidates/sampler=policy`."""

    def __init__(self, run: Path, table: Table, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} cannot name a {table.partition}: use letters, digits, dots, dashes, underscores."
            )
        super().__init__(run / table.name / f"{table.partition}={name}")
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

    def append(self, rows: pa.Table) -> Path:
        """Write `rows` as one more immutable part; another process may be appending as well."""
        rows = self._signed(rows)
        temporary = self.path / f"_tmp-{os.getpid()}.parquet"
        with refused(self.path):
            try:
                write_file(temporary, lambda file: pq.write_table(rows, file, compression="zstd"))
                return self._place(temporary)
            finally:
                temporary.unlink(missing_ok=True)

    def rewrite(self, rows: pa.Table, lineage: Lineage, report: Report) -> None:
        """Make the whole partition `rows`, at once: built beside, then renamed into place."""
        building = Partition(self.path.parent, self.table, self.name)
        building.path = self.path.parent / f"_new-{os.getpid()}-{self.name}"
        with refused(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for left in [*self.path.parent.glob("_new-*"), *self.path.parent.glob("_old-*")]:
                if not _alive(left.name):
                    shutil.rmtree(left)
            try:
                building.begin(lineage, replace=True)
                for start in range(0, max(rows.num_rows, 1), PART_ROWS):
                    building.append(rows.slice(start, PART_ROWS))
                building.finish(report)
                self._swap(building.path)
            finally:
                shutil.rmtree(building.path, ignore_errors=True)

    def derive(
        self,
        lineage: Lineage,
        compute: Callable[[], tuple[pa.Table, Report]],
        *,
        replace: bool = False,
    ) -> Outcome:
        """Make the partition a pure function of what `lineage` names, unless it is that already.

        The same spec with other inputs makes it anew: it is derived, and the old rows would be stale.

        Raises:
            SpecConflict, InputError: as `check`, unless `replace`.
        """
        state = self.state if replace else self.check(lineage)
        success = self.success()
        if success is not None and self.lineage() == lineage:
            return Outcome(success.report, self.path, "kept")
        began = time.monotonic()
        rows, report = compute()
        report = report.timed(time.monotonic() - began)
        self.rewrite(rows, lineage, report)
        return Outcome(report, self.path, "made" if state == "absent" else "remade")

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows; one row a key, even if two processes did the same work.

        Raises:
            InputError: a part was written by another version of the contract.
        """
        parts = self.parts()
        for part in parts:
            self._check_version(part)
        wanted = None if columns is None else list(dict.fromkeys([*columns, *self.table.key]))
        tables = [pq.read_table(part, columns=wanted, partitioning=None) for part in parts]
        rows = pa.concat_tables(tables) if tables else self.table.empty().select(wanted or self.table.schema.names)
        rows = _first_of_each(rows, self.table.key) if len(parts) > 1 else rows
        return rows if columns is None else rows.select(list(columns))

    def _check_version(self, part: Path) -> None:
        said = (pq.read_schema(part).metadata or {}).get(b"version", b"").decode()
        if said != str(self.table.version):
            raise InputError(
                f"{part} has version {said or 'none'} of the {self.table.name} contract, and this prefdata "
                f"reads version {self.table.version}. Read it with the prefdata that wrote it, or make it anew."
            )

    def _signed(self, rows: pa.Table) -> pa.Table:
        lineage = self.lineage()
        assert lineage is not None, f"{self} was written before it was begun"
        rows = self.table.conform(rows)
        return rows.replace_schema_metadata({**rows.schema.metadata, "prefdata": lineage.model_dump_json()})

    def _place(self, temporary: Path) -> Path:
        # link() fails where the name is taken, so that two processes never overwrite each other's part.
        number = len(self.parts())
        while True:
            final = self.path / f"part-{number:05d}.parquet"
            try:
                os.link(temporary, final)
            except FileExistsError:
                number += 1
            else:
                sync_folder(self.path)
                return final

    def _swap(self, new: Path) -> None:
        old = self.path.parent / f"_old-{os.getpid()}-{self.name}"
        if self.path.exists():
            self.path.rename(old)
        new.rename(self.path)
        sync_folder(self.path.parent)
        shutil.rmtree(old, ignore_errors=True)


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
    "comparisons": "prefdata rank",
    "scores": "prefdata rank",
    "selections": "prefdata select",
    "pairs": "prefdata pair",
}
"""The command that makes each table."""


class Run:
    """A run directory; it needs no making, the first step creates it."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

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
            raise NotReady(f"{self.path} has no {table} yet: run `{MADE_BY[table]} {self.path} …` first.")
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
                f"{partition} is unfinished: run the same `{MADE_BY[partition.table.name]}` command again to "
                "finish it, or take what is there with --partial."
            )
        return partition


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file so that `path` is either the old one or the whole new one.

    Raises:
        StorageError: the disk is full, read-only, or not ours to write; nothing is left behind.
    """
    temporary = path.with_name(f"_tmp-{os.getpid()}-{path.name}")
    with refused(path):
        try:
            write_file(temporary, write)
            temporary.rename(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_file(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the disk has the folder's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def refused(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into a StorageError; other errors pass."""
    try:
        yield
    except OSError as error:
        said = storage_error(error, path)
        if said is None:
            raise
        raise said from error


def name_of(path: str) -> str:
    """A partition's name made from a model's or a file's: its last component, with dashes for what no name may have."""
    last = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).name.partition(":")[0]).strip("-._")
    return last or "unnamed"


def rows_id(rows: pa.Table, key: str) -> str:
    """The id of a set of rows of plain columns: equal rows in any order, from any number of parts, have equal ids."""
    rows = rows.sort_by(key).combine_chunks()
    hashed = hashlib.sha256()
    for name in rows.column_names:
        column = rows[name].combine_chunks()
        hashed.update(name.encode() + str(column.type).replace("large_", "").encode())
        hashed.update(column.is_null().cast(pa.uint8()).to_numpy(zero_copy_only=False).tobytes())
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            lengths = pc.binary_length(column).fill_null(0).cast(pa.int64())
            hashed.update(lengths.to_numpy(zero_copy_only=False).tobytes())
            hashed.update("".join(column.fill_null("").to_pylist()).encode("utf-8", "surrogatepass"))
        else:
            hashed.update(column.fill_null(0).to_numpy(zero_copy_only=False).tobytes())
    return hashed.hexdigest()[:ID_DIGITS]


def _first_of_each(rows: pa.Table, key: Sequence[str]) -> pa.Table:
    numbered = rows.select(list(key)).append_column("__row", pa.array(range(rows.num_rows), pa.int64()))
    first = numbered.group_by(list(key)).aggregate([("__row", "min")])["__row_min"]
    return rows if len(first) == rows.num_rows else rows.take(first.sort())


def _load(path: Path, kind: type[Said]) -> Said | None:
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return kind.model_validate(json.loads(text))
    except ValueError as error:
        raise InputError(
            f"{path} is not as prefdata writes it ({error}). Make its folder anew with --replace."
        ) from None


def _alive(name: str) -> bool:
    found = re.match(r"_(?:tmp|new|old)-(\d+)", name)
    if not found or int(found[1]) == os.getpid():
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
