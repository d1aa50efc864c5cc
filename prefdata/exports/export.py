"""export: pairs, selections, labels, groups or demonstrations in, shards and a dataset card out.

The folder is laid out as the hub lays out datasets, `data/train-00000-of-00004.parquet` and a README.md, so that
`datasets.load_dataset(FOLDER)` reads it. A row belongs to its prompt's split. The folder is built beside and put into
place when it is whole; other files that a person keeps there (`.git`, LICENSE) stay.
"""

from __future__ import annotations

import io
import math
from functools import partial
from itertools import pairwise
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from prefdata.errors import InputError, UsageError
from prefdata.formats.card import Split, dataset_card
from prefdata.formats.dialects import DIALECTS, Dialect
from prefdata.progress import Watch, watched
from prefdata.specs import ExportSpec
from prefdata.storage.atomic import write_file
from prefdata.storage.queries import read_candidates, read_prompts
from prefdata.storage.report import Report, nonzero
from prefdata.storage.run import MADE_BY, Artifact, Lineage, Outcome, Partition, Run
from prefdata.storage.schemas import TABLES

COMPRESSION = "zstd"

_SAMPLED = 1000
_DECIDED = ("selections", "pairs", "unpaired", "groups", "demonstrations")


def split_into_shards(rows: pa.Table, shard_bytes: int) -> list[pa.Table]:
    """`rows` in their order, cut into the fewest parts of about equal length that should stay below `shard_bytes`.

    The size is that of Parquet files, estimated by encoding some thousand rows, evenly spaced; equal rows give equal
    parts. There is one part at least, and one row a part at least.
    """
    parts = max(1, min(rows.num_rows, math.ceil(_parquet_bytes(rows) / shard_bytes)))
    cuts = [rows.num_rows * part // parts for part in range(parts + 1)]
    return [rows.slice(start, end - start) for start, end in pairwise(cuts)]


def _parquet_bytes(rows: pa.Table) -> float:
    if not rows.num_rows:
        return 0
    sample = rows.take(list(range(0, rows.num_rows, max(1, rows.num_rows // _SAMPLED))))
    encoded = io.BytesIO()
    pq.write_table(sample, encoded, compression=COMPRESSION)
    return float(encoded.tell() / sample.num_rows * rows.num_rows)


def shard_name(split: str, part: int, parts: int) -> str:
    """The file of a shard, counted from 0: `data/train-00000-of-00004.parquet`."""
    return f"data/{split}-{part:05d}-of-{parts:05d}.parquet"


def export(run: Run, spec: ExportSpec, to: Path, *, replace: bool = False, progress: Watch = False) -> Outcome:
    """Write one of the tables that trainers read to the folder `to`, in a dialect.

    Raises:
        NotReady: what the dialect reads is not there, or unfinished.
        UsageError: a table was named that the dialect does not read, two were, or one of several must be named.
        SpecConflict: the folder holds another export.
        InputError: the folder is not ours to replace, or a file of ours in it was changed since; or there is no row to
            write. `replace` does not change that.
    """
    dialect = DIALECTS[spec.dialect]
    source = _source(run, spec, dialect)
    prompts = run.all("prompts")
    parents = {str(partition): partition.content for partition in (source, *prompts)}
    lineage = Lineage.of(spec, parents, resolved={source.table.partition: source.name})
    folder = Artifact(to)
    with watched(progress, "export") as told:

        def fill(path: Path) -> Report:
            told.phase("writing shards")
            return _fill(run, spec, source, lineage, path, to.name)

        return folder.remake(lineage, fill, replace=replace)


def _source(run: Run, spec: ExportSpec, dialect: Dialect) -> Partition:
    """The partition to export: the one named, else the only one of the table that the dialect usually reads.

    Raises:
        NotReady: it is not there, or unfinished.
        UsageError: a table was named that this dialect does not read, two were, or one of several must be named.
    """
    table_of = {TABLES[table].flag: table for table in dialect.reads}
    names = {flag: getattr(spec, flag.removeprefix("--")) for flag in ("--pairing", "--selector", "--input")}
    given = [flag for flag, name in names.items() if name is not None]
    if wrong := [flag for flag in given if flag not in table_of]:
        raise UsageError(
            f"the dialect {dialect.name} reads {' or '.join(dialect.reads)}, named with {' or '.join(table_of)}: "
            f"leave out {', '.join(wrong)}."
        )
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} name two inputs, and one of them is exported: leave the other out.")
    existing = [flag for flag, table in table_of.items() if run.partitions(table)]
    flag = (given or existing or list(table_of))[0]
    return run.only(table_of[flag], names[flag])


def _fill(run: Run, spec: ExportSpec, source: Partition, lineage: Lineage, path: Path, title: str) -> Report:
    dialect = DIALECTS[spec.dialect]
    joined, dropped = _joined(run, source)
    if joined.height == 0:
        raise InputError(f"{source} has no row to export. The same `{MADE_BY[source.table.name]}` again says why.")
    rows = dialect.rows(joined, strict=spec.strict_columns)
    signed = rows.replace_schema_metadata({"prefdata": lineage.model_dump_json()})
    splits = {}
    for split in ("train", "test"):
        of_split = signed.filter(pa.array((joined["split"] == split).to_list()))
        if of_split.num_rows:
            splits[split] = _write(of_split, split, spec.shard_mb * 1_000_000, path)
    report = Report(
        step="export",
        unit=source.table.name,
        rows_in=rows.num_rows + sum(dropped.values()),
        rows_out=rows.num_rows,
        dropped=nonzero(dropped),
        figures={name: split.rows for name, split in splits.items()}
        | {"files": sum(split.files for split in splits.values())},
    )
    history = _history(run, source, joined)
    text = dataset_card(title, dialect, rows.schema, splits, history, report)
    write_file(path / "README.md", lambda file: file.write(text.encode()))
    return report


def _write(rows: pa.Table, split: str, shard_bytes: int, path: Path) -> Split:
    parts = split_into_shards(rows, shard_bytes)
    files = [path / shard_name(split, number, len(parts)) for number in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        file.parent.mkdir(exist_ok=True)
        write_file(file, partial(pq.write_table, part, compression=COMPRESSION))
    return Split(rows.num_rows, rows.nbytes, sum(file.stat().st_size for file in files), len(files))


def _joined(run: Run, source: Partition) -> tuple[pl.DataFrame, dict[str, int]]:
    """The rows to export by key, each with its prompt, its texts and their samplers; how many were left out, and why.

    Raises:
        InputError: a row names a prompt or a candidate that the run does not hold.
    """
    rows, dropped = _exported(pl.DataFrame(source.read()), source.table.name)
    texts = read_candidates(run, ["candidate_id", "text"]).select("candidate_id", "text", "sampler")
    rows = _WITH_TEXTS.get(source.table.name, _with_answer)(rows, texts)
    prompts = read_prompts(run, partial=True).select("prompt_id", "messages", "tools", "split")
    # A prompt's pairs stay together; its labels do not, because KTO reckons with each one's neighbour as another's.
    order = ["prompt_id", *source.table.key] if source.table.name == "pairs" else source.table.key
    rows = rows.join(prompts, on="prompt_id", how="left").sort(order)
    lost = rows.filter(pl.col("messages").is_null() | pl.col("samplers").list.contains(pl.lit(None, pl.String)))
    if lost.height:
        raise InputError(
            f"{lost.height} of {rows.height} rows of {source} name a prompt or a candidate that {run} does not hold "
            f"(first: {lost[source.table.key[0]][0]}). Run `{MADE_BY[source.table.name]}` again."
        )
    return rows, dropped


def _exported(rows: pl.DataFrame, table: str) -> tuple[pl.DataFrame, dict[str, int]]:
    """What of a table is exported: no tie as a preference, and of a selection the best of each prompt."""
    if table == "pairs":
        kept, reason = rows.filter(pl.col("verdict") != "tie"), "tie"
    elif table == "selections":
        first = rows.sort("prompt_id", pl.col("score").neg(), "rank")
        kept, reason = first.unique("prompt_id", keep="first", maintain_order=True), "not_the_best"
    else:
        return rows, {}
    return kept, {reason: rows.height - kept.height}


def _with_answer(rows: pl.DataFrame, texts: pl.DataFrame) -> pl.DataFrame:
    joined = rows.join(texts.rename({"text": "answer"}), on="candidate_id", how="left")
    return joined.with_columns(samplers=pl.concat_list("sampler"))


def _with_both(rows: pl.DataFrame, texts: pl.DataFrame) -> pl.DataFrame:
    for side in ("chosen", "rejected"):
        answer = texts.rename({"candidate_id": f"{side}_id", "text": side, "sampler": f"{side}_sampler"})
        rows = rows.join(answer, on=f"{side}_id", how="left")
    return rows.with_columns(samplers=pl.concat_list("chosen_sampler", "rejected_sampler"))


def _with_answers(rows: pl.DataFrame, texts: pl.DataFrame) -> pl.DataFrame:
    each = rows.select("prompt_id", candidate_id="candidate_ids").explode("candidate_id")
    each = each.join(texts, on="candidate_id", how="left", maintain_order="left")
    said = each.group_by("prompt_id", maintain_order=True).agg(answers="text", samplers="sampler")
    return rows.join(said, on="prompt_id", how="left")


_WITH_TEXTS = {"pairs": _with_both, "groups": _with_answers}


def _history(run: Run, source: Partition, joined: pl.DataFrame) -> list[tuple[str, Lineage]]:
    """The tables behind the rows, in the order of the flow: what the source names as parents, and the samplers used."""
    behind = [*run.partitions("prompts"), *(run.partition("candidates", name) for name in sorted(_samplers(joined)))]
    waiting = [source]
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


def _samplers(joined: pl.DataFrame) -> set[str]:
    return set(joined["samplers"].explode().to_list())
