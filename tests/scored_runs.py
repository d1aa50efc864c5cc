"""Runs with scores that a test says, written as sample and rank leave them; and pools of them without a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from prefdata import ids
from prefdata.selections.select import select_from
from prefdata.specs import SelectSpec, Spec
from prefdata.storage.queries import candidate_files
from prefdata.storage.report import Report, nonzero
from prefdata.storage.run import Lineage, Run
from prefdata.storage.schemas import FOLLOWING, SCORES, TABLES

DONE = Report(step="made", unit="rows", rows_in=0, rows_out=0)
DEFAULTS: dict[pa.DataType, Any] = {pa.int32(): 0, pa.int64(): 0, pa.string(): "said", pa.float64(): 0.0}


class Made(Spec):
    """What made the tables of these runs."""

    step = "made"


def answer(prompt: str, index: int, score: float | None, *, sampler: str = "policy", **more: Any) -> dict[str, Any]:
    """A scored candidate: `text`, `round`, `finish_reason`, `law` (the sampler's own unless given) may be said."""
    law = more.pop("law", sampler)
    said = {"text": f"{prompt} {sampler} {index}", "round": 0, "finish_reason": "stop", **more}
    return {
        "candidate_id": ids.digest([prompt, law, index]),
        "prompt_id": ids.digest(prompt),
        "prompt": prompt,
        "sample_index": index,
        "sampler": sampler,
        "law": law,
        "score": score,
        **said,
    }


def scored_run(path: Path, answers: Sequence[dict[str, Any]], *, parts: int = 1) -> Run:
    """A run with these candidates, their prompts, and their scores by `reward`; each partition in so many parts."""
    run = Run(path)
    prompts = {one["prompt_id"]: one["prompt"] for one in answers}
    rows = [
        {"prompt_id": key, "messages": [{"role": "user", "content": text}], "split": "train"}
        for key, text in prompts.items()
    ]
    write(run, "prompts", "made", rows)
    for sampler in sorted({one["sampler"] for one in answers}):
        write(run, "candidates", sampler, [one for one in answers if one["sampler"] == sampler], parts=parts)
    scores = {one["candidate_id"]: one for one in answers}
    write(run, "scores", "reward", list(scores.values()), parts=parts)
    return run


def score_of(candidate: dict[str, Any], sampler: str, score: float | None, **more: Any) -> dict[str, Any]:
    """The row of scores of a row of candidates; without a score the reason is nan."""
    text = candidate["text"]
    return {
        **{name: candidate.get(name) for name in ("candidate_id", "prompt_id", *SCORES.copied)},
        **{"sampler": sampler, "text_key": ids.text_key(text), "chars": ids.chars(text)},
        **{"score": score, "reason": "nan" if score is None else None, "text_hash": ids.text_hash(text or "")},
        **more,
    }


def write(
    run: Run, table: str, name: str, rows: Sequence[dict[str, Any]], *, parts: int = 1, done: bool = True
) -> None:
    """Replace a partition by these rows; what its contract needs and they lack has a default."""
    schema = TABLES[table].schema
    default = {field.name: None if field.nullable else DEFAULTS.get(field.type, []) for field in schema}
    if "text_key" in schema.names:
        rows = [{**{of: how(row.get("text")) for of, how in FOLLOWING.items()}, **row} for row in rows]
    whole = [{name: row.get(name, default[name]) for name in schema.names} for row in rows]
    partition = run.partition(table, name)
    law = {"law": rows[0].get("law", name)} if rows and table == "candidates" else {}
    partition.begin(Lineage.of(Made(), resolved=law), replace=True)
    each = max(1, -(-len(whole) // parts))
    for start in range(0, len(whole), each):
        partition.append(TABLES[table].from_rows(whole[start : start + each]))
    if done:
        partition.finish(DONE, candidate_files(run) if table == "scores" else {})


def pool(
    scores: Sequence[Sequence[float | None]], texts: Sequence[Sequence[str]] | None = None, **columns: Sequence[Any]
) -> pl.DataFrame:
    """A pool (prefdata.scored.reader); the i-th answer of the p-th prompt has the name p-i. `columns` replaces some."""
    rows = [
        {
            "candidate_id": ids.digest(f"{p}-{i}"),
            "prompt_id": f"{p:020x}",
            "sample_index": i,
            "score": score,
            "sampler": "policy",
            "round": 0,
            "text": texts[p][i] if texts else f"{p}-{i}",
            "text_key": ids.text_key(texts[p][i] if texts else f"{p}-{i}"),
            "chars": ids.chars(texts[p][i] if texts else f"{p}-{i}"),
            "excluded": None if score is not None and abs(score) < float("inf") else "no_score",
            "finish_reason": "stop",
            "name": f"{p}-{i}",
        }
        for p, row in enumerate(scores)
        for i, score in enumerate(row)
    ]
    frame = pl.DataFrame(rows, schema_overrides={"score": pl.Float64, "excluded": pl.String, "text_key": pl.Int64})
    return frame.with_columns(pl.Series(name, list(values)) for name, values in columns.items())


def kept(frame: pl.DataFrame, **settings: Any) -> tuple[list[str], dict[str, int]]:
    """The names of what is selected from a pool, and what was dropped by reason."""
    rows, account = select_from(frame, SelectSpec(**settings))
    rows = rows.sort("prompt_id", maintain_order=True)
    names = rows.join(frame, on="candidate_id", maintain_order="left")["name"].to_list()
    return names, nonzero(account.dropped)
