"""Win counts per pair, and intransitivity.

Each prompt is a league of its own, and its responses are the players. All leagues are counted together in arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefdata.errors import InputError
from prefdata.stats import ragged

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class WinCounts:
    """Win counts. Players are numbered prompt by prompt, pairs (i < j) and games prompt by prompt too.

    Attributes:
        names: prompt_id and candidate_id of each player with at least one game, in the order of their numbers.
        unplayed: prompt_id and candidate_id of those whose rows were all left out.
        prompt: number of each player's prompt, shape (players,).
        i, j: the players of each pair that met, shape (pairs,).
        wins_i, wins_j: how often each won, a tie as half and soft verdicts as fractions, shape (pairs,).
        first, second, outcome: every single game, in an order that does not depend on that of the rows; shape (games,).
        null: rows that were left out because they have no probability.
        same: rows that were left out because a response was compared with itself.
    """

    names: pl.DataFrame
    unplayed: pl.DataFrame
    prompt: Ints
    i: Ints
    j: Ints
    wins_i: Floats
    wins_j: Floats
    first: Ints
    second: Ints
    outcome: Floats
    null: int
    same: int

    @property
    def pairs(self) -> tuple[Ints, Ints, Floats, Floats]:
        """i, j, wins_i, wins_j."""
        return self.i, self.j, self.wins_i, self.wins_j


def league(comparisons: pl.DataFrame) -> WinCounts:
    """Assign numbers to the players and count the wins.

    Raises:
        InputError: a probability is not in [0, 1].
    """
    frame = comparisons.select("prompt_id", "first_id", "second_id", pl.col("probability").fill_nan(None))
    if not frame["probability"].is_between(0, 1).all():
        raise InputError("a comparison has a probability that is not between 0 and 1: fix it and run again.")
    prompts, answers = _known(frame["prompt_id"]), _known(frame["first_id"], frame["second_id"])
    prompt = _numbers(frame["prompt_id"], prompts)
    first, second = (prompt * max(len(answers), 1) + _numbers(frame[end], answers) for end in ("first_id", "second_id"))
    outcome = frame["probability"].fill_null(np.nan).to_numpy().astype(np.float64)
    null, same = np.isnan(outcome), first == second
    played = ~null & ~same
    everyone = np.unique(np.concatenate([first, second]))
    players = np.unique(np.concatenate([first[played], second[played]]))
    first, second, outcome = (
        np.searchsorted(players, first[played]),
        np.searchsorted(players, second[played]),
        outcome[played],
    )
    order = np.lexsort((outcome, second, first))
    first, second, outcome = first[order], second[order], outcome[order]

    def names(numbers: Ints) -> pl.DataFrame:
        at_prompt, at_answer = np.divmod(numbers, max(len(answers), 1))
        return pl.DataFrame({"prompt_id": prompts[at_prompt], "candidate_id": answers[at_answer]})

    i, j, wins_i, wins_j = count_pairs(first, second, outcome, np.ones_like(outcome), len(players))
    leagues = np.unique(players // max(len(answers), 1), return_inverse=True)[1].astype(np.int64)
    unplayed = names(np.setdiff1d(everyone, players))
    return WinCounts(
        names(players), unplayed, leagues, i, j, wins_i, wins_j, first, second, outcome,
        int(null.sum()), int((same & ~null).sum()),
    )  # fmt: skip


def _known(*columns: pl.Series) -> pl.Series:
    """Return the names in some columns, sorted, each once."""
    return pl.concat([column.alias("name") for column in columns]).unique().sort()


def _numbers(names: pl.Series, known: pl.Series) -> Ints:
    """Return the place of each name among the known ones, shape (rows,)."""
    return names.cast(pl.Enum(known)).to_physical().to_numpy().astype(np.int64)


def count_pairs(
    first: Ints, second: Ints, outcome: Floats, weight: Floats, players: int
) -> tuple[Ints, Ints, Floats, Floats]:
    """Count the pairs that met, and the wins of each side, by the games' weights."""
    low, high = np.minimum(first, second), np.maximum(first, second)
    won = np.where(first < second, outcome, 1 - outcome)  # by the lower number
    key, pair = np.unique(low * max(players, 1) + high, return_inverse=True)
    wins_low, wins_high = sums(pair, weight * won, len(key)), sums(pair, weight * (1 - won), len(key))
    return key // max(players, 1), key % max(players, 1), wins_low, wins_high


def sums(at: Ints, values: Floats, length: int) -> Floats:
    """Return the sum of the values at each number below `length`."""
    return np.bincount(at, values, minlength=length).astype(np.float64)


def blocks(
    prompt: Ints, i: Ints, j: Ints, wins_i: Floats, wins_j: Floats
) -> Iterator[tuple[Ints, NDArray[np.float64]]]:
    """Prompts of one size at a time: the number of each one's first player, and its wins [of, over].

    Shapes (prompts,) and (prompts, n, n); in blocks of about two million pairs.
    """
    sizes = np.bincount(prompt)
    starts, number = ragged.offsets(sizes), np.empty(len(sizes), np.int64)
    for block in ragged.blocks(sizes, exact=True, max_rows=2_000_000 // max(int(sizes.max(initial=1)), 1)):
        some = np.arange(len(sizes))[block.prompts]
        number.fill(-1)
        number[some] = np.arange(len(some))
        here = np.flatnonzero(number[prompt[i]] >= 0)
        at, start = number[prompt[i[here]]], starts[prompt[i[here]]]
        wins = np.zeros((len(some), block.shape[1], block.shape[1]))
        wins[at, i[here] - start, j[here] - start] = wins_i[here]
        wins[at, j[here] - start, i[here] - start] = wins_j[here]
        yield starts[some], wins


def contradictions(here: WinCounts) -> dict[str, Any]:
    """Count intransitive triples: three responses each of which beats the next by majority.

    Returns:
        `triples` whose three pairs all have a majority; `cycles` among them; `transitivity`, the share that are none
        (None without triples); `prompts_with_cycles`; and what was left out: `null`, `same`.
    """
    triples = cycles = prompts = 0
    for _, wins in blocks(here.prompt, *here.pairs):
        beats = (wins > wins.transpose(0, 2, 1)).astype(np.float32)
        loops = _traces(beats) / 3
        triples += round(float(_traces(beats + beats.transpose(0, 2, 1)).sum()) / 6)
        cycles += round(float(loops.sum()))
        prompts += int((loops > 0.5).sum())
    rate = (triples - cycles) / triples if triples else None
    return {
        "triples": triples, "cycles": cycles, "transitivity": rate, "prompts_with_cycles": prompts,
        "null": here.null, "same": here.same,
    }  # fmt: skip


def _traces(matrix: NDArray[np.float32]) -> Floats:
    """Return the trace of each matrix's third power, shape (matrices,): closed walks of three steps."""
    traces: Floats = np.einsum("nij,nji->n", matrix @ matrix, matrix, dtype=np.float64)
    return traces
