"""The candidates behind curves: read from a run and grouped; prompts with too few are left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefdata.errors import InputError
from prefdata.keyed_random import id_prefix64
from prefdata.scored.filters import LARGEST_SCORE
from prefdata.stats import ragged
from prefdata.storage.queries import chosen_samplers
from prefdata.storage.report import Report, nonzero
from prefdata.storage.run import Partition, Run
from prefdata.storage.schemas import read_part

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
By = Literal["sampler", "temperature", "none"]

BINS = 12
"""More temperatures than these are grouped by their first decimal."""

_BLOCK = 1_000_000
"""Scores processed at a time."""

_SETTINGS = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0}
"""Settings at which temperature 1 samples from the model's own distribution: the table's log-probabilities."""


@dataclass(frozen=True)
class CandidateGroup:
    """The candidates of one group, prompt after prompt: `sizes` of P prompts, and values of all their R candidates.

    `known` is the N of the group: every prompt has that many candidates or more. `values` may have gold, tokens (of the
    response), prompt_tokens and logprob beside score; a column is there only where no candidate lacks it.
    """

    group: str
    temperature: float | None
    known: int
    prompts: pl.Series
    sizes: Ints
    values: Mapping[str, Floats]

    def blocks(self, block_of: Ints) -> Iterator[tuple[Ints, dict[str, Floats]]]:
        """Prompts with equally many candidates: their blocks (P,), and their values, each (P, candidates)."""
        for block in ragged.blocks(self.sizes, exact=True, max_rows=_BLOCK):
            yield block_of[block.prompts], {name: block.scatter(column, 0.0) for name, column in self.values.items()}

    def of(self, prompts: pl.Series) -> CandidateGroup:
        """Return the group with some of its prompts only."""
        kept = self.prompts.is_in(prompts.implode()).to_numpy()
        rows = np.repeat(kept, self.sizes)
        values = {name: column[rows] for name, column in self.values.items()}
        return replace(self, prompts=self.prompts.filter(pl.Series(kept)), sizes=self.sizes[kept], values=values)


def read(
    run: Run, scorer: str | None, gold: str | None, samplers: tuple[str, ...], partial: bool
) -> tuple[pl.DataFrame, str]:
    """Read the scored candidates with the columns that the curves need, some seventy bytes each, and the scorer's name.

    Raises:
        NotReady, UsageError: scores or samplers do not exist, or are unfinished.
        InputError: scores of candidates that do not exist.
    """
    scores = run.only("scores", scorer, partial=partial)
    rows = _compact(scores, ["prompt_id", "score"]).join(_answers(run), on="candidate_id", how="left")
    if orphans := rows["sampler"].null_count():
        raise InputError(
            f"{orphans} of {rows.height} rows of {scores} score candidates that are not in {run}. "
            f"Run `prefdata rank` again: it keeps what fits and scores the rest."
        )
    if samplers:
        chosen_samplers(run, samplers)
        rows = rows.filter(pl.col("sampler").is_in(samplers))
    if gold is not None:
        truth = _compact(run.only("scores", gold, partial=partial), ["score"]).rename({"score": "gold"})
        rows = rows.join(truth, on="candidate_id", how="left")
    return rows, scores.name


def _answers(run: Run) -> pl.DataFrame:
    """Read the candidates of all samplers, without their texts."""
    wanted = ["sample_index", "finish_reason", "completion_tokens", "prompt_tokens", "logprob_sum", "temperature"]
    own = (pl.col("temperature") == 1) & pl.all_horizontal(pl.col(k).fill_null(v) == v for k, v in _SETTINGS.items())
    kept = (
        "candidate_id", "sample_index", "prompt_tokens", "temperature", pl.col("completion_tokens").alias("tokens"),
        (pl.col("finish_reason") == "length").fill_null(False).alias("truncated"),
        pl.when(own).then(pl.col("logprob_sum")).alias("logprob"),
    )  # fmt: skip
    there = chosen_samplers(run)
    names = pl.Enum([sampler.name for sampler in there])
    found = [_compact(one, [*wanted, *_SETTINGS], kept).with_columns(sampler=pl.lit(one.name, names)) for one in there]
    return pl.concat(found)


def _compact(partition: Partition, columns: list[str], kept: Sequence[str | pl.Expr] = (pl.all(),)) -> pl.DataFrame:
    """Columns of a partition, a row a candidate, ids as their first 64 bits; read part by part."""
    columns = ["candidate_id", *columns]
    none = pl.from_arrow(partition.table.empty().select(columns))
    assert isinstance(none, pl.DataFrame)
    parts = (read_part(part, columns) for part in partition.checked_parts())
    made = [_keyed(frame).select(kept) for frame in (none, *parts)]
    rows = pl.concat(made)
    return rows.unique("candidate_id", keep="last") if len(made) > 2 else rows


def _keyed(frame: pl.DataFrame) -> pl.DataFrame:
    there = [name for name in ("candidate_id", "prompt_id") if name in frame.columns]
    return frame.with_columns(pl.Series(name, id_prefix64(frame[name]), pl.UInt64) for name in there)


def group(
    candidates: pl.DataFrame, by: By, n: int | None, scorer: str, gold: str | None = None
) -> tuple[list[CandidateGroup], Report, pl.DataFrame]:
    """Group the candidates; return the groups, the report of all rows, and the rows that the groups hold.

    Args:
        candidates: candidate_id, prompt_id, sample_index, sampler, temperature, score, truncated; gold, tokens,
            prompt_tokens, logprob where there are such. The order of rows does not matter.
        by: as in `curves`.
        n: as in `curves`.
        scorer: the name of whose scores these are.
        gold: the name of whose gold scores they are.

    Raises:
        InputError: no candidate has a score, or a group has no prompt with `n`.
    """
    usable, dropped = _scored(candidates)
    if usable.height == 0:
        scored = dropped["no_gold_score"]
        which, whose = (f"the {scored} candidates that {scorer} scored", gold) if scored else (
            f"{candidates.height} candidates", scorer
        )  # fmt: skip
        raise InputError(f"none of {which} has a score by {whose} to draw a curve with. See why with rank.")
    keyed = usable.with_columns(group=_label(usable, by))
    counts = keyed.group_by("group", "prompt_id").len("count")
    known = {name: _known(name, mine["count"], n) for (name,), mine in counts.group_by("group")}
    enough = pl.concat(mine.filter(pl.col("count") >= known[name]) for (name,), mine in counts.group_by("group"))
    kept = keyed.join(enough.drop("count"), on=["group", "prompt_id"]).sort(
        "group", "prompt_id", "sample_index", "candidate_id"
    )
    dropped["of_prompts_with_fewer_than_n"] = keyed.height - kept.height
    report = Report(
        step="curves", unit="candidates", rows_in=candidates.height, rows_out=kept.height, dropped=nonzero(dropped),
        figures={
            "prompts": enough["prompt_id"].n_unique(),
            "prompts_left_out": candidates["prompt_id"].n_unique() - enough["prompt_id"].n_unique(),
            "truncated_answers": int(kept["truncated"].sum()),
        },
    )  # fmt: skip
    made = [_draws(str(name), mine, known[name]) for (name,), mine in kept.group_by("group", maintain_order=True)]
    return made, report, kept


def _scored(candidates: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the candidates whose scores are finite numbers, and counts of the others by reason."""
    there = candidates.drop_nulls("score")
    finite = there.filter(pl.col("score").is_finite())
    usable = finite.filter(pl.col("score").abs() <= LARGEST_SCORE)
    judged = usable.filter(pl.col("gold").abs() <= LARGEST_SCORE) if "gold" in usable.columns else usable
    dropped = {
        "no_score": candidates.height - there.height,
        "score_is_not_finite": there.height - finite.height,
        "score_is_too_large": finite.height - usable.height,
        "no_gold_score": usable.height - judged.height,
    }
    return judged, dropped


def _label(usable: pl.DataFrame, by: By) -> pl.Series:
    if by == "sampler":
        return usable["sampler"]
    if by == "none":
        return pl.repeat("all", usable.height, eager=True)
    heat = usable["temperature"]
    heat = heat.round(1) if heat.n_unique() > BINS else heat
    return ("T=" + heat.cast(pl.String)).fill_null("T unknown")


def _known(name: object, counts: pl.Series, n: int | None) -> int:
    """Return the N of a group: as asked, or what most prompts have (the larger of two that are as common)."""
    if n is None:
        return int(counts.mode().max())  # type: ignore[arg-type]
    most = int(counts.max())  # type: ignore[arg-type]
    if most < n:
        raise InputError(
            f"no prompt of {name} has {n} scored candidates; the maximum is {most}. Ask for --n {most}, or sample more."
        )
    return n


def _draws(name: str, mine: pl.DataFrame, known: int) -> CandidateGroup:
    sizes = mine.group_by("prompt_id", maintain_order=True).len()
    heat = mine["temperature"]
    values = {"score": mine["score"].to_numpy()}
    for column in ("gold", "tokens", "prompt_tokens", "logprob"):
        if column in mine.columns and mine[column].null_count() == 0:
            values[column] = mine[column].cast(pl.Float64).to_numpy()
    temperature = None if heat.null_count() or heat.n_unique() > 1 else float(heat[0])
    return CandidateGroup(
        name, temperature, known, sizes["prompt_id"], sizes["len"].to_numpy().astype(np.int64), values
    )


def read_texts(run: Run, wanted: pl.DataFrame) -> list[str]:
    """Read the texts of these candidates, in their order, part by part: no other texts are held in memory."""
    ids = wanted.select("candidate_id")
    found = [ids.clear().with_columns(text=pl.lit("", pl.String))]
    for sampler in chosen_samplers(run, tuple(wanted["sampler"].unique().cast(pl.String).sort())):
        for part in sampler.checked_parts():
            frame = _keyed(read_part(part, ["candidate_id", "text"]))
            found.append(frame.join(ids, on="candidate_id", how="semi"))
    texts = pl.concat(found).unique("candidate_id", keep="last")
    return ids.join(texts, on="candidate_id", how="left", maintain_order="left")["text"].fill_null("").to_list()
