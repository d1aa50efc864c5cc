"""Corrected scores: a temperature that is found again, errors counted by hand, length taken out and nothing else."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from prefdata.errors import InputError
from prefdata.scorers.derived import corrected
from prefdata.specs.rank import CalibrateSpec
from prefdata.stats.calibration import (
    accuracy,
    calibration_error,
    correlation,
    figures,
    fit_temperature,
    length_penalty,
    lowess_bias,
    mean_bias,
    pair_window,
    reliability,
    sigmoid,
)

MARGINS = st.lists(st.floats(-20, 20).filter(lambda d: abs(d) > 1e-3), min_size=3, max_size=40).map(np.array)


def test_temperature_is_found_again():
    """Labels drawn with P = sigmoid(d / 3) give a temperature near 3, and calibrated probabilities."""
    rng = np.random.default_rng(0)
    d = np.abs(rng.normal(0, 6, 40_000))
    margins = np.where(rng.random(len(d)) < sigmoid(d / 3), d, -d)
    found = fit_temperature(margins)
    assert found.value == pytest.approx(3, rel=0.03)
    assert (found.bound, found.pairs) == (None, 40_000)
    confidence, correct = sigmoid(np.abs(margins) / found.value), (margins > 0).astype(float)
    assert calibration_error(confidence, correct) < 0.01
    assert calibration_error(sigmoid(np.abs(margins)), correct) > 0.1


def test_temperature_by_hand():
    """Three pairs right and one wrong, all by 2: sigmoid(2 / T) = 3/4 where T = 2 / ln 3."""
    assert fit_temperature(np.array([2.0, 2, 2, -2])).value == pytest.approx(2 / math.log(3))
    soft = fit_temperature(np.array([2.0]), np.array([0.75]))
    assert soft.value == pytest.approx(2 / math.log(3))


@given(MARGINS)
def test_temperature_is_the_minimum_that_scipy_finds(margins):
    found = fit_temperature(margins)

    def loss(t):
        return float(np.mean(np.logaddexp(0, -margins / t)))

    if found.bound is None:
        other = optimize.minimize_scalar(
            lambda log_t: loss(math.exp(log_t)), bounds=(-12, 12), method="bounded", options={"xatol": 1e-9}
        )
        assert loss(found.value) <= other.fun + 1e-9
    else:
        wanted = "low" if (margins > 0).all() or found.value < 1 else "high"
        assert found.bound == wanted or margins.sum() > 0
        step = 0.99 if found.bound == "low" else 1.01
        assert loss(found.value * step) <= loss(found.value) + 1e-12


@given(MARGINS, st.floats(0.01, 100))
def test_temperature_scales_with_the_scores(margins, scale):
    here, there = fit_temperature(margins), fit_temperature(margins * scale)
    assert there.value == pytest.approx(here.value * scale, rel=1e-6)
    assert there.bound == here.bound


def test_separable_pairs_have_a_stated_bound():
    """Every pair right: the smaller the better, down to a hundredth of the root mean square (5 for 1 and 7)."""
    found = fit_temperature(np.array([1.0, 7.0]))
    assert (found.value, found.bound) == (pytest.approx(0.05), "low")
    found = fit_temperature(np.array([-1.0, -7.0]))
    assert (found.value, found.bound) == (pytest.approx(500), "high")


def test_nothing_to_fit():
    for margins, said in [([], "nothing to calibrate"), ([0.0, 0.0], "equal scores"), ([1.0, np.nan], "finite")]:
        with pytest.raises(InputError, match=said):
            fit_temperature(np.array(margins))


def test_expected_calibration_error():
    """Four bins of one pair: |1-.6| + |0-.7| + |1-.8| + |1-.9| = 1.4, over 4 pairs: .35."""
    confidence, correct = np.array([0.6, 0.7, 0.8, 0.9]), np.array([1.0, 0, 1, 1])
    assert calibration_error(confidence, correct) == pytest.approx(0.35)
    table = reliability(confidence, correct)
    assert table["pairs"].to_list() == [1, 1, 1, 1]
    assert table["low"].to_list() == pytest.approx([0.6, 0.7, 0.8, 0.9])
    assert table["accuracy"].to_list() == [1, 0, 1, 1]


def test_a_bin_holds_several_pairs_and_the_last_one_holds_1():
    """Bin [.9, 1]: confidences .9 and 1, one right: |.5 - .95| = .45. Two gaps of one sign in one bin do not cancel."""
    table = reliability(np.array([0.9, 1.0]), np.array([1.0, 0.0]))
    assert table.rows() == [(0.9, 1.0, 2, 0.95, 0.5)]
    assert calibration_error(np.array([0.9, 1.0]), np.array([1.0, 0.0])) == pytest.approx(0.45)


def test_accuracy_counts_a_tie_as_half():
    assert accuracy(np.array([1.0, -1.0, 0.0, 3.0])) == 0.625


@given(MARGINS, st.floats(0.1, 10))
def test_a_temperature_leaves_accuracy_alone(margins, temperature):
    assert accuracy(margins / temperature) == accuracy(margins)


def test_figures():
    """Margins 2, 0, -1, 1: accuracy 2.5/4; longer wins where 5>1, 2=2, 1<4, 3<9: 1.5/4."""
    chosen, rejected = np.array([3.0, 1, 0, 2]), np.array([1.0, 1, 1, 1])
    lengths = np.array([5.0, 2, 1, 3]), np.array([1.0, 2, 4, 9])
    found = figures(chosen, rejected, *lengths, temperature=2.0)
    assert (found.pairs, found.accuracy, found.ties, found.longer_wins) == (4, 0.625, 1, 0.375)
    assert found.log_loss == pytest.approx(np.mean(np.log1p(np.exp(-np.array([1, 0, -0.5, 0.5])))))
    both, all_lengths = np.concatenate([chosen, rejected]), np.concatenate(lengths)
    assert found.length_correlation == pytest.approx(np.corrcoef(both, all_lengths)[0, 1])
    assert found.margin_length_correlation == pytest.approx(np.corrcoef([2, 0, -1, 1], [4, 0, -3, -6])[0, 1])


def test_correlation_of_what_does_not_vary():
    assert correlation(np.full(3, 0.1), np.arange(3.0)) is None
    assert correlation(np.array([]), np.array([])) is None
    assert correlation(np.array([1.0, 2.0]), np.array([5.0, 3.0])) == pytest.approx(-1)


def test_length_penalty():
    assert length_penalty(np.array([1.0, 1.0]), np.array([0.0, 500.0])).tolist() == [1.0, 0.5]


LENGTHS = np.random.default_rng(1).integers(1, 3000, 2000).astype(float)


@pytest.mark.parametrize(("fraction", "anchors"), [(1.0, 256), (0.1, 256), (0.5, 7), (1.0, 5000)])
def test_a_score_that_is_a_line_of_length_leaves_nothing(fraction, anchors):
    """r = a + b len: every local line is that line, so RC-LWR's residual is 0 everywhere, at both ends too."""
    scores = 3 + 0.01 * LENGTHS
    bias = lowess_bias(scores, LENGTHS, LENGTHS, fraction=fraction, anchors=anchors)
    assert np.abs(scores - bias).max() < 1e-9


def test_rc_mean_of_a_line_leaves_nothing_in_the_interior():
    """One answer of each length 0..999, window 50: the window of an inner length is symmetric, its mean the line."""
    lengths = np.arange(1000.0)
    scores = 3 + 0.01 * lengths
    left = scores - mean_bias(scores, lengths, lengths, window=50.0)
    assert np.abs(left[50:-50]).max() < 1e-9
    assert np.abs(left[0]) > 0.1


def test_length_is_taken_out_and_quality_stays():
    rng = np.random.default_rng(2)
    quality = rng.normal(size=2000)
    scores = quality + 0.002 * LENGTHS
    left = scores - lowess_bias(scores, LENGTHS, LENGTHS)
    assert correlation(scores, LENGTHS) > 0.8
    assert abs(correlation(left, LENGTHS)) < 0.03
    assert correlation(left, quality) > 0.99


def test_rc_mean_windows():
    """Window 1 around 2 holds lengths 1, 2, 3, both ends counted: scores 10, 20, 60, mean 30."""
    scores, lengths = np.array([60.0, 10, 20, 99, 99]), np.array([3.0, 1, 2, 4.5, 0.5])
    assert mean_bias(scores, lengths, np.array([2.0]), window=1.0, least=3).tolist() == pytest.approx([30.0])
    few = mean_bias(scores, lengths, np.array([2.0, 100.0, -100.0]), window=1.0, least=4)
    assert np.isnan(few).all()
    assert np.isnan(mean_bias(scores, lengths, np.array([50.0]), window=1.0, least=0)).all()
    assert np.isnan(mean_bias(np.array([]), np.array([]), np.array([1.0]), window=1.0)).all()


def test_the_window_of_pairs():
    """Differences 8 and 4 of two prompts' pairs: mean 6, a quarter 1.5. Of three, 1, 5 and 6: (8 + 4 + 12) / 5 / 4."""
    lengths, prompts = np.array([10.0, 1, 2, 5]), pl.Series(["a", "b", "a", "b"])
    assert pair_window(lengths, prompts) == 1.5
    more = np.concatenate([lengths, [7.0, 8, 13]])
    assert pair_window(more, pl.Series([*prompts, "c", "c", "c"])) == pytest.approx((8 + 4 + 1 + 5 + 6) / 5 / 4)
    assert pair_window(lengths, pl.Series(["a", "b", "c", "d"])) == pytest.approx((9 + 8 + 5 + 1 + 4 + 3) / 6 / 4)
    assert pair_window(lengths[:1], prompts[:1]) == 0


def test_rc_mean_of_a_run_has_the_window_of_the_paper():
    """Every pair differs by 8 characters, so the window is 2, however far apart the prompts' lengths are.

    Of lengths 10 (40 times), 11 and 13 the bias of 10 is that of the 10s and 11, the bias of 11 that of all of them.
    """
    lengths = [float(n) for pair in [*[(10, 18)] * 40, (11, 19), (13, 21), *[(100, 108)] * 40] for n in pair]
    rows = pl.DataFrame({"candidate_id": [str(i) for i in range(len(lengths))], "length": lengths, "score": lengths})
    rows = rows.with_columns(prompt_id=(pl.int_range(pl.len()) // 2).cast(pl.String), reason=pl.lit(None, pl.String))
    made = corrected(rows, None, CalibrateSpec(calibrate="a", length="rc-mean"))
    bias = {length: length - score for length, score in made.select("length", "score").drop_nulls().iter_rows()}
    assert 13 not in bias  # two responses in its window
    assert bias[10] == pytest.approx((40 * 10 + 11) / 41)
    assert bias[11] == pytest.approx((40 * 10 + 11 + 13) / 42)


def test_lowess_beyond_its_lengths_is_level():
    scores, lengths = np.array([1.0, 2, 3]), np.array([10.0, 20, 30])
    inside = lowess_bias(scores, lengths, np.array([10.0, 30.0]))
    assert lowess_bias(scores, lengths, np.array([-5.0, 1e6])).tolist() == inside.tolist()


def lowess_by_hand(x, y, fraction, passes):
    """Cleveland's procedure with two plain loops and a weighted least-squares fit by lstsq."""
    nearest, trust, curve = int(fraction * len(x) + 1e-10), np.ones_like(y), np.empty_like(y)
    for again in range(passes + 1):
        for i in range(len(x)):
            off = np.abs(x - x[i])
            reach = np.sort(off)[nearest - 1]
            root = np.sqrt(np.where(off < reach, (1 - (off / reach) ** 3) ** 3, 0) * trust)
            design = np.column_stack([np.ones_like(x), x - x[i]])
            curve[i] = np.linalg.lstsq(root[:, None] * design, root * y, rcond=None)[0][0]
        residual = np.abs(y - curve)
        if again < passes:
            trust = np.clip(1 - (residual / (6 * np.median(residual))) ** 2, 0, None) ** 2
    return curve


@pytest.mark.parametrize(("fraction", "passes"), [(1.0, 3), (0.4, 0), (0.4, 3), (0.2, 1)])
def test_lowess_against_plain_loops(fraction, passes):
    rng = np.random.default_rng(3)
    x = rng.permutation(np.concatenate([np.arange(70.0), rng.integers(0, 70, 30)]))
    y = np.sin(x / 10) + rng.normal(0, 0.3, 100)
    y[::17] += 8
    wanted = lowess_by_hand(x, y, fraction, passes)
    assert lowess_bias(y, x, x, fraction=fraction, passes=passes) == pytest.approx(wanted, abs=1e-8)


@given(
    st.lists(st.tuples(st.floats(-100, 100), st.integers(0, 5)), min_size=1, max_size=30),
    st.floats(0.01, 1),
)
def test_lowess_always_tells_a_finite_bias(rows, fraction):
    scores, lengths = np.array([s for s, _ in rows]), np.array([float(n) for _, n in rows])
    bias = lowess_bias(scores, lengths, np.arange(-1.0, 7.0), fraction=fraction)
    assert np.isfinite(bias).all()


def test_one_length_only():
    assert lowess_bias(np.array([1.0, 3.0]), np.array([5.0, 5.0]), np.array([5.0, 9.0])).tolist() == [2.0, 2.0]


def test_what_lowess_refuses():
    with pytest.raises(InputError, match="fraction"):
        lowess_bias(np.ones(2), np.ones(2), np.ones(1), fraction=0.0)
    with pytest.raises(InputError, match="nothing to calibrate"):
        lowess_bias(np.array([]), np.array([]), np.ones(1))
