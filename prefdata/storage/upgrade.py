"""Scores that the version before wrote, brought to today's contract by one join with the candidates.

Version 1 lacked what a decision needs to know of a candidate. A finished table is built beside the old one, and then
takes its place. Of an unfinished one the old parts are removed when the new ones are there: until then rows are there
twice, as where two processes did the same work. So no score is lost, whenever a process is killed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path

import polars as pl
import pyarrow as pa

from prefdata.errors import InputError, SpecConflict, StorageError
from prefdata.storage.leases import WorkLeases
from prefdata.storage.partition import MADE_BY, Partition
from prefdata.storage.queries import candidate_files, duckdb_views, parquet_sql
from prefdata.storage.report import Report
from prefdata.storage.run import Run
from prefdata.storage.spill import spill_dir

log = logging.getLogger("prefdata")

_ROWS = 100_000
"""Rows that are fetched at a time."""


def upgrade(scores: Partition, old: Sequence[Path], *, drop_orphans: bool = False) -> None:
    """Replace parts of version 1 by parts of version 2.

    Args:
        scores: a partition of scores.
        old: its parts of version 1.
        drop_orphans: leave out scores of candidates that the run does not hold.

    Raises:
        InputError: there are such scores, and they were not to be left out.
        SpecConflict: another process is at work on the partition.
        StorageError: the run cannot be written.
    """
    if busy := WorkLeases(scores.path).busy():
        raise SpecConflict(
            f"{scores} was written by an earlier prefdata, and {busy} is at work on it: stop that first."
        )
    run, counts = Run(scores.path.parents[1]), Counter[str]()
    success, lineage, seen = scores.success(), scores.lineage(), candidate_files(run)
    try:
        with spill_dir(run) as spill, closing(_joined(run, scores, old, spill, counts, drop_orphans)) as rows:
            if success is None or lineage is None:
                for some in rows:
                    scores.append(some)
                for part in old:
                    part.unlink(missing_ok=True)
            else:
                scores.derive_in_pieces(lineage, lambda: _and_report(rows, success.report), replace=True, seen=seen)
    except StorageError as error:
        if not any(part.exists() for part in old):
            return  # another process has done it
        raise StorageError(
            f"{scores} was written by an earlier prefdata and is brought up to date where it is: {error} "
            "For a run that has to stay as it is, give a copy of its folder."
        ) from None
    lost = f"; {counts['lost']:,} of candidates that are gone were left out" if counts["lost"] else ""
    log.warning(
        f"prefdata: {scores} was written by an earlier version: {counts['kept']:,} scores brought up to date{lost}."
    )


def _and_report(rows: Iterable[pa.Table], report: Report) -> Generator[pa.Table, None, Report]:
    yield from rows
    return report


def _joined(
    run: Run, scores: Partition, old: Sequence[Path], spill: Path, counts: Counter[str], drop_orphans: bool
) -> Generator[pa.Table, None, None]:
    """Yield the old parts' rows by prompt, with the columns that they lacked."""
    copied = ", ".join(f"c.{name}" for name in scores.table.copied)
    files = parquet_sql(old, "hive_partitioning = false, file_row_number = true")
    query = f"""
        select s.*, {copied} from {files} s
        left join candidates c using (candidate_id)
        order by s.prompt_id, c.sample_index, s.candidate_id, s.file_row_number desc, c.sampler"""
    before = None
    with duckdb_views({"candidates": run.partitions("candidates")}, spill, files=old) as session:
        for batch in session.batches(lambda connection: connection.sql(query).to_arrow_reader(_ROWS)):
            rows = pl.DataFrame(batch).drop("file_row_number")
            first = rows["candidate_id"].ne_missing(rows["candidate_id"].shift(fill_value=before))
            before = rows["candidate_id"][-1]
            rows = rows.filter(first)  # of what was written twice, or is in two samplers
            kept = rows.filter(pl.col("sampler").is_not_null())
            if kept.height < rows.height and not drop_orphans:
                lost = rows.filter(pl.col("sampler").is_null())["candidate_id"][0]
                raise InputError(
                    f"{scores} has scores of candidates that are not in {run} (first: {lost}). Run "
                    f"`{MADE_BY['scores']}` again: it keeps what fits, and makes the rest."
                )
            counts.update(kept=kept.height, lost=rows.height - kept.height)
            yield kept.to_arrow()
