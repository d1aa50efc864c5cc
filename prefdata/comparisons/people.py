"""ingest --as comparisons: verdicts that people or other tools gave, from files.

A row names two answers that are candidates of the run, and says which is better:

- the answers: `first_id` and `second_id`, or the prompt (in any layout) with both texts, in `first` and `second`,
  `answer_a` and `answer_b`, `response_a` and `response_b`, `output_1` and `output_2`, `response_1` and `response_2`;
- the verdict, in `verdict`, `winner`, `preference` or `label`: first or second, or what their columns are called (a, b,
  answer_a, output_2, …; 1, 2), or tie; or `probability`, that the first is better;
- and where there are such: `annotator`, `strength`, `rationale`, and `order`, second-first where it was shown so.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from prefdata import ids
from prefdata.comparisons import ORDERS
from prefdata.errors import BadRow, BadRows
from prefdata.formats.layouts import Layout, Unusable, detect, named
from prefdata.formats.readers import RawRow, read
from prefdata.reports import Report, nonzero
from prefdata.specs import IngestSpec
from prefdata.store import Lineage, Outcome, Run, name_of
from prefdata.tables import COMPARISONS, rows_id
from prefdata.views import read_candidates

SIDES = (
    ("first", "second"),
    ("answer_a", "answer_b"),
    ("response_a", "response_b"),
    ("output_1", "output_2"),
    ("response_1", "response_2"),
)
VERDICTS = ("verdict", "winner", "preference", "label")
_TIES = ("tie", "tied", "draw", "equal", "both", "c")
_PROBABILITY = {"first": 1.0, "second": 0.0, "tie": 0.5}


def ingest_comparisons(run: Run, files: Sequence[str], spec: IngestSpec, *, replace: bool = False) -> Outcome:
    """Read verdicts on two answers, and store them as `RUN/comparisons/judge=NAME`.

    Raises:
        NotReady: there are no candidates that they could be about.
        InputError: a file is missing, empty or of an unknown kind; BadRows tells every row by its place.
        SpecConflict: a judge of this name holds other verdicts.
    """
    began = time.monotonic()
    partition = run.partition("comparisons", spec.source or name_of(Path(files[0]).stem))
    known = _Known(read_candidates(run, ["candidate_id", "prompt_id", "text"]))
    bad: list[tuple[str, BadRow]] = []
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    reasons: Counter[str] = Counter()
    read_rows = 0
    for row, layout in _with_layouts(chain.from_iterable(read(file) for file in files), spec.layout):
        read_rows += 1
        try:
            said = _verdict(row, layout, known, partition.name)
        except Unusable as error:
            bad.append((error.reason, BadRow(row.file, row.row, str(error))))
            continue
        before = found.setdefault((said["first_id"], said["second_id"], said["order"], said["annotator"]), said)
        if before is not said:  # what was said first stands
            reasons["duplicate" if before["probability"] == said["probability"] else "contradiction"] += 1
    if bad and (spec.on_bad_rows == "error" or not found):
        raise BadRows([row for _, row in bad], hint="Nothing was written; mend them, or use --on-bad-rows drop.")
    table = COMPARISONS.from_rows(list(found.values()))
    reasons.update(reason for reason, _ in bad)
    verdicts = {name: sum(one["verdict"] == name for one in found.values()) for name in _PROBABILITY}
    figures = {**nonzero(verdicts), "annotators": len({one["annotator"] for one in found.values()})}
    report = Report(
        step="ingest", unit="rows", rows_in=read_rows, rows_out=len(found), dropped=nonzero(reasons), figures=figures
    ).timed(time.monotonic() - began)
    lineage = Lineage.of(spec, resolved={"comparisons": _content(table)})
    return partition.derive(lineage, lambda: (table, report), replace=replace)


class _Known:
    """The run's candidates, by id and by prompt and text."""

    def __init__(self, candidates: pl.DataFrame) -> None:
        rows = candidates.select("candidate_id", "prompt_id", "text").rows()
        self.prompt_of: dict[str, str] = {candidate: prompt for candidate, prompt, _ in rows}
        self._by_text: dict[tuple[str, str], str] = {(prompt, text): one for one, prompt, text in reversed(rows)}

    def by_text(self, prompt: str, text: str) -> str:
        """The first candidate with this text.

        Raises:
            Unusable: there is none.
        """
        found = self._by_text.get((prompt, text))
        if found is None:
            short = text if len(text) <= 40 else f"{text[:40]}…"
            raise Unusable(
                "no_candidate", f"no candidate of that prompt says {short!r}: ingest the answers with --as candidates"
            )
        return found


def _with_layouts(rows: Iterator[RawRow], layout: str | None) -> Iterator[tuple[RawRow, Layout | None]]:
    """Each row with the layout that its file's prompts have; None where rows name candidates by their ids."""
    for file, of_file in groupby(rows, key=lambda row: row.file):
        listed = list(of_file)
        asked = [dict(row.values) for row in listed if not row.problem and "first_id" not in row.values][:20]
        how = None
        if asked:
            how = named(layout, asked, file) if layout else detect(asked, file)
        for row in listed:
            yield row, how


def _verdict(row: RawRow, layout: Layout | None, known: _Known, judge: str) -> dict[str, Any]:
    """What a row says, as a row of comparisons.

    Raises:
        Unusable: it does not say it.
    """
    if row.problem:
        raise Unusable(row.reason, row.problem)
    values = {name: value for name, value in row.values.items() if value is not None}
    first, second, sides = _two(values, layout, known)
    if first == second:
        raise Unusable("same_answer", "both answers are the same candidate")
    if known.prompt_of[first] != known.prompt_of[second]:
        raise Unusable("two_prompts", "the two answers are to different prompts")
    probability, verdict = _said(values, sides)
    order = str(values.get("order", ORDERS[0]))
    if order not in ORDERS:
        raise Unusable("order", f"order is {order!r}; known: {', '.join(ORDERS)}")
    return {
        "first_id": first,
        "second_id": second,
        "order": order,
        "annotator": str(values.get("annotator", judge)),
        "prompt_id": known.prompt_of[first],
        "probability": probability,
        "verdict": verdict,
        "strength": None if "strength" not in values else str(values["strength"]),
        "rationale": None if "rationale" not in values else str(values["rationale"]),
    }


def _two(values: Mapping[str, Any], layout: Layout | None, known: _Known) -> tuple[str, str, tuple[str, str]]:
    """The two candidates, and what their columns are called."""
    if "first_id" in values or "second_id" in values:
        pair = (str(values.get("first_id")), str(values.get("second_id")))
        if unknown := [one for one in pair if one not in known.prompt_of]:
            raise Unusable("no_candidate", f"there is no candidate {unknown[0]} in the run")
        return *pair, ("first_id", "second_id")
    sides = next((two for two in SIDES if all(isinstance(values.get(side), str) for side in two)), None)
    if sides is None or layout is None:
        raise Unusable("no_answers", f"two answers are needed: first_id and second_id, or {_or(SIDES)}")
    prompt = layout.prompt({name: value for name, value in values.items() if name not in sides})
    key = ids.prompt_id(prompt.messages, prompt.tools)
    return known.by_text(key, values[sides[0]]), known.by_text(key, values[sides[1]]), sides


def _said(values: Mapping[str, Any], sides: tuple[str, str]) -> tuple[float | None, str]:
    """The probability that the first is better, and the verdict in a word."""
    if isinstance(values.get("probability"), int | float) and not isinstance(values["probability"], bool):
        probability = float(values["probability"])
        if not 0 <= probability <= 1:
            raise Unusable("probability", f"probability is {probability}, and should be from 0 to 1")
        return probability, "tie" if probability == 0.5 else "first" if probability > 0.5 else "second"
    name = next((name for name in VERDICTS if name in values), None)
    if name is None:
        raise Unusable("no_verdict", f"a verdict is needed, in {', '.join(VERDICTS)} or probability")
    word = str(values[name]).strip().lower()
    firsts, seconds = (("first", "a", "1", "model_a", sides[0]), ("second", "b", "2", "model_b", sides[1]))
    verdict = "first" if word in firsts else "second" if word in seconds else "tie" if word in _TIES else None
    if verdict is None:
        raise Unusable("verdict", f"{name} is {values[name]!r}; known: first, second, a, b, 1, 2, {sides[0]}, tie")
    return _PROBABILITY[verdict], verdict


def _or(sides: Sequence[tuple[str, str]]) -> str:
    return " or ".join(f"{a} and {b}" for a, b in sides)


def _content(table: pa.Table) -> str:
    rows = pl.from_arrow(table)
    assert isinstance(rows, pl.DataFrame)
    keyed = rows.with_columns(key=pl.concat_str("first_id", "second_id", "order", "annotator", separator="/"))
    return rows_id(keyed.drop("first_id", "second_id", "order", "annotator").to_arrow(), "key")
