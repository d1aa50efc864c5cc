"""prefdata status: what a run holds and what is unfinished."""

from __future__ import annotations

from . import output
from .options import RunArgument, TableFormat

EXAMPLE = "Example: prefdata status runs/demo"


def status(
    run: RunArgument,
    format: TableFormat = None,
) -> None:
    """List the tables, models and exports of a run, and how to finish what is unfinished."""
    import pyarrow as pa

    from prefdata.explore.status import status as explore
    from prefdata.storage.run import Run

    output.table(pa.Table.from_pylist(explore(Run(run))), format)
