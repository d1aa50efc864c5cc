"""rank for the command line and for Python: it calls the step that its spec describes."""

from __future__ import annotations

from prefdata.progress import Watch, watched
from prefdata.specs import RankSpec
from prefdata.specs.rank import CompareSpec
from prefdata.storage.run import Outcome, Run


def rank(run: Run, spec: RankSpec, *, replace: bool = False, partial: bool = False, progress: Watch = False) -> Outcome:
    """Score the candidates, or compare them by a pairwise judge; or derive scores from scores or comparisons.

    Raises:
        NotReady: there are no finished candidates (or `partial`).
        SpecConflict: a scorer or judge of this name exists with other settings.
        ModelError, InputError: the scorer cannot be used.
    """
    from prefdata.comparisons.compare import compare
    from prefdata.scorers.open import is_pairwise
    from prefdata.scores.rank import rank as score

    with watched(progress, "rank") as watcher:
        if isinstance(spec, CompareSpec) and is_pairwise(spec):
            return compare(run, spec, replace=replace, partial=partial, progress=watcher)
        return score(run, spec, replace=replace, partial=partial, progress=watcher)
