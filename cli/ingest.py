"""prefdata ingest: files into the run."""

from __future__ import annotations

from typing import Annotated

import typer

from prefdata.specs import Group, IngestSpec

from . import output
from .options import NewRun, Replace, ReportFormat, option, spec_options

EXAMPLE = "Example: prefdata ingest runs/demo preferences.jsonl --as pairs --test 0.1"

_FILES = (
    "JSONL, JSON, CSV, TSV, Parquet, Arrow or text (also .gz, .zst), a folder, a pattern, - for standard input, or a "
    "hub dataset (org/name@revision:config:split)."
)


@spec_options(IngestSpec)
def ingest(
    run: NewRun,
    files: Annotated[list[str], typer.Argument(metavar="FILE…", help=_FILES)],
    spec: IngestSpec,
    replace: Replace = False,
    dry_run: Annotated[
        bool,
        option(
            "--dry-run",
            metavar=None,
            group=Group.OUTPUT,
            help="Show the first rows as they are understood, and the layout; store nothing.",
        ),
    ] = False,
    format: ReportFormat = "text",
) -> None:
    """Read files in any known layout: prompts, and with --as responses, preferences, labels or verdicts."""
    from prefdata.prompts.ingest import ingest as run_ingest
    from prefdata.storage.run import Run

    if dry_run:
        from prefdata.formats.preview import preview
        from prefdata.formats.reading import Reader, ReadOptions

        output.line(preview([Reader([file], ReadOptions.of(spec, want=spec.kind)) for file in files]))
        return
    output.outcome(run_ingest(Run(run), files, spec, replace=replace), format)
