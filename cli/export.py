"""prefdata export: shards that trainers read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from prefdata.specs import ExportSpec, Group

from . import output
from .options import Replace, ReportFormat, RunArgument, option, spec_options

EXAMPLE = "Example: prefdata export runs/demo --to runs/demo/exports/trl --dialect trl"


@spec_options(ExportSpec)
def export(
    run: RunArgument,
    to: Annotated[
        Path, option("--to", metavar="DIR", help="The folder to write, ready for the hub.", group=Group.OUTPUT)
    ],
    spec: ExportSpec,
    replace: Replace = False,
    format: ReportFormat = "text",
) -> None:
    """Write pairs, labels, demonstrations, prompts or groups as a trainer reads them, with a dataset card."""
    from prefdata.exports.export import export as step
    from prefdata.storage.run import Run

    output.outcome(step(Run(run), spec, to, replace=replace, progress=True), format)
