"""prefdata select: which candidates to keep."""

from __future__ import annotations

from prefdata.specs import SelectSpec

from . import output
from .options import Partial, Replace, ReportFormat, RunArgument, spec_options

EXAMPLE = "Example: prefdata select runs/demo --method rso --k 8 --beta 0.5"


@spec_options(SelectSpec)
def select(
    run: RunArgument,
    spec: SelectSpec,
    replace: Replace = False,
    partial: Partial = False,
    format: ReportFormat = "text",
) -> None:
    """Keep candidates of each prompt by their scores: best-of-N, top-k, threshold, Boltzmann or RSO."""
    from prefdata.selections.select import select as step
    from prefdata.storage.run import Run

    done = step(Run(run), spec, replace=replace, partial=partial, progress=True)
    output.outcome(done, format)
