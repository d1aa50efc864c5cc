"""What is excluded from a selection: each candidate is counted for the first reason that holds.

excluded (no_score, where, refusal, too_short, too_long), truncated, earlier_round (`--pool latest`), other_sampler
(`--pool mix`), duplicate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefdata.errors import UsageError, did_you_mean
from prefdata.keyed_random import gumbels, uniforms
from prefdata.selections.rules import NOWHERE
from prefdata.specs import SelectSpec
from prefdata.stats.ragged import RaggedRows
from prefdata.storage.report import by_reason

Step = Callable[[RaggedRows], RaggedRows]

_NOT_TRUNCATED = pl.col("finish_reason").ne_missing("length")


def exclude(batch: RaggedRows, spec: SelectSpec, latest_round: int | None) -> tuple[RaggedRows, Counter[str]]:
    """Return the eligible candidates, with `copies`, and counts of the excluded ones by reason."""
    dropped = by_reason(batch.rows["excluded"])
    candidates = eligible(batch)
    for reason, step in exclusion_steps(spec, latest_round):
        before, candidates = candidates.rows.height, step(candidates)
        dropped[reason] = before - candidates.rows.height
    return candidates, dropped


def eligible(batch: RaggedRows) -> RaggedRows:
    """Return the candidates that no filter excludes; each counts as one copy."""
    return _only(batch, pl.col("excluded").is_null()).with_columns(
        copies=pl.lit(1, pl.Int32), copy_ids=pl.lit(None, pl.List(pl.String)), copies_score_differs=pl.lit(0, pl.Int32)
    )


def latest_round(batch: pl.DataFrame, spec: SelectSpec) -> int | None:
    """Return the latest round of the eligible candidates, or None if there are none."""
    takes_part = pl.col("excluded").is_null()
    if spec.truncated == "drop":
        takes_part &= _NOT_TRUNCATED
    return batch.select(pl.col("round").filter(takes_part).max()).item()  # type: ignore[no-any-return]


def exclusion_steps(spec: SelectSpec, latest_round: int | None) -> Iterator[tuple[str, Step]]:
    """Yield the exclusion steps of a spec in order: the reason, and how the remaining rows are found."""
    if spec.truncated == "drop":
        yield "truncated", lambda candidates: _only(candidates, _NOT_TRUNCATED)
    if spec.pool == "latest":
        latest = pl.col("round").max() if latest_round is None else latest_round
        yield "earlier_round", lambda candidates: _only(candidates, pl.col("round") == latest)
    if spec.pool == "mix":
        yield "other_sampler", lambda candidates: _only(candidates, _of_the_drawn_sampler(candidates.rows, spec))
    if spec.duplicates == "collapse":
        yield "duplicate", collapse_duplicates


def _only(candidates: RaggedRows, fits: pl.Expr) -> RaggedRows:
    mask = candidates.rows.select(fits).to_series()
    return candidates if mask.all() else candidates.filter(mask.fill_null(False).to_numpy())


def collapse_duplicates(candidates: RaggedRows) -> RaggedRows:
    """One candidate for each text of a prompt.

    It is of the earliest round, and there the earliest sample: a text that comes again is not new. `copies` says how
    many have the text, `copy_ids` which the others are, and `copies_score_differs` how many of them score otherwise.
    """
    repeated = np.flatnonzero(_in_prompts_with_repeats(candidates))
    if not len(repeated):
        return candidates
    texts = (
        candidates.rows.select("prompt_id", "candidate_id", "text_key", "round", "score")[repeated]
        .with_columns(row=pl.Series(repeated, dtype=pl.UInt32))
        .sort("round", maintain_order=True)
        .group_by("prompt_id", "text_key", maintain_order=True)
        .agg(
            pl.col("row").first(),
            copies=pl.len().cast(pl.Int32),
            copy_ids=pl.col("candidate_id").slice(1),
            copies_score_differs=(pl.col("score") != pl.col("score").first()).sum().cast(pl.Int32),
        )
        .drop("prompt_id", "text_key")
    )
    stays = np.ones(candidates.rows.height, bool)
    stays[repeated] = False
    stays[texts["row"].to_numpy()] = True
    rows = candidates.rows.drop(texts.columns[1:]).with_row_index("row")
    kept = RaggedRows(rows, candidates.sizes).filter(stays)
    joined = kept.rows.join(texts.filter(pl.col("copies") > 1), on="row", how="left", maintain_order="left").drop("row")
    return RaggedRows(
        joined.with_columns(pl.col("copies").fill_null(1), pl.col("copies_score_differs").fill_null(0)), kept.sizes
    )


def _in_prompts_with_repeats(candidates: RaggedRows) -> NDArray[np.bool_]:
    """Whether a row's prompt has some text twice, shape (rows,)."""
    keys = candidates.column("text_key")
    found, row = np.zeros(len(keys), bool), np.arange(len(keys))
    for block in candidates.blocks():
        present = block.scatter(row, -1) >= 0
        lines = np.where(present, block.scatter(keys, 0), np.arange(block.shape[1], dtype=keys.dtype))
        lines.sort(axis=1)
        repeats = (lines[:, 1:] == lines[:, :-1]).any(axis=1)
        found[block.rows] = block.gather(np.repeat(repeats[:, None], block.shape[1], axis=1))
    return found


def scale_scores(rows: pl.DataFrame, spec: SelectSpec) -> NDArray[np.float64]:
    """Return the scores that thresholds apply to: as they are, or scaled per prompt from 0 (worst) to 1 (best).

    Where all of a prompt's answers score the same, none is better, and all are 0.
    """
    if spec.scale == "raw":
        return rows["score"].to_numpy()
    low, high = pl.col("score").min().over("prompt_id"), pl.col("score").max().over("prompt_id")
    share = pl.when(high > low).then((pl.col("score") - low) / (high - low)).otherwise(0.0)
    return rows.select(share).to_series().to_numpy()


def best_over_rounds(rows: pl.DataFrame, least: float) -> NDArray[np.int64]:
    """Places: 1 for the best after the last round, nowhere for the others.

    It is the best of the first round until the best of a later one scores at least `least` more.
    """
    best = rows.with_row_index("row").sort(
        ["prompt_id", "round", "score", "row"], descending=[False, False, True, False]
    )
    best = best.unique(["prompt_id", "round"], keep="first", maintain_order=True).select(
        "row", "prompt_id", "round", "score"
    )
    kept = best.unique("prompt_id", keep="first", maintain_order=True)
    for number in best["round"].unique().sort():
        later = kept.join(best.filter(pl.col("round") == number), on="prompt_id", how="left", suffix="_new")
        better = (pl.col("round_new") > pl.col("round")) & (pl.col("score_new") >= pl.col("score") + least)
        new = [
            pl.when(better).then(pl.col(f"{c}_new")).otherwise(pl.col(c)).alias(c) for c in ("row", "round", "score")
        ]
        kept = later.select("prompt_id", *new)
    place = np.full(rows.height, NOWHERE, np.int64)
    place[kept["row"].to_numpy()] = 1
    return place


def parse_quotas(spec: SelectSpec, samplers: list[str]) -> Mapping[str, float]:
    """Return the weight of each sampler in a mix, also where no quota was given.

    Raises:
        UsageError: a quota is not SAMPLER=WEIGHT, or names no sampler that there is.
    """
    if not spec.quota:
        return dict.fromkeys(samplers, 1.0)
    weights: dict[str, float] = {}
    for quota in spec.quota:
        name, _, number = quota.rpartition("=")
        weight = _number(number)
        if not name or name in weights or not 0 <= weight < float("inf"):
            raise UsageError(f"--quota {quota!r} should be SAMPLER=WEIGHT, such as policy=0.5, once for each sampler.")
        weights[name] = weight
    if not any(weights.values()):
        raise UsageError("--quota: all weights are 0, so that no sampler could be drawn.")
    return weights


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def check_quotas(spec: SelectSpec, known: list[str]) -> None:
    """Check that quotas name existing samplers.

    Raises:
        UsageError: one does not.
    """
    for name in parse_quotas(spec, known):
        if name not in known:
            raise UsageError(f"--quota names a sampler {name!r} that there is not.{did_you_mean(name, known)}")


def _of_the_drawn_sampler(rows: pl.DataFrame, spec: SelectSpec) -> pl.Expr:
    """Whether a row is of the sampler that its prompt drew among those it has answers of, by weight."""
    weights = parse_quotas(spec, sorted(rows["sampler"].unique()))
    there = rows.select("prompt_id", "sampler").unique(maintain_order=True)
    noisy = np.full(there.height, -np.inf)
    for name, weight in weights.items():
        some = np.flatnonzero((there["sampler"] == name).to_numpy())
        if weight > 0 and len(some):
            # The largest of log weight + Gumbel noise is a choice by weight; a uniform for each prompt and sampler.
            noisy[some] = np.log(weight) + gumbels(uniforms(there["prompt_id"][some], spec.seed, "mix", name))
    drawn = there.with_columns(noisy=pl.Series(noisy)).filter(pl.col("noisy").is_finite())
    drawn = drawn.sort("prompt_id", "noisy").unique("prompt_id", keep="last")
    mine = rows.select("prompt_id", "sampler").join(
        drawn.select("prompt_id", "sampler", drawn=pl.lit(True)), on=["prompt_id", "sampler"], how="left",
        maintain_order="left",
    )  # fmt: skip
    return pl.lit(mine["drawn"].fill_null(False))
