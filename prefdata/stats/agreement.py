"""Reliability of judges: self-consistency when the order is swapped, and agreement with each other.

Reads rows of the comparisons table: prompt_id, first_id, second_id, order, annotator, probability (that the first beats
the second, whichever was shown first). A verdict is which side of one half the probability is on; one half is a tie.
Rows without a probability are counted and left out. Several verdicts of one annotator on one presentation are averaged:
what has to be kept separate (two prompts of one judge, say) needs different names in `annotator`.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import polars as pl
from numpy.typing import NDArray

Counts = NDArray[np.float64]

_PAIR = ("prompt_id", "low", "high")


_COUNTS = ["comparisons", "null", "ties", "both_orders", "consistent"]


def self_consistency(comparisons: pl.DataFrame) -> pl.DataFrame:
    """Each annotator's self-consistency when two responses are shown in both orders; one row per annotator.

    Returns:
        annotator; `comparisons`; `null` among them; `ties`; `both_orders`: pairs judged in both orders; `consistent`:
        of those, the ones judged the same (two ties are the same); `consistency`: their share; `first_position_rate`:
        the share of verdicts, ties excluded, for the response that was shown first (0.5 for an unbiased judge).
        Shares of zero pairs are null.
    """
    counts = order_counts(comparisons)
    return counts.select(
        "annotator",
        *_COUNTS,
        _share("consistent", "both_orders").alias("consistency"),
        _share("first_position", "decided").alias("first_position_rate"),
    )


def order_counts(comparisons: pl.DataFrame) -> pl.DataFrame:
    """Return the counts behind the shares of `consistency`; those of disjoint sets of pairs can be added.

    Returns:
        annotator, comparisons, null, ties, both_orders, consistent as there; `decided`: verdicts that are not ties;
        `first_position`: those of them for the response that was shown first.
    """
    shown = _by_pair(comparisons)
    kept = shown.filter(pl.col("probability").is_not_null())
    orders = kept.group_by("annotator", *_PAIR, "low_shown_first").agg(pl.col("probability").mean())
    orders = orders.with_columns(_verdict().alias("verdict"))
    pairs = orders.group_by("annotator", *_PAIR).agg(
        (pl.len() == 2).alias("both_orders"),
        ((pl.len() == 2) & (pl.col("verdict").n_unique() == 1)).alias("consistent"),
    )
    decided = pl.col("verdict") != 0
    first = decided & ((pl.col("verdict") > 0) == pl.col("low_shown_first"))
    parts = [
        kept.group_by("annotator").agg(ties=(~decided).sum(), decided=decided.sum(), first_position=first.sum()),
        pairs.group_by("annotator").agg(pl.col("both_orders", "consistent").sum()),
    ]
    made = shown.group_by("annotator").agg(comparisons=pl.len(), null=pl.col("probability").null_count())
    for part in parts:
        made = made.join(part, on="annotator", how="left")
    counts = [*_COUNTS, "decided", "first_position"]
    return made.select("annotator", pl.col(counts).fill_null(0).cast(pl.Int64)).sort("annotator")


def _share(part: str, whole: str) -> pl.Expr:
    return pl.when(pl.col(whole) > 0).then(pl.col(part) / pl.col(whole))


def verdicts(comparisons: pl.DataFrame) -> pl.DataFrame:
    """Each annotator's verdict on each pair: 1, -1 or 0 (a tie), over all presentations.

    The probabilities of both orders are averaged, so that contradicting verdicts of a judge are a tie.

    Returns:
        prompt_id, low, high (the two responses' ids, sorted), annotator, verdict: 1 where low is better.
    """
    kept = _by_pair(comparisons).filter(pl.col("probability").is_not_null())
    orders = kept.group_by(*_PAIR, "annotator", "low_shown_first").agg(pl.col("probability").mean())
    both = orders.group_by(*_PAIR, "annotator").agg(pl.col("probability").mean())
    return both.select(*_PAIR, "annotator", _verdict().alias("verdict")).sort(*_PAIR, "annotator")


def pairwise_agreement(comparisons: pl.DataFrame) -> pl.DataFrame:
    """Agreement of each two annotators over the pairs that both judged.

    Returns:
        annotator, other, `pairs` that both judged, `agreement` (share of equal verdicts), `kappa` (Cohen's), `ac1`
        (Gwet's), over the verdicts first, second and tie; null where it is not defined.
    """
    judged = verdicts(comparisons)
    names = sorted(judged["annotator"].unique().to_list())
    by_name = {name: judged.filter(pl.col("annotator") == name).drop("annotator") for name in names}
    rows = []
    for one, other in combinations(names, 2):
        both = by_name[one].join(by_name[other], on=_PAIR, suffix="_other")
        counts = rating_counts(both.select("verdict", "verdict_other").to_numpy())
        a, b = both["verdict"].to_numpy(), both["verdict_other"].to_numpy()
        rows.append((one, other, both.height, raw_agreement(counts), cohen_kappa(a, b), gwet_ac1(counts)))
    numbers = dict.fromkeys(("agreement", "kappa", "ac1"), pl.Float64)
    schema = {"annotator": pl.String, "other": pl.String, "pairs": pl.Int64, **numbers}
    return pl.DataFrame(rows, schema=schema, orient="row")


def overall_agreement(comparisons: pl.DataFrame) -> dict[str, float | int | None]:
    """Agreement of all annotators at once.

    Returns:
        `pairs` with two verdicts or more, `agreement`, `fleiss_kappa`, `gwet_ac1`; None where not defined.
    """
    judged = verdicts(comparisons)
    wide = (
        judged.pivot("annotator", index=list(_PAIR), values="verdict").drop(_PAIR) if judged.height else pl.DataFrame()
    )
    counts = rating_counts(wide.cast(pl.Float64).fill_null(np.nan).to_numpy())
    return {
        "pairs": int((counts.sum(axis=1) >= 2).sum()),
        "agreement": raw_agreement(counts), "fleiss_kappa": fleiss_kappa(counts), "gwet_ac1": gwet_ac1(counts),
    }  # fmt: skip


def rating_counts(ratings: NDArray[np.float64] | NDArray[np.int8], categories: tuple[int, ...] = (-1, 0, 1)) -> Counts:
    """How many raters put each item into each category, shape (items, categories); NaN means no rating.

    Args:
        ratings: shape (items, raters).
        categories: all possible ones, also those never chosen: Gwet's AC1 depends on their number.
    """
    return np.stack([(ratings == category).sum(axis=1) for category in categories], axis=1).astype(np.float64)


def raw_agreement(counts: Counts) -> float | None:
    """Return the chance that two raters of one item agree, averaged over items with two or more ratings; or None."""
    raters = counts.sum(axis=1)
    twice = raters >= 2
    if not twice.any():
        return None
    agreeing = (counts * (counts - 1)).sum(axis=1)[twice]
    return float(np.mean(agreeing / (raters * (raters - 1))[twice]))


def cohen_kappa(a: NDArray[np.generic], b: NDArray[np.generic]) -> float | None:
    """Cohen's kappa of two raters of the same items, shape (items,): chance is the product of their own rates.

    None without items, and where both always give one and the same rating, so that chance agrees fully.
    """
    if len(a) == 0:
        return None
    observed = float(np.mean(a == b))
    chance = sum(float(np.mean(a == c) * np.mean(b == c)) for c in np.unique(np.concatenate([a, b])))
    return _beyond(observed, chance)


def fleiss_kappa(counts: Counts) -> float | None:
    """Fleiss' kappa from `rating_counts`: chance is the sum of the squared overall rates.

    Items with a single rating count in the rates only; items may have different numbers of ratings.
    """
    observed = raw_agreement(counts)
    if observed is None:
        return None
    rates = counts.sum(axis=0) / counts.sum()
    return _beyond(observed, float(rates @ rates))


def gwet_ac1(counts: Counts) -> float | None:
    """Gwet's AC1 from `rating_counts` (2008): chance is sum of rate (1 - rate) over the categories less one.

    It does not fall, as kappa does, where nearly all items belong to one category. Rates are means over items.
    """
    observed = raw_agreement(counts)
    if observed is None:
        return None
    rated = counts[counts.sum(axis=1) > 0]
    rates = (rated / rated.sum(axis=1, keepdims=True)).mean(axis=0)
    return _beyond(observed, float(np.sum(rates * (1 - rates)) / (counts.shape[1] - 1)))


def _beyond(observed: float, chance: float) -> float | None:
    return (observed - chance) / (1 - chance) if chance < 1 else None


def _by_pair(comparisons: pl.DataFrame) -> pl.DataFrame:
    """Each row with its ids sorted, the probability that the lower one is better, and whether it was shown first."""
    turned = pl.col("first_id") > pl.col("second_id")
    p = pl.col("probability").fill_nan(None)
    return comparisons.select(
        "prompt_id", "annotator",
        pl.min_horizontal("first_id", "second_id").alias("low"),
        pl.max_horizontal("first_id", "second_id").alias("high"),
        pl.when(turned).then(1 - p).otherwise(p).alias("probability"),
        ((pl.col("order") == "first-second") != turned).alias("low_shown_first"),
    ).with_columns(_verdict().alias("verdict"))  # fmt: skip


def _verdict() -> pl.Expr:
    # 1e-9: the mean of 0.3 and 0.7 is a tie in floating point too.
    off = pl.col("probability") - 0.5
    return pl.when(off.abs() < 1e-9).then(0).otherwise(off.sign()).cast(pl.Int8)
