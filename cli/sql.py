"""prefdata sql: queries of a run."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from prefdata.specs import Group

from . import output
from .options import RunArgument, Safe, option

EXAMPLE = (
    'Example: prefdata sql runs/demo "select sampler, count(*), avg(completion_tokens) from candidates group by 1"'
)


def sql(
    run: RunArgument,
    query: Annotated[
        str | None, typer.Argument(metavar="QUERY", help="One query; without it, the views and their columns.")
    ] = None,
    format: Annotated[
        Literal["table", "csv", "json", "jsonl", "markdown", "parquet"] | None,
        option(
            "--format",
            "-f",
            metavar="table|csv|json|jsonl|markdown|parquet",
            help="default: table on a terminal, csv in a pipe; NaN and infinity are null in json and jsonl.",
            group=Group.OUTPUT,
        ),
    ] = None,
    safe: Safe = False,
    memory_limit: Annotated[
        str,
        option(
            "--memory-limit",
            metavar="SIZE",
            help="Memory that the query may use: 4GB, or a percentage of the machine's. (default: 50%)",
        ),
    ] = "50%",
) -> None:
    """Query the run's tables with SQL (DuckDB), read-only."""
    from prefdata.explore import sql as explore
    from prefdata.storage.run import Run

    if query is None:
        output.table(explore.tables(Run(run)), format, safe=safe)
    else:
        output.pieces(explore.stream(Run(run), query, memory_limit=memory_limit), format, safe=safe)
