"""The best of n beyond the draws that there are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata.stats import best_of_n as e
from prefdata.stats.extrapolation import extrapolate, fit_points, max_n

NORMAL, UNIFORM, EXPONENTIAL, RARE, RARE_BY_PROMPT = (
    e.normal_maxima,
    lambda ns: np.array([n / (n + 1) for n in ns]),
    lambda ns: np.array([sum(1 / k for k in range(1, n + 1)) for n in ns]),
    lambda ns: np.array([1 - 0.95**n for n in ns]),
    lambda ns: np.array([n / (n + 9) for n in ns]),  # chances of success with the law Beta(1, 9): 1 - 9 / (n + 9)
)
"""E[max of n] of laws that are known."""


def test_how_far_it_goes() -> None:
    assert max_n(60, 3) == 3  # fewer than 4 tell nothing
    assert max_n(1000, 4) == 32
    assert max_n(1000, 16) == 128
    assert max_n(32, 4) == 16  # 128 scores, 8 for each
    assert max_n(5, 8) == 8


def test_what_it_goes_on_from() -> None:
    assert fit_points(4) == (2, 3, 4)
    assert fit_points(7) == (5, 6, 7)
    assert fit_points(8) == (4, 6, 8)
    assert fit_points(16) == (8, 12, 16)


def test_three_continuations_by_hand() -> None:
    """To the ceiling of 6 there remain 6, 4 and 3, which is 6 / (1 + m / 2); so 2.4 and 2 come next.

    At least: gains 2 and 1, then 1/2 and 1/4. At most: of 3 there remain 3/4, and 3/4 of that.
    """
    likely, least, most = extrapolate(np.array([0.0, 2, 3]), 6.0, 4, [5, 6])
    assert likely == pytest.approx([3.6, 4], abs=1e-6)
    assert least == pytest.approx([3.5, 3.75])
    assert most == pytest.approx([6 - 9 / 4, 6 - 27 / 16])
    # With 8 known a step is 2.
    assert extrapolate(np.array([0.0, 2, 3]), 6.0, 8, [10, 12])[0] == pytest.approx(likely)


def test_chances_that_all_prompts_share_leave_nothing_open() -> None:
    # What remains is 2, 1 and 1/2: it halves.
    for found in extrapolate(np.array([0.0, 1, 1.5]), 2.0, 4, [5, 6]):
        assert found == pytest.approx([1.75, 1.875], abs=1e-6)


def test_gains_that_grow_are_noise() -> None:
    # 4, 3.9 and 1 remain: from 4 to 1 in two steps is a half in each.
    for found in extrapolate(np.array([0.0, 0.1, 3]), 4.0, 4, [5]):
        assert found == pytest.approx([3.5], abs=1e-6)


def test_what_gains_nothing_goes_on_so() -> None:
    for means, ceiling in (([3.0, 3, 3], 3.0), ([3.0, 3, 3], 9.0), ([1.0, 2, 3], 3.0), ([0.1, 0.1, 0.3], 0.3)):
        for found in extrapolate(np.array(means), ceiling, 4, [5, 32]):
            assert found == pytest.approx([means[-1]] * 2)


@pytest.mark.parametrize(("known", "far"), [(4, 8), (8, 16), (8, 32), (16, 64)])
@pytest.mark.parametrize(
    ("law", "ceiling", "within"),
    [
        (NORMAL, 4.0, 0.03),
        (UNIFORM, 1.0, 1e-5),
        (EXPONENTIAL, 9.0, 0.09),
        (RARE, 1.0, 1e-5),
        (RARE_BY_PROMPT, 1.0, 0.01),
    ],
)
def test_laws_that_are_known(law, ceiling: float, within: float, known: int, far: int) -> None:
    """A ceiling as 1,000 prompts see it for the two laws that have none. `within` is a share of the gain over one."""
    likely, least, most = extrapolate(law(fit_points(known)), ceiling, known, [far])
    (first, exact) = law([1, far])
    assert least[0] - 1e-9 <= exact <= most[0] + 1e-9
    assert likely[0] == pytest.approx(exact, abs=within * (exact - first))


def test_half_of_the_prompts_never_succeed() -> None:
    """Nothing tells them from those that seldom do: the likely curve is too high, and the interval is for that."""
    likely, least, most = extrapolate(np.array([(1 - 0.9**n) / 2 for n in fit_points(8)]), 1.0, 8, [32])
    exact = (1 - 0.9**32) / 2
    assert least[0] - 1e-9 <= exact < likely[0] < most[0]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any), min_size=1, max_size=5),
    st.sampled_from([4, 6, 8, 16]),
    st.integers(1, 60),
)
def test_the_truth_lies_between_whatever_the_laws(chances: list[list[int]], known: int, more: int) -> None:
    """Prompts with any laws on the scores 0, 1, 2 and 5: E[max of n] = 5 - integral of the mean F^n."""
    law = np.array(chances) / np.sum(chances, axis=1, keepdims=True)
    below = np.cumsum(law, axis=1)[:, :-1]

    def exact(n: int) -> float:
        return float(5 - (below**n).mean(axis=0) @ [1, 1, 3])

    likely, least, most = extrapolate(np.array([exact(n) for n in fit_points(known)]), 5.0, known, [known + more])
    assert least[0] - 1e-6 <= exact(known + more) <= most[0] + 1e-6
    assert least[0] - 1e-9 <= likely[0] <= most[0] + 1e-9 <= 5 + 2e-9


def test_shift_and_scale_go_along() -> None:
    means = np.array([[0, 1, 1.8], [1, 5, 7]])
    for before, after in zip(
        extrapolate(means, 9.0, 8, [11, 16, 64]), extrapolate(means * 3 - 7, 20.0, 8, [11, 16, 64]), strict=True
    ):
        assert after == pytest.approx(before * 3 - 7)
        assert before.shape == (2, 3)
        assert np.all(np.diff(before, axis=1) > 0)
