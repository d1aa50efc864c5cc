"""rank with a judge of two answers: candidates in, comparisons out.

Comparisons that are there stay; candidates that came later are compared by the same command, and several processes that
are given it share the work.

    schedules.py  which two answers are compared, in which orders
    board.py      the comparisons to make, a share of the prompts at a time
    people.py     verdicts from files
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from typing import Any

import polars as pl

from prefdata.chat.clock import began_on
from prefdata.comparisons.players import PlayerStore, PromptBatch
from prefdata.comparisons.schedule import ORDERS, Two, orders, schedule
from prefdata.errors import SpecConflict
from prefdata.progress import Progress, Watch, watched
from prefdata.scorers.open import dated_scorer, open_comparer, scorer_identity
from prefdata.scorers.protocol import Comparer, Verdict, computed_by
from prefdata.specs.rank import CompareSpec
from prefdata.stats.agreement import order_counts
from prefdata.storage.artifact import in_the_same_precision
from prefdata.storage.compaction import compact
from prefdata.storage.leased_work import LeasedWork
from prefdata.storage.leases import WorkLeases
from prefdata.storage.queries import chosen_samplers
from prefdata.storage.report import Report, nonzero
from prefdata.storage.run import Lineage, Outcome, Partition, PartWriter, Run, name_of
from prefdata.storage.schemas import read_part

__all__ = ["ORDERS", "compare", "orders", "schedule"]

KEY = ("first_id", "second_id", "order", "annotator")
_OTHER = {"first": "second", "second": "first"}


def compare(
    run: Run, spec: CompareSpec, *, replace: bool = False, partial: bool = False, progress: Watch = False
) -> Outcome:
    """Have the answers compared that have not been, and store the verdicts as `RUN/comparisons/judge=NAME`.

    Raises:
        NotReady: there are no finished candidates (or `partial`).
        SpecConflict: a judge of this name is another model or has other settings.
        ModelError: the judge cannot be used.
    """
    samplers = [run.ready(sampler, partial=partial) for sampler in chosen_samplers(run, spec.sampler)]
    partition = run.partition("comparisons", spec.name or name_of(str(getattr(spec, spec.kind))))
    spec = dated_scorer(spec, None if replace else began_on([partition]))
    identity = scorer_identity(spec)
    if not replace:
        partition.check(Lineage.of(spec, resolved=identity))
    with PlayerStore(run, samplers, spec) as board, watched(progress, "rank") as watch:
        if not replace:
            board.look(partition)
        success = partition.success()
        if success and not replace and partition.intact and not board.missing():
            return Outcome(success.report, partition.path, "kept")
        lineage = Lineage.of(spec, {"candidates": board.content}, resolved=identity)
        return _compare(board, partition, lineage, spec, replace, watch)


def _compare(
    board: PlayerStore, partition: Partition, lineage: Lineage, spec: CompareSpec, replace: bool, progress: Progress
) -> Outcome:
    claims = WorkLeases(partition.path)
    if replace and (busy := claims.busy()):
        raise SpecConflict(f"another process compares into {partition.path} ({busy}): stop it before you --replace.")
    began = time.monotonic()
    progress.phase("loading the judge")
    spec = in_the_same_precision(spec, () if replace else (partition,))
    with closing(open_comparer(spec)) as comparer:  # a judge that cannot be used leaves nothing behind
        progress.phase("comparing")
        state = partition.begin(lineage.computing(computed_by(comparer)), replace=replace)
        with claims:
            claims.wait_for_the_last()
            partition.reopen()
            ComparisonStream(board, partition, comparer, claims, spec, progress).compare()
            last = claims.last()
            board.look(partition)
            if last:
                compact(partition, KEY)
                lost = board.seen() - sum(rows for _, rows in partition.parts_with_rows())
                partition.refuse_lost(max(lost, 0) or board.missing(), board.comparisons)
            waiting = [] if last else ["Another process is still at work here, and will finish it."]
            notes = " ".join([*getattr(comparer, "notes", ()), *waiting])
            said = {**computed_by(comparer), **({"note": notes} if notes else {})}
            report = account(board).timed(time.monotonic() - began, **said)
            if last:
                report = report.failed(_why_none(board, partition) if report.rows_in else "")
                partition.finish(report)
    return Outcome(report, partition.path, "made" if state == "absent" else "continued")


def _why_none(board: PlayerStore, partition: Partition) -> str:
    """Why no comparison has a verdict, where none has one."""
    if any(board.verdicts(number)["probability"].count() for number in range(board.shares)):
        return ""
    verdict, rationale = read_part(partition.checked_parts()[0], ["verdict", "rationale"]).row(0)
    message = " ".join(f"{verdict}: {rationale or ''}".split())[:200]
    return f"no comparison has a verdict; first error: {message}. Correct it and add --replace."


@dataclass
class ComparisonStream:
    """A judge at work on the comparisons that are lacking, beside other processes if there are some."""

    board: PlayerStore
    partition: Partition
    comparer: Comparer
    claims: WorkLeases
    spec: CompareSpec
    progress: Progress
    done: int = 0

    def compare(self) -> None:
        """Ask until nothing is lacking."""
        self.board.look(self.partition)
        for one_pass in LeasedWork(self.claims, self._shares, self._lacking, self._refresh).passes():
            self.done = 0
            for _, todo in one_pass:
                self.done += len(self._share.seen)
                while todo:  # in a tournament each round makes the next one known
                    self._ask(todo)
                    todo = self._share.next(self.spec)

    def _shares(self) -> Iterator[tuple[str, list[int]]]:
        for number in range(self.board.shares):
            yield f"prompts-{number:05d}-of-{self.board.shares:05d}", [number]

    def _lacking(self, numbers: list[int]) -> list[tuple[Two, str]]:
        self._share: PromptBatch = self.board.share(numbers[0])
        return self._share.next(self.spec)

    def _refresh(self) -> None:
        self.board.look(self.partition)

    def _ask(self, todo: list[tuple[Two, str]]) -> None:
        asked = {str(number): one for number, one in zip(count(), todo, strict=False)}
        with PartWriter(self.partition) as appender:
            for verdict in self.comparer.compare(self._share.match(key, *one) for key, one in asked.items()):
                row = self._row(*asked[verdict.key], verdict)
                appender.add(row)
                self._share.seen[asked[verdict.key]] = row["probability"]
                self.done += 1
                self.progress(self.done, self.board.comparisons)

    def _row(self, two: Two, order: str, said: Verdict) -> dict[str, Any]:
        turned = order != ORDERS[0] and said.probability is not None
        return {
            "first_id": two[0],
            "second_id": two[1],
            "order": order,
            "annotator": self.comparer.annotator,
            "prompt_id": self._share.prompt_of[two[0]],
            "probability": 1 - said.probability if turned and said.probability is not None else said.probability,
            "verdict": _OTHER.get(said.verdict, said.verdict) if order != ORDERS[0] else said.verdict,
            "strength": said.strength,
            "rationale": said.rationale,
        }


def account(board: PlayerStore) -> Report:
    """Build the Report of a judge: one row per comparison, with a verdict or with the reason why there is none."""
    rows, counts, verdicts = 0, Counter[str](), Counter[str]()
    for number in range(board.shares):
        share = board.verdicts(number)
        rows += share.height
        # One judge's, and a candidate is of one prompt.
        named = share.with_columns(annotator=pl.lit(""), prompt_id=pl.lit(""))
        for found in order_counts(named).drop("annotator").to_dicts():
            counts.update(found)
        verdicts.update(dict(share["verdict"].value_counts(name="n").iter_rows()))
    return Report(
        step="rank",
        unit="comparisons",
        rows_in=rows,
        rows_out=rows,
        figures={
            "candidates": board.players,
            **nonzero(dict(sorted(verdicts.items()))),
            "first_place_won": counts["first_position"] / counts["decided"] if counts["decided"] else None,
            "same_in_both_orders": counts["consistent"] / counts["both_orders"] if counts["both_orders"] else None,
        },
    )
