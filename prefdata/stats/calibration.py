"""Corrected scores: a temperature fitted on labelled pairs, and the effect of length removed.

Pairs are given by their margins, score of the chosen minus score of the rejected. Lengths are in any one unit
(characters in the literature below). Everything here is a pure function on arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefdata.errors import InputError

Array = NDArray[np.float64]

TEMPERATURE_RANGE = 100.0
"""A fitted temperature is within this factor of the margins' root mean square; see `fit_temperature`."""


@dataclass(frozen=True, slots=True)
class Temperature:
    """A fitted temperature: P(chosen beats rejected) = sigmoid(margin / value).

    Attributes:
        value: the temperature; scores divided by it are calibrated.
        bound: `low` where every pair is ranked right, so that no temperature is too small; `high` where the scores tell
            nothing of the labels, so that none is too large; None where there is a minimum.
        pairs: how many pairs it was fitted on.
    """

    value: float
    bound: str | None
    pairs: int


@dataclass(frozen=True, slots=True)
class Figures:
    """How good scores are on labelled pairs.

    Attributes:
        pairs: how many.
        accuracy: share of pairs whose chosen has the higher score, a tie as half.
        ties: pairs of equal scores.
        ece: expected calibration error of sigmoid(margin / temperature), ten bins.
        log_loss: mean -ln sigmoid(margin / temperature), in nats.
        length_correlation: Pearson's, of score and length over all responses; None where either never varies.
        margin_length_correlation: Pearson's, of the margin and the difference of lengths; None likewise.
        longer_wins: share of pairs whose chosen is the longer, equal lengths as half: a baseline for `accuracy`.
    """

    pairs: int
    accuracy: float
    ties: int
    ece: float
    log_loss: float
    length_correlation: float | None
    margin_length_correlation: float | None
    longer_wins: float


def fit_temperature(margins: Array, probabilities: Array | None = None) -> Temperature:
    """Fit the temperature that makes labelled pairs likeliest; no bias, so that P(A beats B) + P(B beats A) stays 1.

    The log-likelihood is concave in 1/temperature; its slope's zero is found by bisection between RMS/100 and
    RMS*100, RMS the margins' root mean square, so that the fit is as scale-free as the scores are.

    Args:
        margins: shape (pairs,).
        probabilities: of the chosen being better, where labels are soft or some are ties (0.5); 1 unless given.

    Raises:
        InputError: there are no pairs, a margin is not finite, or all are 0.
    """
    _check(margins)
    largest = float(np.abs(margins).max())
    if largest == 0:
        raise InputError("no temperature can be fitted: every labelled pair has equal scores.")
    size = largest * float(np.sqrt(np.mean((margins / largest) ** 2)))  # nothing is squared that would overflow
    unit, wanted = margins / size, np.ones_like(margins) if probabilities is None else probabilities

    def slope(log_inverse: float) -> float:
        inverse = np.exp(log_inverse)
        return float(np.sum(unit * (wanted - sigmoid(inverse * unit))))

    low, high = -np.log(TEMPERATURE_RANGE), np.log(TEMPERATURE_RANGE)
    if slope(low) <= 0:
        return Temperature(size * TEMPERATURE_RANGE, "high", len(margins))
    if slope(high) >= 0:
        return Temperature(size / TEMPERATURE_RANGE, "low", len(margins))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return Temperature(size * float(np.exp(-(low + high) / 2)), None, len(margins))


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), without overflow at either end."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def accuracy(margins: Array) -> float:
    """Share of pairs whose chosen has the higher score, a tie as half."""
    return float(np.mean((np.sign(margins) + 1) / 2))


def reliability(confidence: Array, correct: Array, bins: int = 10) -> pl.DataFrame:
    """Return the rows of a reliability diagram: one for each bin of equal width on [0, 1] that holds any pairs.

    Args:
        confidence: in [0, 1], shape (pairs,); of a margin d it is sigmoid(|d|).
        correct: 1 or 0 (a tie 0.5), shape (pairs,).
        bins: how many; a bin holds its lower edge, the last one also 1.

    Returns:
        Columns low, high, pairs, confidence (mean), accuracy (mean of correct).
    """
    bin_of = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    frame = pl.DataFrame({"bin": bin_of, "confidence": confidence, "correct": correct})
    means = [pl.len().cast(pl.Int64).alias("pairs"), pl.col("confidence").mean(), pl.col("correct").mean()]
    edges = [(pl.col("bin") / bins).alias("low"), ((pl.col("bin") + 1) / bins).alias("high")]
    rows = frame.group_by("bin").agg(means).sort("bin")
    return rows.select(*edges, "pairs", "confidence", pl.col("correct").alias("accuracy"))


def calibration_error(confidence: Array, correct: Array, bins: int = 10) -> float:
    """Return the expected calibration error: the mean |accuracy - confidence| of `reliability`'s bins, by pairs."""
    table = reliability(confidence, correct, bins)
    gaps = (table["accuracy"] - table["confidence"]).abs() * table["pairs"]
    return float(gaps.sum()) / len(confidence)


def figures(
    chosen: Array, rejected: Array, chosen_lengths: Array, rejected_lengths: Array, temperature: float = 1.0
) -> Figures:
    """How good scores are on labelled pairs, for a table of before and after; all arrays have shape (pairs,).

    Raises:
        InputError: there are no pairs, or a score is not finite.
    """
    margins = chosen - rejected
    _check(margins)
    scaled = margins / temperature
    return Figures(
        pairs=len(margins),
        accuracy=accuracy(margins),
        ties=int(np.sum(margins == 0)),
        ece=calibration_error(sigmoid(np.abs(scaled)), (np.sign(margins) + 1) / 2),
        log_loss=float(np.mean(np.logaddexp(0, -scaled))),
        length_correlation=correlation(
            np.concatenate([chosen, rejected]), np.concatenate([chosen_lengths, rejected_lengths])
        ),
        margin_length_correlation=correlation(margins, chosen_lengths - rejected_lengths),
        longer_wins=accuracy(chosen_lengths - rejected_lengths),
    )


def correlation(a: Array, b: Array) -> float | None:
    """Pearson's correlation of two arrays of the same shape; None where either does not vary."""
    x, y = (v - v.mean() for v in (a, b)) if len(a) else (a, b)
    flat = [np.abs(d).max(initial=0) <= 1e-12 * np.abs(v).max(initial=0) for d, v in ((x, a), (y, b))]
    if any(flat):
        return None
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def length_penalty(scores: Array, lengths: Array, weight: float = 0.001) -> Array:
    """Scores minus `weight` for each unit of length, shape (rows,)."""
    return scores - weight * lengths


def pair_window(lengths: Array, prompts: pl.Series) -> float:
    """Return RC-Mean's half-width: a quarter of the mean |difference of lengths| of a pair (2409.17407).

    A pair is any two responses to one prompt; where no prompt has two, any two responses.

    Args:
        lengths: shape (rows,).
        prompts: the prompt of each response, (rows,).
    """
    alone = not prompts.is_duplicated().any()
    frame = pl.DataFrame({"prompt": pl.repeat(0, len(prompts), eager=True) if alone else prompts, "length": lengths})
    # Of n sorted lengths the i-th (from 1) is the larger of i - 1 pairs and the smaller of n - i.
    place, size = (f.over("prompt") for f in (pl.col("length").rank("ordinal"), pl.len()))
    frame = frame.select("length", place=place.cast(pl.Float64), size=size.cast(pl.Float64))
    total, pairs = frame.select(
        total=((2 * pl.col("place") - 1 - pl.col("size")) * pl.col("length")).sum(),
        pairs=(pl.col("size") - 1).sum() / 2,
    ).row(0)
    return float(total / pairs) / 4 if pairs else 0.0


def mean_bias(scores: Array, lengths: Array, at: Array, *, window: float, least: int = 20) -> Array:
    """RC-Mean's bias (2409.17407): the mean score of the responses whose length is within `window` of each of `at`.

    Both ends of the window count. (The authors' code cuts its slice one short at the end and fails beyond the longest.)

    Args:
        scores: shape (rows,).
        lengths: shape (rows,).
        at: lengths at which the bias is computed, shape (points,).
        window: half of its width; see `pair_window`.
        least: minimum number of responses in the window.

    Returns:
        The bias, shape (points,); NaN where too few responses are in the window.
    """
    order = np.argsort(lengths, kind="stable")
    ranked = lengths[order]
    base = scores.mean() if len(scores) else 0.0  # summed around the mean: no digits lost in long prefix sums
    sums = np.concatenate([[0.0], np.cumsum(scores[order] - base)])
    first, last = np.searchsorted(ranked, at - window, "left"), np.searchsorted(ranked, at + window, "right")
    count = last - first
    return np.where(count >= max(least, 1), base + (sums[last] - sums[first]) / np.maximum(count, 1), np.nan)


def lowess_bias(
    scores: Array, lengths: Array, at: Array, *, fraction: float = 1.0, passes: int = 3, anchors: int = 256
) -> Array:
    """RC-LWR's bias (2409.17407): a robust locally weighted regression of score on length (Cleveland 1979).

    At each of at most `anchors` lengths a line is fitted to the nearest `fraction` of the responses with tricube
    weights, then again `passes` times with bisquare weights of the residuals. Between anchors the curve is
    interpolated, beyond the shortest and the longest it is level. (The authors' code takes the value of the nearest
    length below, a step, and fails beyond the longest.)

    Args:
        scores: shape (rows,).
        lengths: shape (rows,).
        at: lengths at which the bias is computed, shape (points,).
        fraction: of the responses that each line sees, in (0, 1].
        passes: of robust reweighting.
        anchors: the maximum number of lengths at which a line is fitted; spread evenly over the distinct lengths.

    Returns:
        The bias, shape (points,).

    Raises:
        InputError: there are no scores, one is not finite, or `fraction` is not in (0, 1].
    """
    _check(scores)
    if not 0 < fraction <= 1:
        raise InputError(f"the fraction of responses that a length is compared with is in (0, 1], not {fraction:g}.")
    distinct, group = np.unique(lengths, return_inverse=True)
    ends = np.unique(np.linspace(0, len(distinct) - 1, min(anchors, len(distinct))).round().astype(np.int64))
    points = distinct[ends]
    radius = _radius(np.sort(lengths), points, max(1, int(fraction * len(lengths) + 1e-10)))
    trust = np.ones_like(scores)
    for again in range(passes + 1):
        weight, weighted = _sums(group, trust), _sums(group, trust * scores)
        curve = _local_lines(distinct, weight, weighted, points, radius)
        if again < passes:
            residual = np.abs(scores - np.interp(lengths, points, curve))
            scale = 6 * np.median(residual)
            if scale <= 1e-12 * np.abs(scores).max(initial=0):
                break  # more than half are on the curve: it cannot be made more robust
            trust = np.clip(1 - (residual / scale) ** 2, 0, None) ** 2
    bias: Array = np.interp(at, points, curve)
    return bias


def _sums(group: NDArray[np.int64], values: Array) -> Array:
    return np.bincount(group, values).astype(np.float64)


def _radius(ranked: Array, points: Array, nearest: int) -> Array:
    """Return the distance of each point's `nearest`-th neighbour among the sorted lengths, shape (points,)."""
    # Of all runs of `nearest` neighbours in order, the best is where its two ends are about equally far.
    left, right = ranked[: len(ranked) - nearest + 1], ranked[nearest - 1 :]
    run = np.searchsorted(left + right, 2 * points)
    far = [
        np.maximum(points - left[i], right[i] - points)
        for i in (np.clip(run - 1, 0, len(left) - 1), np.clip(run, 0, len(left) - 1))
    ]
    nearest_end: Array = np.minimum(*far)
    return nearest_end


def _local_lines(x: Array, weight: Array, weighted: Array, points: Array, radius: Array) -> Array:
    """Return the value at each point of the line fitted around it, shape (points,).

    Responses of one length count together: `weight` sums their weights, `weighted` weights times scores, shape (x,).
    """
    curve = np.empty_like(points)
    for i, (point, reach) in enumerate(zip(points, radius, strict=True)):
        off = x - point
        near = np.clip(1 - (np.abs(off) / reach) ** 3, 0, None) ** 3 if reach > 0 else (off == 0).astype(np.float64)
        w, y = near * weight, near * weighted
        total = w.sum()
        if total <= 0:  # every neighbour is an outlier: interpolated from the points around it
            curve[i] = np.nan
            continue
        mean_x, mean_y = w @ off / total, y.sum() / total
        spread = w @ (off - mean_x) ** 2
        slope = (y @ (off - mean_x)) / spread if spread > 1e-12 * total * max(reach, 1e-300) ** 2 else 0.0
        curve[i] = mean_y - slope * mean_x
    known = np.isfinite(curve)
    filled: Array = np.interp(points, points[known], curve[known])
    return filled


def _check(values: Array) -> None:
    if len(values) == 0:
        raise InputError("there is nothing to calibrate with: no labelled pair has two scores.")
    if not np.isfinite(values).all():
        raise InputError("scores to calibrate with must be finite: leave out the responses that have none.")
