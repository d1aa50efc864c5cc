"""prefdata export: shards that trainers read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefdata.specs import ExportSpec

from . import show
from .options import Replace, RunArgument, takes

EXAMPLE = "Example: prefdata export runs/demo --to runs/demo/exports/trl --dialect trl"


@takes(ExportSpec)
def export(
    run: RunArgument,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder to write, ready for the hub.")],
    spec: ExportSpec,
    replace: Replace = False,
) -> None:
    """Write pairs or best answers as sharded Parquet with a dataset card."""
    from prefdata.shards import export as step
    from prefdata.store import Run

    show.outcome(step(Run(run), spec, to, replace=replace))
