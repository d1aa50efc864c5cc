"""status: what is in a run, what is unfinished, and what was made from inputs that have changed since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefdata.errors import InputError, NotReady
from prefdata.store import MADE_BY, Folder, Partition, Run
from prefdata.tables import TABLES

_SIDES = {"models": "train", "exports": "export"}


def status(run: Run) -> list[dict[str, Any]]:
    """One row for each partition, model and export: table, name, state, rows, parts, made_by, finished, next.

    `next` says what to do where there is something to do. The state of a partition with a part that cannot be read is
    damaged, and its rows are not counted.

    Raises:
        NotReady: there is no run at that path.
    """
    existing(run)
    rows = [_partition(partition) for table in TABLES for partition in run.partitions(table)]
    if not rows:
        raise NotReady(
            f"{run} is no run: none of a run's tables ({', '.join(TABLES)}) is in it. "
            "`prefdata ingest RUN FILE…` starts a run."
        )
    for side in _SIDES:
        rows += [_folder(side, folder) for folder in sorted((run.path / side).glob("*")) if folder.is_dir()]
    return rows


def existing(run: Run) -> Run:
    """`run`, if there is a folder at its path.

    Raises:
        NotReady: there is nothing there.
    """
    if run.path.is_dir():
        return run
    raise NotReady(f"there is no run {run}: `prefdata ingest {run} FILE…` starts one.")


def _partition(partition: Partition) -> dict[str, Any]:
    table, parts = partition.table.name, partition.parts()
    rows = 0
    for part in parts:
        try:
            rows += pq.read_metadata(part).num_rows
        except FileNotFoundError:
            continue  # who is at work there has joined it with others
        except (pa.ArrowInvalid, OSError) as error:
            damage = _damage(partition, part, error)
            row = _row(table, partition.name, partition, damage, rows=None, parts=len(parts))
            return {**row, "state": "damaged"}
    return _row(table, partition.name, partition, _todo(partition, MADE_BY[table]), rows=rows, parts=len(parts))


def _damage(partition: Partition, part: Path, error: Exception) -> str:
    """What is wrong with a part that cannot be read, and what to do: as the steps that read it say it, if they do."""
    try:
        partition.readable()
    except InputError as said:
        return str(said)
    except OSError:
        pass
    return f"{part} is damaged: {' '.join(str(error).split())}"


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
