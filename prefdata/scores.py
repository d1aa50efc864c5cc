"""rank: candidates in, scores out.

A score belongs to one exact text under one scorer: the row carries the text's hash, or null and the reason where there
is no score. Scores that are there stay; candidates that came later are scored by the same command.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from prefdata.errors import InputError
from prefdata.ids import ID_DIGITS
from prefdata.model_files import identify
from prefdata.progress import Progress, quiet
from prefdata.reports import Report, nonzero
from prefdata.scorers import open_scorer
from prefdata.scorers.protocol import Item, Scored
from prefdata.specs import RankSpec
from prefdata.store import Appender, Lineage, Outcome, Partition, Run, name_of
from prefdata.views import read_candidates, read_prompts


def rank(
    run: Run, spec: RankSpec, *, replace: bool = False, partial: bool = False, progress: Progress = quiet
) -> Outcome:
    """Score the candidates that have no score yet, and store the scores as `RUN/scores/scorer=NAME`.

    Raises:
        NotReady: there are no finished candidates (or `partial`).
        SpecConflict: a scorer of this name is another model, another function, or has other settings.
        ModelError, InputError: the scorer cannot be used.
    """
    for sampler in run.all("candidates", partial=True):
        if not spec.sampler or sampler.name in spec.sampler:
            run.ready(sampler, partial=partial)
    candidates = read_candidates(run, ["candidate_id"], spec.sampler)
    lineage = lineage_of(run, spec)
    partition = run.partition("scores", spec.name or scorer_name(spec))
    if not replace:
        partition.check(lineage)
        _drop_orphans(run, partition)
    there = set() if replace else set(partition.read(["candidate_id"])["candidate_id"].to_pylist())
    todo = candidates.filter(~pl.col("candidate_id").is_in(there))
    success = partition.success()
    if todo.height == 0 and success is not None and not replace:
        return Outcome(success.report, partition.path, "kept")
    began = time.monotonic()
    state = partition.begin(lineage, replace=replace)
    partition.reopen()
    if todo.height:
        _score(run, partition, todo["candidate_id"], spec, progress)
    report = account(partition)
    report = report.timed(time.monotonic() - began)
    partition.finish(report)
    return Outcome(report, partition.path, "made" if state == "absent" else "continued")


def scorer_name(spec: RankSpec) -> str:
    """The scorer's name where none is given: the model folder's, or the function's."""
    if spec.function is not None:
        return name_of(spec.function.rpartition(":")[2])
    return name_of(spec.reward_model or "")


def lineage_of(run: Run, spec: RankSpec) -> Lineage:
    """The scorer's identity: weights and tokenizer, or the function's source; not the path, the name or the batch."""
    parents = {str(p): p.content for p in run.partitions("candidates")}
    if spec.reward_model is not None:
        files = identify(spec.reward_model, "reward-model")
        return Lineage.of(spec, parents, resolved={"reward_model": files.revision, "tokenizer": files.text_revision})
    file, _, name = str(spec.function).rpartition(":")
    if not Path(file).is_file():
        raise InputError(f"there is no file {file or spec.function}. Name the function as FILE.py:NAME.")
    source = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:ID_DIGITS]
    return Lineage.of(spec, parents, resolved={"function": f"{name} of {source}"})


def account(partition: Partition) -> Report:
    """The Report of a scorer: every candidate is a row, with a score or with the reason why there is none."""
    rows = pl.from_arrow(partition.read(["score", "reason"]))
    assert isinstance(rows, pl.DataFrame)
    reasons = dict(rows["reason"].drop_nulls().value_counts(name="n").sort("reason").iter_rows())
    figures: dict[str, Any] = {"scored": rows["score"].count(), **nonzero(reasons)}
    if rows["score"].count():
        figures |= {"mean": rows["score"].mean(), "std": rows["score"].std()}
    return Report(step="rank", unit="candidates", rows_in=rows.height, rows_out=rows.height, figures=figures)


def _drop_orphans(run: Run, partition: Partition) -> None:
    """Remove scores of candidates that are not in the run any more, because their sampler was replaced."""
    lineage = partition.lineage()
    rows = partition.read()
    if lineage is None or rows.num_rows == 0:
        return
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    known = read_candidates(run, ["candidate_id"])
    left = frame.join(known, on="candidate_id", how="semi", maintain_order="left")
    if left.height < frame.height:
        gone = {"candidate_gone": frame.height - left.height}
        report = Report(step="rank", unit="candidates", rows_in=frame.height, rows_out=left.height, dropped=gone)
        partition.rewrite(left.to_arrow(), lineage, report)


def _score(run: Run, partition: Partition, todo: pl.Series, spec: RankSpec, progress: Progress) -> None:
    columns = ["candidate_id", "prompt_id", "text", "status", "finish_reason"]
    rows = read_candidates(run, columns, spec.sampler).filter(pl.col("candidate_id").is_in(todo.implode()))
    prompts = read_prompts(run, partial=True).select("prompt_id", "messages")
    rows = rows.join(prompts, on="prompt_id", how="left", maintain_order="left")
    prompt_of = dict(rows.select("candidate_id", "prompt_id").iter_rows())
    answered = rows.filter(pl.col("status") == "ok")
    scorer = open_scorer(spec)
    done = 0
    progress(0, rows.height)
    try:
        with Appender(partition) as appender:
            for key, status in rows.filter(pl.col("status") != "ok").select("candidate_id", "status").iter_rows():
                appender.add(_row(Scored(key, None, status, None, None), prompt_of[key]))
                done += 1
            for scored in scorer.score(_items(answered)):
                appender.add(_row(scored, prompt_of[scored.key]))
                done += 1
                progress(done, rows.height)
    finally:
        scorer.close()


def _items(answered: pl.DataFrame) -> Iterator[Item]:
    for row in answered.iter_rows(named=True):
        if row["messages"] is None:
            raise InputError(
                f"candidate {row['candidate_id']} answers a prompt that is not in the run. Ingest it again."
            )
        yield Item(
            key=row["candidate_id"],
            messages=tuple(row["messages"]),
            response=row["text"],
            truncated=row["finish_reason"] == "length",
        )


def _row(scored: Scored, prompt_id: str) -> dict[str, Any]:
    return {
        "candidate_id": scored.key,
        "prompt_id": prompt_id,
        "score": scored.score,
        "reason": scored.reason,
        "text_hash": scored.text_hash,
        "details": None if scored.details is None else json.dumps(scored.details, ensure_ascii=False),
    }
