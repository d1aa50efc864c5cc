"""Rows in memory, ingested: the prompts that they hold as a table, and the report."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from prefdata.formats.files import RawRow, json_row
from prefdata.formats.reading import Reader, ReadOptions
from prefdata.prompts.ingest import Ingestion
from prefdata.specs import IngestSpec
from prefdata.storage.report import Report
from prefdata.storage.run import Run
from prefdata.storage.schemas import trimmed


def prompts_of(rows: Iterable[RawRow], **settings: Any) -> tuple[pa.Table, Report]:
    """The prompts of raw rows, with the settings of an IngestSpec."""
    listed = [row if row.problem or row.replaced else json_row(row.file, row.row, dict(row.values)) for row in rows]
    spec = IngestSpec(**{"test": 0.0, **settings})
    files = list(dict.fromkeys(row.file for row in listed)) or ["f.jsonl"]

    def read(name: str) -> Iterator[RawRow]:
        return (row for row in listed if row.file == name)

    with tempfile.TemporaryDirectory() as folder:
        reader = Reader(files, ReadOptions.of(spec, want=spec.kind), read=read)
        work = Ingestion(Run(Path(folder) / "run"), files, spec, reader)
        try:
            work.read()
            made = work.made()[0]
            return trimmed(pa.concat_tables(made.tables()).combine_chunks()), made.report
        finally:
            work.close()
