"""Comparisons to scores: Bradley-Terry, Elo, Borda, Copeland.

All methods read the same comparisons: rows of prompt_id, first_id, second_id and the probability that the first beats
the second (0.5 is a tie, and counts as half a win for each). Those without a probability are counted and left out.
Each prompt is rated separately; to rank models or judges over a run, put their names into first_id and second_id and
one name into prompt_id. Prompts are computed together: a hundred thousand of them take seconds.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefdata import ids
from prefdata.errors import UsageError, did_you_mean
from prefdata.stats.win_counts import Floats, Ints, WinCounts, blocks, count_pairs, league, sums

METHODS = ("bradley-terry", "elo", "borda", "copeland")
LEAST_PRIOR = 1e-9
"""The smallest prior above 0: strengths of some 20 nats still have 15 digits of curvature."""

ELO_PER_NAT = 400 / np.log(10)
"""Elo points for one nat of Bradley-Terry strength: 173.7178."""


def aggregate(
    comparisons: pl.DataFrame,
    method: str,
    *,
    prior: float = 0.5,
    bootstrap: int = 0,
    level: float = 0.95,
    permutations: int = 32,
    k: float = 4.0,
    seed: int = 0,
) -> pl.DataFrame:
    """Compute a score for every response that was compared.

    Args:
        comparisons: columns prompt_id, first_id, second_id, probability.
        method: one of METHODS. `bradley-terry`: centred log-strength, in nats. `elo`: online Elo about 1000, averaged
            over orders of play. `borda`: mean share of wins over the opponents met, times the number of opponents in
            the prompt. `copeland`: opponents beaten by majority minus opponents lost to.
        prior: bradley-terry: wins and losses against an average response, added for each response.
        bootstrap: bradley-terry: resamples of the games within each prompt, for intervals; 0 makes none.
        level: of the intervals.
        permutations: elo: random orders of play.
        k: elo: points at stake in a game.
        seed: of the resamples and the orders.

    Returns:
        prompt_id, candidate_id, score, reason, games, low, high; one row for every response named, sorted by ids. No
        score, and why: `no_comparisons` (all were null), or `not_connected` (bradley-terry without a prior, where wins
        do not lead from everyone to everyone, so that a strength would be infinite).

    Raises:
        UsageError: there is no such method, or the prior is too small.
        InputError: a probability is not in [0, 1].
    """
    if method not in METHODS:
        raise UsageError(f"there is no method {method!r} of scores from comparisons.{did_you_mean(method, METHODS)}")
    if 0 < prior < LEAST_PRIOR:
        raise UsageError(f"a prior of {prior:g} is too small: give 0, or at least {LEAST_PRIOR:g}.")
    here = league(comparisons)
    count = len(here.prompt)
    games = np.bincount(here.first, minlength=count) + np.bincount(here.second, minlength=count)
    low = high = np.full(count, np.nan)
    if method == "bradley-terry":
        score = bradley_terry(here.prompt, here.pairs, prior=prior)
        if bootstrap:
            low, high = _intervals(here, prior, bootstrap, level, seed)
    elif method == "elo":
        score = elo(here, permutations=permutations, k=k, seed=seed)
    else:
        score = borda(here) if method == "borda" else copeland(here)
    finite = np.isfinite(score)
    numbers = {
        name: pl.Series(np.where(finite, values, np.nan), dtype=pl.Float64).fill_nan(None)
        for name, values in (("score", score), ("low", low), ("high", high))
    }
    made = here.names.with_columns(games=pl.Series(games, dtype=pl.Int64), **numbers)
    made = made.with_columns(reason=pl.when(pl.col("score").is_null()).then(pl.lit("not_connected")))
    none = here.unplayed.with_columns(reason=pl.lit("no_comparisons"), games=pl.lit(0, pl.Int64))
    columns = ["prompt_id", "candidate_id", "score", "reason", "games", "low", "high"]
    return pl.concat([made, none], how="diagonal").sort("prompt_id", "candidate_id").select(columns)


def bradley_terry(
    prompt: Ints, pairs: tuple[Ints, Ints, Floats, Floats], *, prior: float = 0.5, tolerance: float = 1e-9
) -> Floats:
    """Bradley-Terry log-strengths, centred within each prompt, in nats, shape (players,).

    A few steps of minorisation-maximisation (`mm_step`) from equal strengths, then Newton's, whose steps are at most 1
    nat: where MM alone needs hundreds of steps, a prompt of eight is exact after some ten.

    Args:
        prompt: number of each player's prompt, from 0, ascending, shape (players,).
        pairs: i, j, and how often each of them won (see `WinCounts`).
        prior: wins and losses of each player against a virtual player of strength 1. Above 0 it makes the
            strengths finite whatever the games; 0 is maximum likelihood.
        tolerance: of the last step, in nats.

    Returns:
        NaN where `prior` is 0 and the prompt's strengths are not finite: the graph of wins is not strongly connected.
    """
    strength = np.full(len(prompt), np.nan)
    for starts, wins in blocks(prompt, *pairs):
        finite = np.ones(len(wins), bool) if prior > 0 else _strongly_connected(wins > 0)
        if finite.any():
            players = starts[finite][:, None] + np.arange(wins.shape[1])
            strength[players] = _fit(wins[finite], prior, tolerance)
    return strength


def _fit(wins: Floats, prior: float, tolerance: float) -> Floats:
    """Log-strengths of prompts of one size, shape (prompts, n), from their wins, shape (prompts, n, n)."""
    theta = np.zeros(wins.shape[:2])
    games, won = wins + wins.transpose(0, 2, 1), wins.sum(axis=2) + prior
    for _ in range(5):
        theta = mm_step(theta, wins, prior)
        theta -= theta.mean(axis=1, keepdims=True) * (prior == 0)
    diagonal = np.arange(wins.shape[1])
    for _ in range(200):
        beats, average = _sigmoid(theta[:, :, None] - theta[:, None, :]), _sigmoid(theta)
        slope = won - (games * beats).sum(axis=2) - 2 * prior * average
        curve = games * beats * (1 - beats)
        bend = -curve + (prior == 0) / wins.shape[1]  # without a prior only differences count: their mean stays 0
        bend[:, diagonal, diagonal] += curve.sum(axis=2) + 2 * prior * average * (1 - average)
        step = np.linalg.solve(bend, slope[:, :, None])[:, :, 0]
        step /= np.maximum(np.abs(step).max(axis=1, keepdims=True), 1)
        theta += step
        if np.abs(step).max() < tolerance:
            break
    centred: Floats = theta - theta.mean(axis=1, keepdims=True)
    return centred


def mm_step(theta: Floats, wins: Floats, prior: float) -> Floats:
    """One step of minorisation-maximisation (Hunter 2004) on log-strengths, shape (prompts, n).

    p <- wins / sum over the others of games / (p + p of the other), with `prior` wins and losses against strength 1.
    """
    p = np.exp(theta)
    games = wins + wins.transpose(0, 2, 1)
    expected = (games / (p[:, :, None] + p[:, None, :])).sum(axis=2) + 2 * prior / (p + 1)
    step: Floats = np.log((wins.sum(axis=2) + prior) / expected)
    return step


def _sigmoid(x: Floats) -> Floats:
    half: Floats = 0.5 * (1 + np.tanh(x / 2))
    return half


def _strongly_connected(beats: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the graph of wins is strongly connected, shape (prompts,), from the wins, shape (prompts, n, n)."""
    size = beats.shape[1]
    leads = (beats | np.eye(size, dtype=bool)).astype(np.float32)
    for _ in range(max(size - 1, 1).bit_length()):  # paths twice as long each time
        leads = np.minimum(leads @ leads, 1)
    everywhere: NDArray[np.bool_] = (leads > 0).all(axis=(1, 2))
    return everywhere


def _by_player(i: Ints, j: Ints, of_i: Floats, of_j: Floats, players: int) -> Floats:
    """Sum over pairs for each player, shape (players,)."""
    return sums(i, of_i, players) + sums(j, of_j, players)


def _intervals(here: WinCounts, prior: float, resamples: int, level: float, seed: int) -> tuple[Floats, Floats]:
    """Percentile intervals: the games are resampled with replacement within each prompt.

    A resample may leave out the games that connect a prompt's players, so it has a prior of 0.001 at least.
    """
    group = here.prompt[here.first]
    start = np.searchsorted(group, group, "left")
    size = np.searchsorted(group, group, "right") - start
    made = np.empty((resamples, len(here.prompt)))
    for resample in range(resamples):
        uniform = np.random.default_rng(ids.seed(seed, "bootstrap", resample)).random(len(group))
        drawn = np.bincount(start + (uniform * size).astype(np.int64), minlength=len(group)).astype(np.float64)
        pairs = count_pairs(here.first, here.second, here.outcome, drawn, len(here.prompt))
        made[resample] = bradley_terry(here.prompt, pairs, prior=max(prior, 1e-3), tolerance=1e-4)
    tail = (1 - level) / 2
    low, high = np.quantile(made, [tail, 1 - tail], axis=0)
    return low, high


def elo(here: WinCounts, *, permutations: int = 32, k: float = 4.0, seed: int = 0) -> Floats:
    """Online Elo from 1000, a hundred points a factor of 10^(1/4), shape (players,); the sum never changes.

    Its result depends on the order of play, so it is averaged over random orders; with `permutations` 0 the games are
    played once, in the order of the comparisons.
    """
    count, games = len(here.prompt), len(here.first)
    group = here.prompt[here.first]
    slot = np.arange(games) - np.searchsorted(group, group, "left")
    rounds = np.split(np.argsort(slot, kind="stable"), np.cumsum(np.bincount(slot))[:-1]) if games else []
    total, made, orders = np.zeros(count), 0, max(permutations, 1)
    while made < orders:
        some = min(orders - made, max(1, 4_000_000 // max(games, 1)))
        order = [_order(group, seed, made + n) if permutations else np.arange(games) for n in range(some)]
        total += _play(here, np.array(order), rounds, k).sum(axis=0)
        made += some
    return total / orders


def _order(group: Ints, seed: int, permutation: int) -> Ints:
    """Return the games in a random order within each prompt, shape (games,)."""
    uniform = np.random.default_rng(ids.seed(seed, "elo", permutation)).random(len(group))
    order: Ints = np.lexsort((uniform, group))
    return order


def _play(here: WinCounts, order: Ints, rounds: list[Ints], k: float) -> Floats:
    """Ratings after the games in some orders, shape (orders, players). A round has at most one game a prompt."""
    orders, count = len(order), len(here.prompt)
    ratings = np.full(orders * count, 1000.0)
    base = np.arange(orders)[:, None] * count
    for places in rounds:
        game = order[:, places]
        a, b = base + here.first[game], base + here.second[game]
        gain = k * (here.outcome[game] - 1 / (1 + 10 ** ((ratings[b] - ratings[a]) / 400)))
        ratings[a] += gain
        ratings[b] -= gain
    return ratings.reshape(orders, count)


def borda(here: WinCounts) -> Floats:
    """Return the mean share of wins over the opponents met, times the opponents in the prompt, shape (players,).

    With everyone compared by complete rankings this is the Borda count of one ranking on average, ties averaged.
    """
    games = here.wins_i + here.wins_j
    share = _by_player(here.i, here.j, here.wins_i / games, here.wins_j / games, len(here.prompt))
    one = np.ones(len(here.i))
    met = _by_player(here.i, here.j, one, one, len(here.prompt))
    opponents = sums(here.prompt, np.ones(len(here.prompt)), len(here.prompt))[here.prompt] - 1
    return share / met * opponents


def borda_points(ranks: Floats) -> Floats:
    """Points n - 1 - rank summed over rankings, shape (players,).

    Args:
        ranks: shape (rankings, players), any numbers of which the lowest is the best; ties share the mean points.
    """
    beaten = (ranks[:, :, None] < ranks[:, None, :]).sum(axis=2)
    tied = (ranks[:, :, None] == ranks[:, None, :]).sum(axis=2) - 1
    points: Floats = (beaten + tied / 2).sum(axis=0)
    return points


def copeland(here: WinCounts) -> Floats:
    """Opponents beaten by majority minus opponents lost to, shape (players,)."""
    won = np.sign(here.wins_i - here.wins_j)
    return _by_player(here.i, here.j, won, -won, len(here.prompt))
