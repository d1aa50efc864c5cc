"""status: what is in a run, what is unfinished, and what was made from inputs that have changed since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from prefdata.errors import NotReady
from prefdata.store import MADE_BY, Folder, Partition, Run
from prefdata.tables import TABLES

_SIDES = {"models": "train", "exports": "export"}


def status(run: Run) -> list[dict[str, Any]]:
    """One row for each partition, model and export: table, name, state, rows, parts, made_by, finished, next.

    `next` says what to do where there is something to do.

    Raises:
        NotReady: there is no run at that path.
    """
    if not run.path.is_dir():
        raise NotReady(f"there is no run {run}: `prefdata ingest {run} FILE…` starts one.")
    rows = [_partition(partition) for table in TABLES for partition in run.partitions(table)]
    for side in _SIDES:
        rows += [_folder(side, folder) for folder in sorted((run.path / side).glob("*")) if folder.is_dir()]
    return rows


def _partition(partition: Partition) -> dict[str, Any]:
    parts = partition.parts()
    rows = sum(pq.read_metadata(part).num_rows for part in parts)
    todo = _todo(partition, MADE_BY[partition.table.name])
    return _row(partition.table.name, partition.name, partition, todo, rows=rows, parts=len(parts))


def _folder(side: str, path: Path) -> dict[str, Any]:
    folder = Folder(path)
    return _row(side, path.name, folder, _todo(folder, f"prefdata {_SIDES[side]}"), rows=None, parts=None)


def _todo(folder: Folder, command: str) -> str:
    if folder.state == "unfinished":
        return f"run the same `{command}` command again to finish it"
    return ""


def _row(table: str, name: str, folder: Folder, todo: str, **counts: int | None) -> dict[str, Any]:
    lineage, success = folder.lineage(), folder.success()
    return {
        "table": table,
        "name": name,
        "state": folder.state,
        **counts,
        "made_by": lineage.step if lineage else None,
        "finished": success.finished if success else None,
        "next": todo,
    }
