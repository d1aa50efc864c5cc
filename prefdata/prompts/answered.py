"""What comes in beside prompts: answers, as candidates, and the numbers beside the answers, as scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import pyarrow as pa

from prefdata.errors import InputError
from prefdata.formats.answers import AnswerKind, Gathered
from prefdata.formats.beside import BESIDE
from prefdata.reports import Report, nonzero
from prefdata.specs import IngestSpec
from prefdata.store import Lineage, Partition, Run, name_of
from prefdata.tables import SCORES, rows_id

Derived = tuple[Partition, Lineage, Callable[[], tuple[pa.Table, Report]]]
"""A partition, what it is to be made from, and how."""


def answered(run: Run, name: str, gathered: Gathered, spec: IngestSpec) -> list[Derived]:
    """Each kind's answers as the candidates of a sampler, and each column of scores as those of a scorer.

    Raises:
        InputError: a column holds no number beside any answer.
    """
    samplers = [
        _sampler(run.partition("candidates", f"{name}-{kind}"), kind, gathered, spec) for kind in gathered.kinds
    ]
    of_kind = {
        kind: (partition.name, lineage.fingerprint)
        for kind, (partition, lineage, _) in zip(gathered.kinds, samplers, strict=True)
    }
    scorers = [
        _scorer(
            name,
            run.partition("scores", named or f"{name}-{name_of(column)}"),
            column,
            gathered.scores(number, of_kind),
            spec,
        )
        for number, (named, column) in enumerate(spec.score_columns)
    ]
    return samplers + scorers


def _sampler(partition: Partition, kind: AnswerKind, gathered: Gathered, spec: IngestSpec) -> Derived:
    # The name is part of what it is: two sources with the same answers are two samplers, with candidates of their own.
    lineage = Lineage.of(spec, resolved={"sampler": partition.name, "answers": gathered.content(kind)})
    kept, dropped = gathered.counts(kind)
    report = Report(
        step="ingest",
        unit="candidates",
        rows_in=kept + dropped,
        rows_out=kept,
        dropped=nonzero({"duplicate": dropped}),
    )
    return partition, lineage, lambda: (gathered.table(kind, lineage.fingerprint), report)


def _scorer(source: str, partition: Partition, column: str, rows: list[dict[str, Any]], spec: IngestSpec) -> Derived:
    table = SCORES.from_rows(rows)
    content = rows_id(table.select(["candidate_id", "score"]), "candidate_id")
    lineage = Lineage.of(spec, resolved={"source": source, "column": column, "scores": content})
    missing = table["score"].null_count
    if missing == len(rows):
        raise InputError(f"no answer has a number in {column!r}. {BESIDE}")
    figures = {"scored": len(rows) - missing, **nonzero({"not_given": missing})}
    report = Report(step="ingest", unit="candidates", rows_in=len(rows), rows_out=len(rows), figures=figures)
    return partition, lineage, lambda: (table, report)


def forget(run: Run, name: str, made: Sequence[Derived]) -> None:
    """Remove what an earlier source of this name had, and this one has not: answers of other kinds, other scores."""
    new = [partition.path for partition, _, _ in made]
    old = [run.partition("candidates", f"{name}-{kind}") for kind in get_args(AnswerKind)]
    for partition in (*old, *run.partitions("scores")):
        lineage = partition.lineage()
        ours = lineage is not None and lineage.step == "ingest" and lineage.spec.get("source", name) == name
        if ours and partition.path not in new:
            partition.remove()


def told(gathered: Gathered, made: Sequence[Derived]) -> dict[str, int]:
    """How many answers of each kind there are and how many of them have scores, and what became of others."""
    others = {
        "duplicate_answers": len(gathered.twice),
        "rows_without_answers": gathered.rows_without,
        "scores_not_kept": gathered.scores_not_kept,
    }
    reports = {partition.name: compute()[1] for partition, _, compute in made if partition.table is SCORES}
    scored = {f"scored_by_{name}": report.figures["scored"] for name, report in reports.items()}
    return {str(kind): gathered.counts(kind)[0] for kind in gathered.kinds} | scored | nonzero(others)
