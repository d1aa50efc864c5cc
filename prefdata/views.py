"""What several steps read: prompts of all sources, candidates of all samplers, scored candidates."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from prefdata.errors import InputError, UsageError, did_you_mean
from prefdata.store import Partition, Run
from prefdata.tables import TABLES, rows_id

WHITESPACE = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
"""What `str.strip` strips; Polars' own notion leaves some control characters."""


def blank(column: str) -> pl.Expr:
    """Whether a text is null, empty or whitespace alone: an empty answer, as everyone here means it."""
    return pl.col(column).fill_null("").str.strip_chars(WHITESPACE) == ""


@dataclass(frozen=True)
class Pool:
    """Scored candidates, one row each, and where they came from.

    `rows` has candidate_id, prompt_id, sample_index, sampler, finish_reason, score and text_hash; `parents` names the
    rows by content, so that a change elsewhere in the same partition changes nothing here.
    """

    rows: pl.DataFrame
    scorer: str
    partition: Partition
    parents: dict[str, str]


def read_pool(run: Run, scorer: str | None, samplers: tuple[str, ...], *, partial: bool = False) -> Pool:
    """The candidates that a scorer has scored, of some samplers or of all.

    Raises:
        NotReady: there are no scores, or they are unfinished and `partial` was not asked for.
        UsageError: an unknown sampler or scorer.
        InputError: scores of candidates that are not there.
    """
    partition = run.only("scores", scorer, partial=partial)
    scores = _frame(partition, ["candidate_id", "prompt_id", "score", "text_hash"])
    candidates = read_candidates(run, ["candidate_id", "sample_index", "finish_reason"])
    rows = scores.join(candidates, on="candidate_id", how="left")
    if orphans := rows["sampler"].null_count():
        first = rows.filter(pl.col("sampler").is_null())["candidate_id"][0]
        raise InputError(
            f"{orphans} of {rows.height} rows of {partition} score candidates that are not in {run} (first: {first}). "
            f"Run `prefdata rank` again: it keeps what fits and scores the rest."
        )
    if samplers:
        read_candidates(run, ["candidate_id"], samplers)
        rows = rows.filter(pl.col("sampler").is_in(samplers))
    used = rows.select("candidate_id", "score", "text_hash", "finish_reason")
    return Pool(rows, partition.name, partition, {str(partition): rows_id(used.to_arrow(), "candidate_id")})


def read_prompts(run: Run, split: str = "all", *, partial: bool = False) -> pl.DataFrame:
    """The prompts of all sources, each once, in a fixed order; of one split or of both.

    Raises:
        NotReady: there are none, or a source is unfinished and `partial` was not asked for.
        InputError: the split is empty.
    """
    names = TABLES["prompts"].schema.names
    prompts = pl.concat([_frame(source, names) for source in run.all("prompts", partial=partial)])
    prompts = prompts.unique("prompt_id", keep="first", maintain_order=True)
    chosen = prompts if split == "all" else prompts.filter(pl.col("split") == split)
    if chosen.height == 0:
        raise InputError(f"{run} has {prompts.height} prompts and none in the split {split!r}. Choose another --split.")
    return chosen


def read_candidates(run: Run, columns: list[str], samplers: tuple[str, ...] = ()) -> pl.DataFrame:
    """Columns of the candidates of some samplers or of all, with the column `sampler`; they may be unfinished.

    Raises:
        NotReady: there are no candidates.
        UsageError: there is no such sampler.
    """
    there = run.all("candidates", partial=True)
    known = [partition.name for partition in there]
    for name in samplers:
        if name not in known:
            raise UsageError(f"{run} has no candidates by a sampler {name!r}.{did_you_mean(name, known)}")
    chosen = [partition for partition in there if not samplers or partition.name in samplers]
    return pl.concat([_frame(partition, columns).with_columns(sampler=pl.lit(partition.name)) for partition in chosen])


def _frame(partition: Partition, columns: list[str]) -> pl.DataFrame:
    frame = pl.from_arrow(partition.read(columns))
    assert isinstance(frame, pl.DataFrame)
    return frame
