"""prefdata rank: scores for candidates."""

from __future__ import annotations

from prefdata.specs import RankSpec

from . import output
from .options import Partial, Replace, ReportFormat, RunArgument, spec_options

EXAMPLE = "Example: prefdata rank runs/demo --reward-model reward_model"


@spec_options(RankSpec)
def rank(
    run: RunArgument, spec: RankSpec, replace: Replace = False, partial: Partial = False, format: ReportFormat = "text"
) -> None:
    """Score the candidates or compare them; or derive scores from scores and from comparisons."""
    from prefdata.steps import rank as step
    from prefdata.storage.run import Run

    done = step(Run(run), spec, replace=replace, partial=partial, progress=True)
    output.outcome(done, format)
