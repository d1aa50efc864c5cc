"""rank: candidates in, scores out.

A score belongs to one exact text under one scorer: the row carries the text's hash, or null and the reason where there
is no score. Scores that are there stay; candidates that came later are scored by the same command, and several
processes that are given it share the work.

    scoring.py   one stream from candidates to scores
    derive.py    scores computed from scores or comparisons
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from prefdata.chat.clock import began_on
from prefdata.errors import SpecConflict
from prefdata.progress import Progress, Watch, no_progress, watched
from prefdata.scorers.open import dated_scorer, open_scorer, scorer_identity, scorer_outputs
from prefdata.scorers.protocol import computed_by
from prefdata.scores.derive import derive
from prefdata.scores.stream import ScoreStream
from prefdata.specs import RankSpec
from prefdata.specs.rank import CandidatesSpec
from prefdata.storage.artifact import in_the_same_precision
from prefdata.storage.compaction import compact, discard
from prefdata.storage.key_index import CandidateKeySet
from prefdata.storage.leases import WorkLeases
from prefdata.storage.queries import candidate_files, chosen_samplers
from prefdata.storage.report import Report, nonzero
from prefdata.storage.run import Lineage, Outcome, Partition, Run, name_of
from prefdata.storage.schemas import read_part

KEY = ("candidate_id",)


def rank(run: Run, spec: RankSpec, *, replace: bool = False, partial: bool = False, progress: Watch = False) -> Outcome:
    """Score the candidates, or compute scores from scores or comparisons, as the kind of scorer in `spec` does.

    Raises:
        NotReady: what the scorer reads is not there or unfinished (or `partial`).
        SpecConflict: a scorer of this name is another model or function, or has other settings.
        ModelError, InputError: the scorer cannot be used.
    """
    if not isinstance(spec, CandidatesSpec):
        return derive(run, spec, replace=replace, partial=partial)
    with watched(progress, "rank") as watch:
        return score(run, spec, replace=replace, partial=partial, progress=watch)


def score(
    run: Run, spec: CandidatesSpec, *, replace: bool = False, partial: bool = False, progress: Progress = no_progress
) -> Outcome:
    """Score the candidates that have no score yet, and store the scores as `RUN/scores/scorer=NAME`.

    A scorer with several outputs makes a scorer of each, `NAME-OUTPUT`; the Outcome is the first one's.

    Raises:
        NotReady: there are no finished candidates (or `partial`).
        SpecConflict: a scorer of this name is another model, another function, or has other settings.
        ModelError, InputError: the scorer cannot be used.
    """
    samplers = [run.ready(sampler, partial=partial) for sampler in chosen_samplers(run, spec.sampler)]
    partitions = {name: run.partition("scores", _partition_name(spec, name)) for name in scorer_outputs(spec)}
    spec = dated_scorer(spec, None if replace else began_on(partitions.values()))
    lineages = _lineages(run, spec)
    if not replace:
        for name, partition in partitions.items():
            partition.check(lineages[name])
    for source in run.all("prompts", partial=True):
        source.checked_parts()  # what is damaged is refused before anything is written
    seen = candidate_files(run)
    candidates = CandidateKeySet(samplers)
    for name, partition in partitions.items():
        if not replace:
            partition.upgrade(drop_orphans=True)
            _drop_orphans(run, partition, lineages[name])
    scored = [CandidateKeySet([] if replace else [partition], growing=True) for partition in partitions.values()]
    first = next(iter(partitions.values()))
    whole = all(one.intact for one in partitions.values()) and all(one.lacks(candidates) == 0 for one in scored)
    if whole and not replace:
        return Outcome(first.success().report, first.path, "kept")  # type: ignore[union-attr]
    claims = WorkLeases(first.path)
    if replace and (busy := claims.busy()):
        raise SpecConflict(f"another process scores into {first.path} ({busy}): stop it before you --replace.")
    began = time.monotonic()
    progress.phase("loading the scorer")
    begun = () if replace else partitions.values()
    # Before anything is written: a scorer that cannot be used leaves nothing behind.
    scorer = open_scorer(in_the_same_precision(spec, begun))
    computed = computed_by(scorer)
    lineages = {name: lineage.computing(computed) for name, lineage in lineages.items()}
    progress.phase("scoring")
    states = [partition.begin(lineages[name], replace=replace) for name, partition in partitions.items()]
    with claims:
        claims.wait_for_the_last()
        for partition in partitions.values():
            partition.reopen()
        scoring = ScoreStream(run, samplers, partitions, claims, progress, total=len(candidates))
        if replace:  # what was there is gone, and what comes is to be looked for
            scored = [CandidateKeySet([partition], growing=True) for partition in partitions.values()]
        notes = scoring.score(scored, scorer)
        last = claims.last()
        said: dict[str, Any] = {**computed, **({"note": " ".join(notes)} if notes else {})}
        reports = [_ended(one, candidates, seen, began, said, last) for one in partitions.values()]
    return Outcome(reports[0], first.path, "made" if states[0] == "absent" else "continued")


def _ended(
    partition: Partition,
    candidates: CandidateKeySet,
    seen: dict[str, str],
    began: float,
    said: dict[str, Any],
    last: bool,
) -> Report:
    if last:
        compact(partition, KEY, by_prompt=True)
        partition.refuse_lost(CandidateKeySet([partition], growing=True).lacks(candidates), len(candidates))
    report = account(partition, len(candidates))
    if last and report.rows_in and not report.figures["scored"]:
        report = report.failed(_why_none(partition))
    if not last:
        busy = "Another process is still at work here, and will finish it."
        said = {**said, "note": f"{said.get('note', '')} {busy}".strip()}
    report = report.timed(time.monotonic() - began, **said)
    if last:
        partition.finish(report, seen)
    return report


def _partition_name(spec: RankSpec, output: str) -> str:
    name = spec.name or scorer_name(spec)
    return f"{name}-{name_of(output)}" if output else name


def _lineages(run: Run, spec: RankSpec) -> dict[str, Lineage]:
    """Return the scorer's identity per output: weights and tokenizer, or source; not paths, names or batch sizes."""
    parents = {str(p): p.content for p in run.partitions("candidates")}
    identity = scorer_identity(spec)
    return {
        output: Lineage.of(spec, parents, resolved=identity | ({"label": output} if output else {}))
        for output in scorer_outputs(spec)
    }


def scorer_name(spec: RankSpec) -> str:
    """Return the scorer's default name: the model folder's, the function's, or the rule's."""
    named = str(getattr(spec, spec.kind))
    if spec.kind in ("function", "verifier"):
        return name_of(
            named.rpartition(":")[2] if named.rpartition(":")[0].endswith(".py") else named.partition(":")[0]
        )
    return name_of(named)


def account(partition: Partition, asked: int) -> Report:
    """Build the Report of a scorer: one row per candidate, with a score or with the reason why there is none."""
    rows, scored, total, squares = 0, 0, 0.0, 0.0
    reasons: dict[str, int] = {}
    for part in partition.checked_parts():
        frame = read_part(part, ["score", "reason"])
        scores = frame["score"].drop_nulls()
        rows, scored = rows + frame.height, scored + len(scores)
        total, squares = total + float(scores.sum()), squares + float((scores * scores).sum())
        for reason, number in frame["reason"].drop_nulls().value_counts(name="n").iter_rows():
            reasons[reason] = reasons.get(reason, 0) + number
    figures: dict[str, Any] = {"scored": scored, **nonzero(dict(sorted(reasons.items())))}
    if scored:
        mean = total / scored
        figures |= {"mean": mean, "std": math.sqrt(max(squares - scored * mean**2, 0.0) / max(scored - 1, 1))}
    return Report(
        step="rank",
        unit="candidates",
        rows_in=max(asked, rows),
        rows_out=rows,
        dropped={"not_scored_yet": asked - rows} if asked > rows else {},
        figures=figures,
    )


def _why_none(partition: Partition) -> str:
    """Where nothing has a score, why the first candidate has none: the mistake is likely one and the same."""
    (row, *_) = read_part(partition.checked_parts()[0], ["reason", "details"]).to_dicts()
    details = json.loads(row["details"] or "{}")
    said = next((": " + str(details[key]) for key in ("error", "returned", "reply") if details.get(key)), "")
    one_line = " ".join(f"{row['reason']}{said[:200]}".split())
    return f"no candidate has a score; first error: {one_line}. Correct it and add --replace."


def _drop_orphans(run: Run, partition: Partition, lineage: Lineage) -> None:
    """Remove scores of candidates that are not in the run any more, because their sampler was replaced."""
    if partition.lineage() is None:
        return
    known = CandidateKeySet(run.partitions("candidates"))
    gone: dict[Path, list[int]] = {}
    for part in partition.stored():
        present = known.has(read_part(part, ["candidate_id"])["candidate_id"])
        if not present.all():
            gone[part] = np.flatnonzero(~present).tolist()
    if gone:
        partition.reopen()
        partition.begin(lineage)
        discard(partition, gone)
