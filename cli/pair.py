"""prefdata pair: which response is preferred to which."""

from __future__ import annotations

from prefdata.specs import PairSpec

from . import output
from .options import Partial, Replace, ReportFormat, RunArgument, spec_options

EXAMPLE = "Example: prefdata pair runs/demo --strategy best-worst --min-margin 0.5"


@spec_options(PairSpec)
def pair(
    run: RunArgument, spec: PairSpec, replace: Replace = False, partial: Partial = False, format: ReportFormat = "text"
) -> None:
    """Pair chosen and rejected responses; ties, equal texts and truncated responses are counted and never preferred."""
    from prefdata.pairs.pair import pair as step
    from prefdata.storage.run import Run

    done = step(Run(run), spec, replace=replace, partial=partial, progress=True)
    output.outcome(done, format)
