"""prefdata sample: N candidates per prompt."""

from __future__ import annotations

from typing import Annotated

from prefdata.specs import Group, SampleSpec

from . import output
from .options import Partial, Replace, ReportFormat, RunArgument, option, spec_options

EXAMPLE = "Example: prefdata sample runs/demo --model policy -n 16 --temperature 1.0 --max-tokens 96"


@spec_options(SampleSpec)
def sample(
    run: RunArgument,
    spec: SampleSpec,
    replace: Replace = False,
    partial: Partial = False,
    format: ReportFormat = "text",
    dry_run: Annotated[
        bool,
        option(
            "--dry-run",
            metavar=None,
            help="Show the first prompt as rendered, with its token ids, and sample nothing.",
            group=Group.OUTPUT,
        ),
    ] = False,
) -> None:
    """Sample N candidates for every prompt; run it again to continue, or with a larger -n to add more."""
    from prefdata.candidates.sample import dry_run as show_first
    from prefdata.candidates.sample import expand_sweep, sample_many
    from prefdata.storage.run import Run

    if dry_run:
        output.facts(show_first(Run(run), spec))
        return
    specs = expand_sweep(spec)
    outcomes = sample_many(Run(run), specs, replace=replace, partial=partial, progress=True)
    output.outcome(outcomes, format)
