"""prefdata status: what is there and what is unfinished."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from . import show

EXAMPLE = "Example: prefdata status runs/demo"


def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")],
    format: Annotated[
        Literal["table", "csv", "json", "jsonl", "markdown"] | None,
        typer.Option("--format", "-f", help="table on a terminal and csv in a pipe unless given."),
    ] = None,
) -> None:
    """List what is in the run, and what to do about what is unfinished."""
    import pyarrow as pa

    from prefdata.explore.status import status as explore
    from prefdata.store import Run

    show.table(pa.Table.from_pylist(explore(Run(run))), format)
