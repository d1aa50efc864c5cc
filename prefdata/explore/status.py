"""status: what a run holds, what is unfinished, and what is out of date because its inputs changed."""

from __future__ import annotations

from typing import Any

from prefdata.errors import InputError, NotReady
from prefdata.storage.run import MADE_BY, Artifact, Partition, Run, folders
from prefdata.storage.schemas import TABLES

_SIDES = {"models": "prefdata train", "exports": "prefdata export"}


def status(run: Run) -> list[dict[str, Any]]:
    """One row for each partition, model and export: table, name, state, rows, parts, made_by, finished, next.

    `next` is the next command where there is one. The state of a partition with a part that cannot be read is
    damaged, and its rows are not counted.

    Raises:
        NotReady: there is no run at that path.
    """
    existing(run)
    rows = [_row(table, one.name, one, MADE_BY[table]) for table in TABLES for one in run.partitions(table)]
    if not rows:
        raise NotReady(
            f"{run} is not a run: none of a run's tables ({', '.join(TABLES)}) is in it. "
            "`prefdata ingest RUN FILE…` starts a run."
        )
    for side, command in _SIDES.items():
        rows += [_row(side, name, Artifact(run.path / side / name), command) for name in folders(run.path / side)]
    return rows


def existing(run: Run) -> Run:
    """`run`, if there is a folder at its path.

    Raises:
        NotReady: there is nothing there.
    """
    if run.path.is_dir():
        return run
    raise NotReady(f"there is no run {run}: `prefdata ingest {run} FILE…` starts one.")


def _row(table: str, name: str, folder: Artifact, command: str) -> dict[str, Any]:
    rows = parts = lineage = success = None
    state: str = folder.state
    todo = f"run the same `{command}` command again to finish it" if state == "unfinished" else ""
    try:
        if isinstance(folder, Partition):
            parts = len(folder.parts())
            rows = sum(rows for _, rows in folder.parts_with_rows(sums=False))
        lineage, success = folder.lineage(), folder.success()
        if missing := folder.missing():
            raise InputError(f"{folder.path / missing[0]} is missing. Run the same `{command}` command with --replace.")
    except InputError as error:
        state, todo = "damaged", str(error)
    return {
        "table": table,
        "name": name,
        "state": state,
        "rows": rows,
        "parts": parts,
        "made_by": lineage.step if lineage else None,
        "finished": success.finished if success else None,
        "next": todo,
    }
