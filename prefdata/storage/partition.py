"""Partitions: one table's rows as immutable Parquet parts, `part-NUMBER-CHECKSUM.parquet`.

What holds, whatever is killed and whenever:

1. A part is written under a temporary name beside its final one, fsynced and renamed: readers see whole parts. Its name
   holds the checksum of its bytes, so that damage is found, and two processes never write one name.
2. `_spec.json` (the Lineage) is there before the first part, `_SUCCESS` (the Report, and every part) after the last.
   Without `_SUCCESS` the partition is unfinished and the same command continues it.
3. A partition that is a pure function of others is built in a folder of its own and exchanged with the old one.
4. Readers get the parts from `readable`, which refuses damaged, missing and additional ones.
5. Readers skip names that start with `_`, as Hadoop's do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prefdata.errors import InputError, PrefdataError, UsageError
from prefdata.ids import digest
from prefdata.parallel import prefetch_map, usable_cores
from prefdata.storage.artifact import Artifact
from prefdata.storage.atomic import checksum, fsync_dir, names_in, stamp, storage_errors, temporary_name, write_file
from prefdata.storage.exchange import settle
from prefdata.storage.leases import FOLDER as CLAIMS
from prefdata.storage.lineage import FileRecord, Lineage, Outcome, Success
from prefdata.storage.report import Report
from prefdata.storage.schemas import Table, keep_last, rebatch, trimmed, write_parquet

PART_ROWS = 250_000
"""Rows of a part where a partition is written in one go: each core writes one at a time."""

PART_BYTES = 64 << 20
"""About as many bytes has a part at most there, in memory: texts may be long."""

_UPGRADED = {"scores": "1"}
"""The earlier version of a table's contract that `storage.upgrade` brings up to date."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LONGEST_NAME = 100  # file systems take 255 with what stands around it

_PART = re.compile(r"part-(\d+)(?:-(?P<checksum>[0-9a-f]{16}))?\.parquet")
"""A part's name; prefdata 0.1 wrote no checksums, and what it wrote is read as it is."""

_TRIES = 5
"""How often the parts of a partition that another process changes are looked at again."""

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


class Partition(Artifact):
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
        super().__init__(path, working=(CLAIMS,))
        self.table = table
        self.name = name

    def __str__(self) -> str:
        return f"{self.table.name}/{self.name}"

    @property
    def content(self) -> str:
        """The id of what is in it now."""
        success = self.success()
        return success.content if success else self.stat_fingerprint()

    @property
    def intact(self) -> bool:
        """Whether it is finished, and its parts are those that `_SUCCESS` lists; what they hold is not read."""
        success = self.success()
        return success is not None and not self._wrong_names(success, self.parts())

    def lineage(self) -> Lineage | None:
        """Read what it is being or was made from; where `_spec.json` is lost or damaged, from a part's footer."""
        try:
            problem, there = None, super().lineage()
        except InputError as error:
            problem, there = error, None
        for part in [] if there else self.parts():
            with suppress(InputError, OSError, ValueError, RecursionError):
                self._rows(part)
                return Lineage.model_validate_json(pq.read_metadata(part).metadata[b"prefdata"])
        if problem:
            raise problem
        return there

    def parts(self) -> list[Path]:
        """Return the parts, in order, without checking them (`readable` does)."""
        settle(self.path)
        found = [name for name in names_in(self.path) if name.startswith("part-") and name.endswith(".parquet")]
        return [self.path / name for name in sorted(found, key=lambda name: (_number(name), name))]

    def checked_parts(self) -> list[Path]:
        """Return the parts, in order, for reading one by one: all those that `_SUCCESS` lists, each one checked.

        Raises:
            InputError: a part is damaged, missing or one too many, or of another version of the contract.
        """
        return [part for part, _ in self.parts_with_rows()]

    def parts_with_rows(self, *, sums: bool = True) -> list[tuple[Path, int]]:
        """Return the parts, in order, each with its number of rows; raise what `readable` does.

        Without `sums` only their names and footers are looked at: enough to count rows, not to read them.
        """
        if sums:
            self.upgrade()
        for _ in range(_TRIES):
            try:
                success, parts = self.success(), self.parts()
                if not (problems := self._wrong_names(success, parts)):
                    return [(part, self._rows(part, sums=sums)) for part in parts]
                if self.success() == success:
                    raise InputError(problems[0])
            except FileNotFoundError:  # another process has joined it with others, or replaced all of them
                continue
        raise InputError(f"{self.path} is being changed by another process. Run the command again when that is done.")

    def stored(self, known: Collection[Path] = ()) -> list[Path]:
        """Return the parts on disk, each one checked, whatever `_SUCCESS` lists: for the step that adds missing rows.

        Parts that are `known` already are left out.

        Raises:
            InputError: a part is damaged, or of another version of the contract.
        """
        self.upgrade()
        parts = [part for part in self.parts() if part not in known]
        for part in parts:
            self._rows(part)
        return parts

    def upgrade(self, *, drop_orphans: bool = False) -> None:
        """Bring scores that the version before wrote up to date, if there are some.

        Raises:
            As `storage.upgrade.upgrade`.
        """
        old = []
        for part in self.parts() if self.table.name in _UPGRADED else ():
            with suppress(InputError, FileNotFoundError):  # damaged, or joined with others: its reader reports it
                old += [part] if self._inspect(part)[1] == _UPGRADED[self.table.name] else []
        if old:
            from prefdata.storage.upgrade import upgrade

            upgrade(self, old, drop_orphans=drop_orphans)

    def stat_fingerprint(self) -> str:
        """Return the id of its parts by their names, which identify their contents."""
        return digest([part.name for part in self.parts()])

    def append(self, rows: pa.Table) -> Path:
        """Write `rows` as one more immutable part; another process may be appending as well."""
        temporary = temporary_name(self.path / "part.parquet")
        try:
            return self._place(self._write(rows, temporary))
        finally:
            temporary.unlink(missing_ok=True)

    def _write(self, rows: pa.Table, path: Path) -> Path:
        rows = self._signed(rows)
        with storage_errors(self.path):
            write_file(path, lambda file: write_parquet(rows, file))
        return path

    def _place(self, temporary: Path) -> Path:
        # Its number comes after those of all parts that it may supersede. The checksum is in the name, so that two
        # processes with one number have two names, and no part is ever without its checksum.
        number = max((_number(part.name) for part in self.parts()), default=-1) + 1
        with storage_errors(self.path):
            final = self.path / f"part-{number:05d}-{checksum(temporary)}.parquet"
            temporary.rename(final)
            fsync_dir(self.path)
        return final

    def rewrite(self, rows: pa.Table, lineage: Lineage, report: Report) -> None:
        """Make the whole partition `rows`, at once."""
        self.rebuild(lineage, lambda path: self._fill(path, rows, report))

    def derive(
        self,
        lineage: Lineage,
        compute: Callable[[], tuple[pa.Table, Report]],
        *,
        replace: bool = False,
        seen: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Make the partition a pure function of what `lineage` names, unless it is that already.

        Raises:
            SpecConflict, InputError: as `check`, unless `replace`.
        """
        return self.remake(lineage, lambda path: self._fill(path, *compute()), replace=replace, seen=seen)

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
        building = self._at(path)
        ended: list[Report] = []

        def given() -> Iterator[pa.Table]:
            ended.append((yield from pieces))

        def written(rows: pa.Table) -> Path:
            return building._write(rows.combine_chunks(), temporary_name(path / "part.parquet"))

        conformed = prefetch_map(given(), self.table.conform, usable_cores())
        for temporary in prefetch_map(
            rebatch(self.table.empty(), conformed, PART_ROWS, PART_BYTES), written, usable_cores()
        ):
            building._place(temporary)
        return ended[0]

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows; one row a key, even if two processes did the same work.

        Raises:
            InputError: a part is damaged, or was written by another version of the contract.
        """
        parts = self.checked_parts()
        wanted = None if columns is None else list(dict.fromkeys([*columns, *self.table.key]))
        tables = [self.table.read(part, wanted) for part in parts]
        rows = pa.concat_tables(tables) if tables else self.table.empty().select(wanted or self.table.schema.names)
        rows = keep_last(rows, self.table.key) if len(parts) > 1 else rows
        return rows if columns is None else rows.select(list(columns))

    def refuse_lost(self, lost: int, asked: int) -> None:
        """Refuse to finish while rows that were asked for are missing.

        Raises:
            PrefdataError: some are.
        """
        if lost:
            raise PrefdataError(
                f"{self} lacks {lost} of the {asked} rows that were asked for, and stays unfinished. "
                f"Run the same `{MADE_BY[self.table.name]}` command again for them."
            )

    def problems(self) -> Iterator[str]:
        """Everything that is not as prefdata wrote it, a line each; all parts are read."""
        yield from self._json_problems()
        parts = self.parts()
        yield from self._wrong_names(self._success_if_whole(), parts)
        for part in parts:
            try:
                self._rows(part)
            except InputError as error:
                yield str(error)

    def _wrong_names(self, success: Success | None, parts: list[Path]) -> list[str]:
        """Return what is wrong with the parts' names, compared with those that `_SUCCESS` lists."""
        if success is None or success.files is None:
            return []
        there = {part.name for part in parts}
        todo = f"Run the same `{MADE_BY[self.table.name]}` command again"
        return [
            f"{self.path / name} is missing, and {self} was finished with it. {todo}."
            for name in success.files
            if name not in there
        ] + [
            f"{self.path / name} was added to {self} after that was finished. {todo}, or remove it."
            for name in sorted(there - success.files.keys())
        ]

    def _rows(self, part: Path, *, sums: bool = True) -> int:
        """Return the rows of a part that is sound, and that this version can read; without `sums`, or can upgrade."""
        rows, version = self._inspect(part, sums=sums)
        known = {*map(str, (self.table.version, *self.table.reads)), None if sums else _UPGRADED.get(self.table.name)}
        if version not in known:
            raise InputError(
                f"{part} has version {version or 'none'} of the {self.table.name} contract, and this prefdata "
                f"reads version {self.table.version}. Read it with the prefdata that wrote it, or make it again."
            )
        return rows

    def _inspect(self, part: Path, *, sums: bool = True) -> tuple[int, str]:
        """Return the rows of a part that is sound, and the version of its contract."""
        match = _PART.fullmatch(part.name)
        if match is None:
            raise InputError(
                f"{part} is not the name of a part of prefdata's, which ends with a number and a checksum. "
                f"Remove it, or make {self} again with --replace."
            )
        try:
            if sums and match["checksum"] not in (None, checksum(part)):  # first: nothing parses what is damaged
                raise self._damaged(part, "its content is not what the checksum in its name was made from")
            with part.open("rb") as file:
                return _footer(part, stamp(file))
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None:  # the disk's or the system's fault, and not the file's
                raise InputError(f"cannot read {part}: {error}.") from None
            raise self._damaged(part, str(error).splitlines()[0].rstrip(".")) from None

    def _damaged(self, part: Path, why: str) -> InputError:
        same = f"the same `{MADE_BY[self.table.name]}` command again"
        streamed = self.table.name in ("candidates", "comparisons", "scores")
        todo = f"Remove it and run {same} for what is missing." if streamed else f"Run {same}, with --replace."
        return InputError(f"{part} is damaged: {why}. {todo}")

    def _record(self) -> dict[str, FileRecord]:
        return {
            part.name: FileRecord(xxh3=checksum(part), bytes=part.stat().st_size, rows=self._rows(part))
            for part in self.parts()
        }

    def changed(self) -> list[str]:
        """None: nobody edits a part, so that one whose content does not match its name is damaged, and replaced."""
        return []

    def _is_own(self, name: str) -> bool:
        return super()._is_own(name) or _PART.fullmatch(name) is not None

    def _is_like(self, step: str, other: str) -> bool:
        return True  # several steps make the same table, and the place says which table it is

    def _signed(self, rows: pa.Table) -> pa.Table:
        lineage = self.lineage()
        assert lineage is not None, f"{self} was written before it was begun"
        rows = trimmed(self.table.conform(rows))
        return rows.replace_schema_metadata({**rows.schema.metadata, "prefdata": lineage.model_dump_json()})


@cache
def _footer(part: Path, stamp: tuple[int, ...]) -> tuple[int, str]:
    """Return a part's rows and the version of its contract; read once while its `disk.stamp` is the same."""
    footer = pq.read_metadata(part)
    return int(footer.num_rows), (footer.metadata or {}).get(b"version", b"").decode()


def _number(name: str) -> int:
    """Return the number of a part."""
    match = re.match(r"part-(\d+)", name)
    return int(match[1]) if match else -1
