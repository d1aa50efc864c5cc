"""The partitions that an ingest makes, each with its tables and the report on it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from prefdata import ids
from prefdata.errors import InputError
from prefdata.formats.score_columns import WHERE
from prefdata.prompts.collect import Content, ResponseCollector, text_of_prompt
from prefdata.prompts.collected import Collected
from prefdata.prompts.given import Given
from prefdata.storage.partition import PART_ROWS
from prefdata.storage.report import Report, nonzero
from prefdata.storage.run import Lineage, Partition, name_of
from prefdata.storage.schemas import CANDIDATES, SCORES

Tables = Callable[[], Iterator[pa.Table]]

UNITS = {"pairs": "pairs", "unpaired": "labels", "comparisons": "rows", "demonstrations": "demonstrations"}


@dataclass
class Made:
    """A partition that is to be made: what from, its tables, and the report on it."""

    partition: Partition
    lineage: Lineage
    tables: Tables
    report: Report


def all_made(of: Collected) -> list[Made]:
    """Every partition that is to be made, the prompts first."""
    spec = of.spec
    known = _known(of) if spec.kind == "comparisons" else {}
    samplers = [_sampler(of, kind, known) for kind in of.kinds]
    scorers = _scorers(of, samplers)
    given = [] if of.given is None else [_table(of, of.given, samplers, known)]
    if spec.kind == "comparisons" and not any(one.report.rows_out for one in samplers):
        return given  # all responses are candidates of the run
    resolved: dict[str, Any] = {"prompts": of.prompts.content()}
    if of.instructions is not None:
        resolved["instructions"] = of.instructions.identity
    if samplers:
        resolved["answers"] = {kind: of.responses[kind].content for kind in of.kinds}
    lineage = Lineage.of(spec, resolved=resolved)
    report = _report(of, [*samplers, *scorers])
    prompts = Made(of.run.partition("prompts", of.name), lineage, of.prompts.tables, report)
    return [prompts, *samplers, *scorers, *given]


def _sampler(of: Collected, kind: str, known: dict[int, str]) -> Made:
    collector = of.responses[kind]
    partition = of.run.partition("candidates", of.name if kind == "all" else f"{of.name}-{kind}")
    # The name is part of what it is: two sources with the same responses are two samplers.
    lineage = Lineage.of(of.spec, resolved={"sampler": partition.name, "answers": collector.content})
    kept = len(collector) - len(known)
    dropped = nonzero({"duplicate": collector.duplicates, "in_the_run": len(known)})
    report = Report(
        step="ingest", unit="candidates", rows_in=kept + sum(dropped.values()), rows_out=kept, dropped=dropped
    )
    return Made(partition, lineage, lambda: collector.candidates(lineage.fingerprint, known), report)


def _scorers(of: Collected, samplers: Sequence[Made]) -> list[Made]:
    made = []
    for number, (named, column) in enumerate(of.spec.score_columns):
        partition = of.run.partition("scores", named or f"{of.name}-{name_of(column)}")
        collectors = [(of.responses[kind], one) for kind, one in zip(of.kinds, samplers, strict=True)]
        content = ids.digest([one.score_content(number) for one, _ in collectors])
        lineage = Lineage.of(of.spec, resolved={"source": of.name, "column": column, "scores": content})
        rows = sum(len(one) for one, _ in collectors)
        missing = sum(one.missing(number) for one, _ in collectors)
        if missing == rows:
            raise InputError(f"no response has a number in {column!r}. {WHERE}")
        figures = {"scored": rows - missing, **nonzero({"not_given": missing})}
        report = Report(step="ingest", unit="candidates", rows_in=rows, rows_out=rows, figures=figures)
        made.append(Made(partition, lineage, _scored(collectors, number), report))
    return made


def _known(of: Collected) -> dict[int, str]:
    """Return the responses that are candidates of the run already, by their numbers here."""
    collector = of.responses.get("all")
    if collector is None or not of.run.partitions("candidates"):
        return {}
    wanted = {hashed: number for number, hashed in enumerate(collector.texts)}
    known: dict[int, str] = {}
    own = of.run.partition("candidates", of.name)
    for sampler in of.run.all("candidates", partial=True):
        if sampler.path == own.path:
            continue
        for part in sampler.checked_parts():
            rows = CANDIDATES.read(part, ["candidate_id", "prompt_id", "text", "message"])
            for candidate, prompt, text, message in zip(
                *(rows[name].to_pylist() for name in rows.column_names), strict=True
            ):
                number = wanted.get(text_of_prompt(prompt, text or "", message))
                if number is not None:
                    known.setdefault(number, candidate)
    return known


def _table(of: Collected, given: Given, samplers: Sequence[Made], known: dict[int, str]) -> Made:
    """Return the requested table."""
    spec, collector = of.spec, of.responses.get("all")
    fingerprint = samplers[0].lineage.fingerprint if samplers else ""
    given.settle(spec)

    def prompt_ids() -> Iterator[str]:
        return collector.prompt_ids() if collector is not None else iter(())

    def tables() -> Iterator[pa.Table]:
        names = collector.names(fingerprint) if collector is not None else []
        for number, candidate in known.items():
            names[number] = candidate
        return given.tables([*names, *reversed(of.ids.names)], prompt_ids, of.name)

    lineage = Lineage.of(spec, resolved={"source": of.name, spec.kind: _content_of(tables)})
    return Made(of.run.partition(spec.kind, of.name), lineage, tables, _report_of(of, given))


def _report(of: Collected, beside: Sequence[Made]) -> Report:
    """Build the Report of the prompts: the outcome of each row."""
    bad = of.reader.dropped
    again = "duplicate" if of.spec.kind == "prompts" else "same_prompt"
    dropped = nonzero(bad + Counter({again: of.prompts.rows_again}))
    return Report(
        step="ingest",
        unit="rows",
        rows_in=len(of.prompts) + sum(dropped.values()),
        rows_out=len(of.prompts),
        dropped=dropped,
        figures={**_figures(of), **of.prompts.splits(), **_response_figures(of, beside)},
    ).timed(time.monotonic() - of.began)


def _report_of(of: Collected, given: Given) -> Report:
    """Build the Report of a given table: the outcome of its statements."""
    dropped = nonzero(Counter(given.dropped) + of.reader.dropped)
    candidates = sum(len(one) for one in of.responses.values())
    counts = {"prompts": len(of.prompts), "responses": candidates}
    return Report(
        step="ingest",
        unit=UNITS[of.spec.kind],
        rows_in=given.said + of.reader.dropped.total(),
        rows_out=given.kept,
        dropped=dropped,
        figures={**_figures(of), **nonzero(counts), **of.prompts.splits(), **given.figures()},
    ).timed(time.monotonic() - of.began)


def _figures(of: Collected) -> dict[str, Any]:
    reader = of.reader
    names = list(dict.fromkeys(one.layout for one in reader.layouts.values()))
    figures: dict[str, Any] = {"layout": ", ".join(names)}
    figures |= nonzero({"lone_surrogates": reader.surrogates})
    figures |= nonzero({name.replace(" ", "_"): count for name, count in reader.notes.items()})
    if reader.kept:
        figures["metadata"] = ", ".join(+reader.kept)
    if reader.not_kept:
        figures["not_kept"] = ", ".join(f"{name} {count}" for name, count in reader.not_kept.items())
    conflicts = {name: of.prompts.counts[name] for name in ("metadata_not_kept", "split_conflicts")}
    conflicts |= _conflicts(of)
    return figures | nonzero(conflicts)


def _conflicts(of: Collected) -> dict[str, int]:
    """Prompts that other sources have with another reference: that of the first ingested source is used."""
    others = [one for one in of.run.partitions("prompts") if one.name != of.name and one.state == "finished"]
    own: dict[str, str] = {}
    if others:
        for rows in of.prompts.tables():
            pairs = zip(rows["prompt_id"].to_pylist(), rows["reference"].to_pylist(), strict=True)
            own |= {key: reference for key, reference in pairs if reference is not None}
    conflicts = {
        key
        for source in (others if own else ())
        for rows in [source.read(["prompt_id", "reference"])]
        for key, reference in zip(rows["prompt_id"].to_pylist(), rows["reference"].to_pylist(), strict=True)
        if reference is not None and own.get(key, reference) != reference
    }
    return {"other_references_in_the_run": len(conflicts)}


def _response_figures(of: Collected, beside: Sequence[Made]) -> dict[str, int]:
    if of.spec.kind != "candidates":
        return {}
    scored = {
        f"scored_by_{one.partition.name}": one.report.figures["scored"]
        for one in beside
        if one.partition.table is SCORES
    }
    others = {
        "duplicate_responses": sum(one.duplicates for one in of.responses.values()),
        "rows_without_responses": of.counts["rows_without_responses"],
        "scores_not_kept": sum(one.scores_not_kept for one in of.responses.values()),
    }
    return {kind: len(of.responses[kind]) for kind in of.kinds} | scored | nonzero(others)


def _scored(collectors: Sequence[tuple[ResponseCollector, Made]], number: int) -> Tables:
    """Yield the scores of a column, a prompt's rows together; samplers hold the texts, this table only small values."""

    def tables() -> Iterator[pa.Table]:
        found = [
            SCORES.from_rows(rows)
            for collector, made in collectors
            for rows in collector.scored(number, made.partition.name, made.lineage.fingerprint)
        ]
        scores = pa.concat_tables(found)
        prompt = scores["prompt_id"].combine_chunks().dictionary_encode().indices  # numbered as they first appear
        order = np.argsort(prompt.to_numpy(), kind="stable")
        for start in range(0, len(order), PART_ROWS):
            yield scores.take(pa.array(order[start : start + PART_ROWS]))

    return tables


def _content_of(tables: Tables) -> str:
    content = Content()
    for rows in tables():
        for row in zip(*(rows[name].to_pylist() for name in rows.column_names), strict=True):
            content.add(*row)
    return content.id
