"""rank with a judge of two answers: candidates in, comparisons out.

Which two answers of a prompt are compared is the schedule's affair:

- first-round: all in random order, the 1st with the 2nd, the 3rd with the 4th, …: n/2 comparisons (RSO, 2309.06657).
- tournament: knock-out in random order, the winner stays: n-1 comparisons (SLiC-HF, 2305.10425).
- all: every two, n(n-1)/2.

In both orders each two are shown twice, so that a judge who prefers the first place is found out: where the verdicts
differ, their mean is near one half. With `flip` they are shown once, in an order that a coin decides. Answers that are
empty, or the same text as another of the prompt, take no part: there is nothing to judge.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from itertools import combinations, count
from typing import Any

import polars as pl

from prefdata import ids
from prefdata.draws import uniforms
from prefdata.ids import Message
from prefdata.progress import Progress, quiet
from prefdata.reports import Report, nonzero
from prefdata.scorers import identity_of, open_comparer
from prefdata.scorers.protocol import Comparer, Match, Verdict
from prefdata.specs import RankSpec
from prefdata.store import Appender, Lineage, Outcome, Partition, Run, name_of
from prefdata.tables import rows_id
from prefdata.views import WHITESPACE, blank, chosen_samplers, read_candidates, read_prompts

ORDERS = ("first-second", "second-first")
_OTHER = {"first": "second", "second": "first"}

Two = tuple[str, str]
"""Two candidates' ids, in the order of their coins."""


def compare(
    run: Run, spec: RankSpec, *, replace: bool = False, partial: bool = False, progress: Progress = quiet
) -> Outcome:
    """Have the answers compared that have not been, and store the verdicts as `RUN/comparisons/judge=NAME`.

    Raises:
        NotReady: there are no finished candidates (or `partial`).
        SpecConflict: a judge of this name is another model or has other settings.
        ModelError: the judge cannot be used.
    """
    samplers = [run.ready(sampler, partial=partial) for sampler in chosen_samplers(run, spec.sampler)]
    players = _players(run, spec, tuple(sampler.name for sampler in samplers))
    parents = {"candidates": rows_id(players.select("candidate_id", "prompt_id").to_arrow(), "candidate_id")}
    lineage = Lineage.of(spec, parents, resolved=identity_of(spec))
    partition = run.partition("comparisons", spec.name or name_of(str(getattr(spec, spec.kind))))
    if not replace:
        partition.check(lineage)
    groups = [
        group.to_list()
        for group in players.group_by("prompt_id", maintain_order=True).agg("candidate_id")["candidate_id"]
    ]
    seen = {} if replace else verdicts_of(partition)
    success = partition.success()
    if success is not None and not replace and not _next(groups, seen, spec):
        return Outcome(success.report, partition.path, "kept")
    began = time.monotonic()
    with closing(open_comparer(spec)) as comparer:  # a judge that cannot be used leaves nothing behind
        state = partition.begin(lineage, replace=replace)
        partition.reopen()
        ask = _Asking(run, players, comparer, partition, progress)
        while todo := _next(groups, seen, spec):
            seen |= ask(todo)
    report = account(partition, players.height).timed(time.monotonic() - began)
    partition.finish(report)
    return Outcome(report, partition.path, "made" if state == "absent" else "continued")


def schedule(group: list[str], seen: dict[tuple[Two, str], float | None], spec: RankSpec) -> Iterator[Two]:
    """The comparisons of one prompt's candidates, in the order of their coins, as far as they can be known yet."""
    if spec.schedule == "all":
        yield from combinations(group, 2)
    elif spec.schedule == "first-round":
        yield from zip(group[::2], group[1::2], strict=False)
    else:
        champion = group[0]
        for challenger in group[1:]:
            two = (champion, challenger)
            yield two
            said = [seen[two, order] for order in orders(two, spec) if (two, order) in seen]
            if len(said) < len(orders(two, spec)):
                return  # who meets the next one is not known yet
            known = [probability for probability in said if probability is not None]
            champion = challenger if known and sum(known) / len(known) < 0.5 else champion


def orders(two: Two, spec: RankSpec) -> tuple[str, ...]:
    """In which orders two candidates are shown."""
    if spec.order == "both":
        return ORDERS
    return (ORDERS[int(ids.unit_uniform(spec.seed, "order", *two) < 0.5)],)


def verdicts_of(partition: Partition) -> dict[tuple[Two, str], float | None]:
    """The verdicts that are there: the probability that the first beats the second, by the two and their order."""
    rows = partition.read(["first_id", "second_id", "order", "probability"]).to_pylist()
    return {((row["first_id"], row["second_id"]), row["order"]): row["probability"] for row in rows}


def account(partition: Partition, players: int) -> Report:
    """The Report of a judge: every comparison is a row, with a verdict or with the reason why there is none."""
    rows = pl.from_arrow(partition.read(["first_id", "second_id", "order", "verdict", "probability"]))
    assert isinstance(rows, pl.DataFrame)
    shown_first = pl.when(pl.col("order") == ORDERS[0]).then("probability").otherwise(1 - pl.col("probability"))
    both = rows.group_by("first_id", "second_id").agg(pl.col("probability"))
    agree = both.filter(pl.col("probability").list.len() == 2, ~pl.col("probability").list.contains(None))
    sides = agree.select(((pl.col("probability").list.get(0) - 0.5) * (pl.col("probability").list.get(1) - 0.5)) > 0)
    verdicts = dict(rows["verdict"].value_counts(name="n").sort("verdict").iter_rows())
    return Report(
        step="rank",
        unit="comparisons",
        rows_in=rows.height,
        rows_out=rows.height,
        figures={
            "candidates": players,
            **nonzero(verdicts),
            "first_place_won": rows.select(shown_first.mean()).item(),
            "same_in_both_orders": sides.to_series().mean() if sides.height else None,
        },
    )


def _players(run: Run, spec: RankSpec, samplers: tuple[str, ...]) -> pl.DataFrame:
    """The candidates that take part, each prompt's in the order of their coins."""
    rows = read_candidates(run, ["candidate_id", "prompt_id", "text", "status"], samplers)
    rows = rows.filter((pl.col("status") == "ok") & ~blank("text"))
    rows = rows.with_columns(bare=pl.col("text").str.strip_chars(WHITESPACE)).sort("candidate_id")
    rows = rows.unique(["prompt_id", "bare"], keep="first", maintain_order=True)
    coin = pl.Series("coin", uniforms(rows["candidate_id"], spec.seed, "schedule"))
    return rows.with_columns(coin).sort("prompt_id", "coin", "candidate_id").select("candidate_id", "prompt_id", "text")


def _next(groups: list[list[str]], seen: dict[tuple[Two, str], float | None], spec: RankSpec) -> list[tuple[Two, str]]:
    """The comparisons that can be made now and have not been."""
    return [
        (two, order)
        for group in groups
        for two in schedule(group, seen, spec)
        for order in orders(two, spec)
        if (two, order) not in seen
    ]


class _Asking:
    """Questions to a judge, and the rows of what it says."""

    def __init__(
        self, run: Run, players: pl.DataFrame, comparer: Comparer, partition: Partition, progress: Progress
    ) -> None:
        self._comparer, self._partition, self._progress = comparer, partition, progress
        self._texts = dict(players.select("candidate_id", "text").iter_rows())
        self._prompt_of = dict(players.select("candidate_id", "prompt_id").iter_rows())
        prompts = read_prompts(run, partial=True).select("prompt_id", "messages")
        self._messages: dict[str, list[Message]] = dict(prompts.iter_rows())

    def __call__(self, todo: list[tuple[Two, str]]) -> dict[tuple[Two, str], float | None]:
        asked = {str(number): one for number, one in zip(count(), todo, strict=False)}
        said: dict[tuple[Two, str], float | None] = {}
        self._progress(0, len(asked))
        with Appender(self._partition) as appender:
            for verdict in self._comparer.compare(self._match(key, *one) for key, one in asked.items()):
                row = self._row(*asked[verdict.key], verdict)
                appender.add(row)
                said[asked[verdict.key]] = row["probability"]
                self._progress(len(said), len(asked))
        return said

    def _match(self, key: str, two: Two, order: str) -> Match:
        shown, other = two if order == ORDERS[0] else two[::-1]
        messages = tuple(self._messages[self._prompt_of[shown]])
        return Match(key, messages, self._texts[shown], self._texts[other])

    def _row(self, two: Two, order: str, said: Verdict) -> dict[str, Any]:
        turned = order != ORDERS[0] and said.probability is not None
        return {
            "first_id": two[0],
            "second_id": two[1],
            "order": order,
            "annotator": self._comparer.annotator,
            "prompt_id": self._prompt_of[two[0]],
            "probability": 1 - said.probability if turned and said.probability is not None else said.probability,
            "verdict": _OTHER.get(said.verdict, said.verdict) if order != ORDERS[0] else said.verdict,
            "strength": said.strength,
            "rationale": said.rationale,
        }
