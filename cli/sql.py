"""prefdata sql: questions to a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from . import show

EXAMPLE = (
    'Example: prefdata sql runs/demo "select sampler, count(*), avg(completion_tokens) from candidates group by 1"'
)


def sql(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")],
    query: Annotated[str | None, typer.Argument(help="One query; without it, the views and their columns.")] = None,
    format: Annotated[
        Literal["table", "csv", "json", "jsonl", "markdown", "parquet"] | None,
        typer.Option(
            "--format",
            "-f",
            help="table on a terminal and csv in a pipe unless given; NaN and infinity are null in json and jsonl.",
        ),
    ] = None,
) -> None:
    """Ask the run's tables with SQL (DuckDB), read-only."""
    from prefdata.explore import sql as explore
    from prefdata.store import Run

    answer = explore.query(Run(run), query) if query is not None else explore.tables(Run(run))
    show.table(answer, format)
