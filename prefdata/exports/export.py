"""export: pairs, selections, labels, groups, demonstrations or prompts in, shards and a dataset card out.

The folder is laid out as the hub lays out datasets, `data/train-00000-of-00004.parquet` and a README.md, so that
`datasets.load_dataset(FOLDER)` reads it. A row belongs to its prompt's split. The folder is built beside and put into
place when it is whole; other files that a person keeps there (`.git`, LICENSE) stay.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from prefdata.errors import InputError, UsageError
from prefdata.exports.beside import write_beside
from prefdata.exports.card import Card
from prefdata.exports.hub import HubDataset
from prefdata.exports.registry import READS, Dialect, named
from prefdata.exports.rows import JoinedRows
from prefdata.exports.shards import ShardWriter, Split, rows_per_shard
from prefdata.exports.subsets import check_folder, write_card, written_files
from prefdata.exports.tables import DialectTable
from prefdata.parallel import prefetch_map, usable_cores
from prefdata.progress import Watch, watched
from prefdata.specs import ExportSpec
from prefdata.specs.export import ExportKind, FileFormat
from prefdata.storage.report import Report, nonzero
from prefdata.storage.run import MADE_BY, Artifact, Lineage, Outcome, Partition, Run
from prefdata.storage.schemas import TABLES
from prefdata.storage.spill import spill_dir

_DECIDED = ("selections", "pairs", "unpaired", "groups", "demonstrations", "scores")


def export(run: Run, spec: ExportSpec, to: Path, *, replace: bool = False, progress: Watch = False) -> Outcome:
    """Write one of the tables that trainers read to the folder `to`, in a dialect, and send it to the hub if asked.

    Raises:
        NotReady: what the dialect reads is not there, or unfinished.
        UsageError: the dialect has no such rows or container; or a table was named that it does not read, two were, or
            one of several must be named; or the hub's name is none, or nobody is logged in.
        SpecConflict: the folder holds another export.
        PrefdataError: the hub cannot be reached; what was written stays, and the same again sends it.
        InputError: the folder is not ours to replace, or a file of ours in it was changed since; or there is no row to
            write. `replace` does not change that.
    """
    dialect, kind = _dialect(spec)
    form = _container(spec, dialect)
    source = _source(run, spec, kind)
    hub = HubDataset(spec.push_to_hub, public=spec.public) if spec.push_to_hub else None
    place = to / spec.subset if spec.subset else to
    if spec.subset:
        check_folder(to)
    parents = {str(partition): partition.content for partition in (*source, *run.all("prompts"))}
    named_table = {} if kind == "prompts" else {source[0].table.partition: source[0].name}
    lineage = Lineage.of(spec, parents, resolved=named_table)
    with watched(progress, "export") as watch:

        def fill(path: Path) -> Report:
            watch.phase("writing shards")
            return Filling(run, spec, dialect, kind, form, source, lineage).fill(path, place)

        outcome = Artifact(place).remake(lineage, fill, replace=replace)
        if spec.subset:
            write_card(to)
        if hub is None:
            return outcome
        watch.phase(f"sending to {hub.name}")
        figures = {**outcome.report.figures, "hub": hub.push(to, written_files(to))}
        return dataclasses.replace(outcome, report=outcome.report.model_copy(update={"figures": figures}))


def _dialect(spec: ExportSpec) -> tuple[Dialect, ExportKind]:
    """Return the dialect, and the kind of rows: as asked for, else as the name says, else the default.

    Raises:
        UsageError: the dialect has no rows of that kind.
    """
    dialect, meant = named(spec.dialect)
    kind = spec.kind or meant or next(iter(dialect.layouts))
    if kind not in dialect.layouts or (meant and kind != meant):
        known = [meant] if meant else list(dialect.layouts)
        raise UsageError(f"the dialect {spec.dialect} has no {kind}: choose --as {' or '.join(known)}.")
    return dialect, kind


def _container(spec: ExportSpec, dialect: Dialect) -> FileFormat:
    """Return the container that is written.

    Raises:
        UsageError: the dialect's loader does not read it.
    """
    form = spec.file_format or dialect.files[0]
    if form not in dialect.files:
        raise UsageError(f"the loader of {dialect.name} reads no {form}: choose --files {' or '.join(dialect.files)}.")
    return form


def _source(run: Run, spec: ExportSpec, kind: ExportKind) -> Sequence[Partition]:
    """Return the partition to export: the one named, else the only one of the table that the dialect usually reads.

    Raises:
        NotReady: it is not there, or unfinished.
        UsageError: a table was named that this dialect does not read, two were, or one of several must be named.
    """
    flags = ("--pairing", "--selector", "--input", "--sampler", "--scorer")
    names = {flag: getattr(spec, flag.removeprefix("--")) for flag in flags}
    given = [flag for flag, name in names.items() if name is not None]
    table_of = {TABLES[table].flag: table for table in READS[kind] if kind != "prompts"}
    if wrong := [flag for flag in given if flag not in table_of]:
        named_with = f", named with {' or '.join(table_of)}" if table_of else ""
        raise UsageError(
            f"the dialect {spec.dialect} reads {' or '.join(READS[kind])}{named_with}: leave out {', '.join(wrong)}."
        )
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} name two inputs, and one of them is exported: leave the other out.")
    if kind == "prompts":
        return run.all("prompts")
    existing = [flag for flag, table in table_of.items() if run.partitions(table)]
    flag = (given or existing or list(table_of))[0]
    return [run.only(table_of[flag], names[flag])]


class Filling:
    """One export while it is written."""

    def __init__(
        self, run: Run, spec: ExportSpec, dialect: Dialect, kind: ExportKind, form: FileFormat,
        source: Sequence[Partition], lineage: Lineage,
    ) -> None:  # fmt: skip
        """Return the rows of `source` in a dialect."""
        self._run, self._spec, self._dialect, self._kind, self._form = run, spec, dialect, kind, form
        self._source, self._lineage = source, lineage
        self._rows = JoinedRows(run, source)
        self._dropped: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()

    def fill(self, path: Path, to: Path) -> Report:
        """Write shards, card and what belongs beside them into the folder `path`, which will be `to`.

        Raises:
            InputError: there is no row to write.
        """
        counts = self._rows.counts()
        if not counts:
            made_by = MADE_BY[self._rows.table]
            raise InputError(f"{self._name} has no row to export. The same `{made_by}` again says why.")
        columns = self._dialect.columns(self._kind, self._rows.table, strict=self._spec.strict_columns)
        there = self._rows.present([one.is_ for one in columns.values() if one.optional])
        columns = {name: one for name, one in columns.items() if not one.optional or one.is_ in there}
        table = DialectTable(columns, self._dialect.notation(self._kind), self._rows.used)
        with spill_dir(self._run) as spill:
            schema, splits = self._write(table, counts, path, spill)
        report = self._report(splits)
        layout = self._dialect.layouts[self._kind]
        card = Card(to.name, layout.about, layout.tags, self._dialect.folder, license=self._spec.license)
        history = _history(self._run, self._source, self._rows.samplers)
        card.write(path / "README.md", schema, splits, history, report)
        write_beside(layout.beside, path, to, list(splits), schema.names)
        return report

    @property
    def _name(self) -> str:
        return str(self._source[0]) if self._kind != "prompts" else f"prompts of {self._run}"

    def _write(
        self, table: DialectTable, counts: dict[str, int], path: Path, spill: Path
    ) -> tuple[pa.Schema, dict[str, Split]]:
        writers: dict[str, ShardWriter] = {}
        schema = None
        batches = self._rows.batches(spill, table.parts)
        for built in prefetch_map(batches, lambda one: table.rows(one[0].batch(one[1])), usable_cores()):
            self._dropped += built.dropped
            self._left_out += built.left_out
            if schema is None:
                schema = built.rows.schema.with_metadata({"prefdata": self._lineage.model_dump_json()})
            rows = built.rows.cast(schema)
            for split, total in counts.items():
                some = rows.filter((built.splits == split).to_arrow()) if len(counts) > 1 else rows
                if some.num_rows and split not in writers:
                    each = rows_per_shard(some, total, self._spec.shard_mb * 1_000_000, self._form)
                    folder = self._dialect.folder
                    writers[split] = ShardWriter(path, folder, split, self._form, schema, each)
                if some.num_rows:
                    writers[split].write(some)
        if not writers:
            why = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in self._dropped.items())
            raise InputError(f"no row of {self._name} can be written in the dialect {self._spec.dialect} ({why}).")
        assert schema is not None
        return schema, {split: writers[split].finish() for split in counts if split in writers}

    def _report(self, splits: dict[str, Split]) -> Report:
        written = sum(split.rows for split in splits.values())
        dropped = {**self._rows.left_out, **self._dropped}
        figures = {name: split.rows for name, split in splits.items()}
        return Report(
            step="export",
            unit=self._rows.table,
            rows_in=written + sum(dropped.values()),
            rows_out=written,
            dropped=nonzero(dropped),
            figures=figures | {"files": sum(split.files for split in splits.values())} | nonzero(self._left_out),
        )


def _history(run: Run, source: Sequence[Partition], samplers: Sequence[str]) -> list[tuple[str, Lineage]]:
    """Return the tables behind the rows, in the order of the flow: the source's parents, and the samplers used."""
    behind = [*run.partitions("prompts"), *(run.partition("candidates", name) for name in samplers)]
    waiting = list(source)
    while waiting:
        partition = waiting.pop()
        behind.append(partition)
        # The samplers behind the scores are known already, and only those whose answers are in the rows matter.
        if partition.table.name in _DECIDED and (lineage := partition.lineage()):
            waiting += [run.partition(*name.split("/", 1)) for name in lineage.parents]
    distinct = {str(partition): partition for partition in behind}
    order = list(TABLES)
    ordered = sorted(distinct.values(), key=lambda partition: (order.index(partition.table.name), partition.name))
    return [(str(partition), lineage) for partition in ordered if (lineage := partition.lineage())]
