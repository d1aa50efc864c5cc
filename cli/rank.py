"""prefdata rank: scores for candidates."""

from __future__ import annotations

from prefdata.specs import RankSpec

from . import show
from .options import Partial, Replace, RunArgument, takes

EXAMPLE = "Example: prefdata rank runs/demo --reward-model reward_model"


@takes(RankSpec)
def rank(run: RunArgument, spec: RankSpec, replace: Replace = False, partial: Partial = False) -> None:
    """Score the candidates with a reward model or a Python function."""
    from prefdata.scores import rank as step
    from prefdata.store import Run

    with show.progress("rank") as progress:
        done = step(Run(run), spec, replace=replace, partial=partial, progress=progress)
    show.outcome(done)
