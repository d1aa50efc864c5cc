"""What takes part in a selection: each candidate that does not is counted, for the first reason that holds.

left_out (no_score, where, refusal, too_short, too_long), truncated, earlier_round (`--pool latest`), other_sampler
(`--pool mix`), duplicate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefdata.draws import gumbels, uniforms
from prefdata.errors import UsageError, did_you_mean
from prefdata.grids import Standing
from prefdata.reports import by_reason
from prefdata.selections.rules import NOWHERE
from prefdata.specs import SelectSpec

Narrowing = Callable[[Standing], Standing]


def narrowed(pool: Standing, spec: SelectSpec, latest_round: int | None) -> tuple[Standing, Counter[str]]:
    """The candidates that take part, with `copies`, and how many do not, by reason."""
    dropped = by_reason(pool.rows["left_out"])
    answers = able(pool)
    for reason, kept in narrowings(spec, latest_round):
        before, answers = answers.rows.height, kept(answers)
        dropped[reason] = before - answers.rows.height
    return answers, dropped


def able(pool: Standing) -> Standing:
    """The candidates that are not left out, each of which is one copy."""
    return _only(pool, pl.col("left_out").is_null()).with_columns(
        copies=pl.lit(1, pl.Int32), copy_ids=pl.lit(None, pl.List(pl.String)), copies_apart=pl.lit(0, pl.Int32)
    )


def last_round(pools: Iterable[pl.DataFrame], spec: SelectSpec) -> int | None:
    """The last round that any candidate that takes part is of; None where none does."""
    part = pl.col("left_out").is_null()
    if spec.truncated == "drop":
        part &= pl.col("finish_reason").ne_missing("length")
    rounds = (pool.select(pl.col("round").filter(part).max()).item() for pool in pools)
    return max((one for one in rounds if one is not None), default=None)


def narrowings(spec: SelectSpec, latest_round: int | None) -> Iterator[tuple[str, Narrowing]]:
    """What a spec sets aside, one after the other: the reason, and how the rows that stay are found."""
    if spec.truncated == "drop":
        yield "truncated", lambda answers: _only(answers, pl.col("finish_reason").ne_missing("length"))
    if spec.pool == "latest":
        latest = pl.col("round").max() if latest_round is None else latest_round
        yield "earlier_round", lambda answers: _only(answers, pl.col("round") == latest)
    if spec.pool == "mix":
        yield "other_sampler", lambda answers: _only(answers, _of_the_drawn_sampler(answers.rows, spec))
    if spec.duplicates == "collapse":
        yield "duplicate", _collapsed


def _only(answers: Standing, fits: pl.Expr) -> Standing:
    mask = answers.rows.select(fits).to_series()
    return answers if mask.all() else answers.only(mask.fill_null(False).to_numpy())


def _collapsed(answers: Standing) -> Standing:
    repeated = np.flatnonzero(_with_repeats(answers))
    if not len(repeated):
        return answers
    copies = _copies(answers.rows, repeated)
    stands = np.ones(answers.rows.height, bool)
    stands[repeated] = False
    stands[copies["row"].to_numpy()] = True
    kept = answers.with_columns(row=pl.Series(np.arange(len(stands)))).only(stands)
    rows = kept.rows.join(copies, on="row", how="left", maintain_order="left", suffix="_found")
    found = {name: f"{name}_found" for name in copies.columns if name != "row"}
    said = [pl.coalesce(new, name).alias(name) for name, new in found.items()]
    return Standing(rows.with_columns(said).drop("row", *found.values()), kept.size)


def _copies(rows: pl.DataFrame, repeated: NDArray[np.int64]) -> pl.DataFrame:
    """The texts of the prompts that have some text twice: the `row` that stands for each, and what it stands for.

    It is of the earliest round, and there the earliest draw: an answer that comes again is not new. `copies` says how
    many have the text, `copy_ids` who the others are, and `copies_apart` how many of them score otherwise. `repeated`
    are the rows of those prompts.
    """
    some = rows.select("prompt_id", "candidate_id", "text_key", "round", "score")[repeated]
    some = some.with_columns(row=pl.Series(repeated)).sort("round", maintain_order=True)
    others = pl.col("candidate_id").slice(1)
    return (
        some.group_by("prompt_id", "text_key", maintain_order=True)
        .agg(
            row=pl.col("row").first(),
            copies=pl.len().cast(pl.Int32),
            copy_ids=others,
            copies_apart=(pl.col("score") != pl.col("score").first()).sum().cast(pl.Int32),
        )
        .select("row", "copies", pl.when(pl.col("copies") > 1).then("copy_ids").alias("copy_ids"), "copies_apart")
    )


def _with_repeats(answers: Standing) -> NDArray[np.bool_]:
    """Whether a row's prompt has some text twice."""
    keys = answers.column("text_key")
    found, row = np.zeros(len(keys), bool), np.arange(len(keys))
    for grid in answers.grids():
        there = grid.spread(row, -1) >= 0
        line = np.where(there, grid.spread(keys, 0), np.arange(grid.shape[1], dtype=keys.dtype))
        line.sort(axis=1)
        repeats = (line[:, 1:] == line[:, :-1]).any(axis=1)
        found[grid.numbers] = grid.flat(np.repeat(repeats[:, None], grid.shape[1], axis=1))
    return found


def scaled(rows: pl.DataFrame, spec: SelectSpec) -> NDArray[np.float64]:
    """The scores that a threshold is held against: as they are, or each prompt's from 0 (its worst) to 1 (its best).

    Where all of a prompt's answers score the same, none is better, and all are 0.
    """
    if spec.scale == "raw":
        return rows["score"].to_numpy()
    low, high = pl.col("score").min().over("prompt_id"), pl.col("score").max().over("prompt_id")
    share = pl.when(high > low).then((pl.col("score") - low) / (high - low)).otherwise(0.0)
    return rows.select(share).to_series().to_numpy()


def improved(rows: pl.DataFrame, least: float) -> NDArray[np.int64]:
    """Places: 1 for the answer that stands after the last round, nowhere for the others.

    The best of the first round stands; the best of each later one replaces it if it scores at least `least` more.
    """
    best = rows.with_row_index("row").sort(
        ["prompt_id", "round", "score", "row"], descending=[False, False, True, False]
    )
    best = best.unique(["prompt_id", "round"], keep="first", maintain_order=True).select(
        "row", "prompt_id", "round", "score"
    )
    standing = best.unique("prompt_id", keep="first", maintain_order=True)
    for number in best["round"].unique().sort():
        later = standing.join(best.filter(pl.col("round") == number), on="prompt_id", how="left", suffix="_new")
        better = (pl.col("round_new") > pl.col("round")) & (pl.col("score_new") >= pl.col("score") + least)
        new = [
            pl.when(better).then(pl.col(f"{c}_new")).otherwise(pl.col(c)).alias(c) for c in ("row", "round", "score")
        ]
        standing = later.select("prompt_id", *new)
    place = np.full(rows.height, NOWHERE, np.int64)
    place[standing["row"].to_numpy()] = 1
    return place


def quotas(spec: SelectSpec, samplers: list[str]) -> Mapping[str, float]:
    """The weight of each sampler in a mix; even where no quota was given.

    Raises:
        UsageError: a quota is not SAMPLER=WEIGHT, or names no sampler that there is.
    """
    if not spec.quota:
        return dict.fromkeys(samplers, 1.0)
    weights: dict[str, float] = {}
    for said in spec.quota:
        name, _, number = said.rpartition("=")
        weight = _number(number)
        if not name or name in weights or not 0 <= weight < float("inf"):
            raise UsageError(f"--quota {said!r} should be SAMPLER=WEIGHT, such as policy=0.5, once for each sampler.")
        weights[name] = weight
    if not any(weights.values()):
        raise UsageError("--quota: all weights are 0, so that no sampler could be drawn.")
    return weights


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def refuse_unknown(spec: SelectSpec, known: list[str]) -> None:
    """That quotas name samplers that there are.

    Raises:
        UsageError: one does not.
    """
    for name in quotas(spec, known):
        if name not in known:
            raise UsageError(f"--quota names a sampler {name!r} that there is not.{did_you_mean(name, known)}")


def _of_the_drawn_sampler(rows: pl.DataFrame, spec: SelectSpec) -> pl.Expr:
    """Whether a row is of the sampler that its prompt drew among those it has answers of, by weight."""
    weights = quotas(spec, sorted(rows["sampler"].unique()))
    there = rows.select("prompt_id", "sampler").unique(maintain_order=True)
    noisy = np.full(there.height, -np.inf)
    for name, weight in weights.items():
        some = np.flatnonzero((there["sampler"] == name).to_numpy())
        if weight > 0 and len(some):
            # The largest of log weight + Gumbel noise is one draw by weight; each prompt has a coin for each sampler.
            noisy[some] = np.log(weight) + gumbels(uniforms(there["prompt_id"][some], spec.seed, "mix", name))
    drawn = there.with_columns(noisy=pl.Series(noisy)).filter(pl.col("noisy").is_finite())
    drawn = drawn.sort("prompt_id", "noisy").unique("prompt_id", keep="last")
    mine = rows.select("prompt_id", "sampler").join(
        drawn.select("prompt_id", "sampler", drawn=pl.lit(True)), on=["prompt_id", "sampler"], how="left",
        maintain_order="left",
    )  # fmt: skip
    return pl.lit(mine["drawn"].fill_null(False))
