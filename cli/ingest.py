"""prefdata ingest: files of prompts into the run."""

from __future__ import annotations

from typing import Annotated

import typer

from prefdata.specs import IngestSpec

from . import show
from .options import NewRun, Replace, ReportFormat, takes

EXAMPLE = "Example: prefdata ingest runs/demo prompts.jsonl --test 0.1"


@takes(IngestSpec)
def ingest(
    run: NewRun,
    files: Annotated[
        list[str], typer.Argument(metavar="FILE…", help="JSONL, JSON, CSV, Parquet, text, a folder, or a hub dataset.")
    ],
    spec: IngestSpec,
    replace: Replace = False,
    format: ReportFormat = "text",
) -> None:
    """Read prompts from files: strings or conversations, in any known layout; with answers, or verdicts on them."""
    from prefdata.steps import ingest as step
    from prefdata.store import Run

    show.outcome(step(Run(run), files, spec, replace=replace), format)
