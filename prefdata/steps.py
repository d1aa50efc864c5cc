"""ingest and rank for the command line and for Python: each calls the step that its spec describes."""

from __future__ import annotations

from collections.abc import Sequence

from prefdata.progress import Watch, watched
from prefdata.specs import IngestSpec, RankSpec
from prefdata.specs.rank import CompareSpec
from prefdata.store import Outcome, Run


def ingest(run: Run, files: Sequence[str], spec: IngestSpec, *, replace: bool = False) -> Outcome:
    """Read files into the run: prompts, prompts with responses, or (`kind="comparisons"`) verdicts on two responses.

    Raises:
        NotReady: comparisons of candidates that the run does not have.
        InputError: a file is missing, empty or cannot be read; BadRows names every row that cannot be used.
        SpecConflict: what is stored under this name has other content or settings.
    """
    from prefdata.comparisons.people import ingest_comparisons
    from prefdata.prompts import ingest as ingest_prompts

    step = ingest_comparisons if spec.kind == "comparisons" else ingest_prompts
    return step(run, files, spec, replace=replace)


def rank(run: Run, spec: RankSpec, *, replace: bool = False, partial: bool = False, progress: Watch = False) -> Outcome:
    """Score the candidates, or have a pairwise judge compare them; or make scores of scores and of comparisons.

    Raises:
        NotReady: there are no finished candidates (or `partial`).
        SpecConflict: a scorer or judge of this name is another one, or has other settings.
        ModelError, InputError: the scorer cannot be used.
    """
    from prefdata.comparisons import compare
    from prefdata.scorers.open import is_pairwise
    from prefdata.scores import rank as score

    with watched(progress, "rank") as told:
        if isinstance(spec, CompareSpec) and is_pairwise(spec):
            return compare(run, spec, replace=replace, partial=partial, progress=told)
        return score(run, spec, replace=replace, partial=partial, progress=told)
