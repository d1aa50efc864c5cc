"""The strategies: which two answers of a prompt are proposed as a pair. Pure, and for all prompts at once.

A strategy names answers of a `Field` by number. Each has its rule; i counts a prompt's answers from the best (of equals
the earlier draw is the better), n is how many there are, and coins are drawn by candidate id and seed.

- best-worst: the i-th best against the i-th worst, for i up to `per_prompt` and n/2; nobody is in two pairs.
- best-random: the best against one of the others by lot.
- random-labelled: `per_prompt` of the n(n-1)/2 possible pairs by lot (SLiC-HF, 2305.10425).
- first-round: all in random order, the 1st against the 2nd, the 3rd against the 4th, … (RSO, 2309.06657, section 4).
- tournament: the first round, then its winners by score, and so on: n-1 pairs (RSO).
- adjacent: the i-th best against the next.
- all: every two.
- top-bottom: each of the `top` best against each of the `bottom` worst of the others; one answer at least is left for
  the bottom.
- length-matched: the i-th best that is left, for i up to `per_prompt`, against what scores less and is nearest to it in
  length, by at most `length_tolerance` of the longer; of equals the worst. Nobody is in two pairs.
- against-reference: every answer against every one of the reference's sampler.
- cross-sampler: each sampler's best against each other one's.

Where answers that were cut off may only be rejected, the best is the best of the others, also in a tournament.
A prompt of two answers or more for which there is nothing to propose is counted by the reason why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import field as attribute
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefdata.draws import leading_bits, uniforms
from prefdata.grids import descending, grids, last_argmin, order_of
from prefdata.specs import PairSpec

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Field:
    """The answers of some prompts by number: prompt by prompt, each prompt's as they were generated.

    Attributes:
        rows: the answers, in any order.
        spec: what is asked.
        row: the row of each number, shape (answers,); None where they are the same.
        start, size: each prompt's first number and how many it has, shape (prompts,).
        names: the prompts' ids, shape (prompts,).
    """

    rows: pl.DataFrame
    spec: PairSpec
    row: Ints | None
    start: Ints
    size: Ints
    names: pl.Series

    @classmethod
    def of_rows(cls, rows: pl.DataFrame, spec: PairSpec) -> Field:
        """`rows` as a field; they have candidate_id, prompt_id, score, sample_index and may_be_chosen."""
        order = order_of(rows, prompts_anyhow=True)
        return cls(rows, spec, order.row, _before(order.size), order.size, order.names)

    @cached_property
    def of(self) -> Ints:
        """Each answer's prompt, by number."""
        return np.repeat(np.arange(len(self.size)), self.size)

    @cached_property
    def by_id(self) -> Ints:
        """The prompts in the order of their ids, shape (prompts,)."""
        bits = leading_bits(self.names)
        by_id = np.argsort(bits)  # several times as fast as a sort of strings, and the same but for equal bits
        return by_id if np.diff(bits[by_id]).all() else self.names.arg_sort().to_numpy().astype(np.int64)

    @cached_property
    def turn(self) -> Ints:
        """0, 1, … for each prompt's first, second, … number, shape (answers,)."""
        turn: Ints = np.arange(self.rows.height) - self.start[self.of]
        return turn

    @cached_property
    def ranked(self) -> Ints:
        """Numbers by prompt, best first, of equals the earlier draw."""
        ranked = np.arange(self.rows.height)
        for grid in grids(self.size):
            best = descending(grid.spread(self._score, -np.inf))
            ranked[grid.numbers] = grid.flat(np.take_along_axis(grid.spread(ranked, -1), best, axis=1))
        return ranked

    @cached_property
    def rank(self) -> Ints:
        """How many numbers come before each in `ranked`."""
        return _inverse(self.ranked)

    @cached_property
    def best_first(self) -> Ints:
        """Numbers as in `ranked`, but each prompt's that may be chosen before those that may not."""
        if self.all_may_be_chosen:
            return self.ranked
        best_first: Ints = np.lexsort((self.rank, ~self.column("may_be_chosen"), self.of))
        return best_first

    @cached_property
    def all_may_be_chosen(self) -> bool:
        """Whether each answer may be a pair's chosen one."""
        return bool(self.rows["may_be_chosen"].all())

    def best_and_worst(self) -> tuple[Ints, Ints]:
        """The first and the last of each prompt in `ranked`, without ranking all that is between; shape (prompts,)."""
        best, worst = np.empty_like(self.start), np.empty_like(self.start)
        for grid in grids(self.size):
            first = self.start[grid.prompts]
            best[grid.prompts] = first + grid.spread(self._score, -np.inf).argmax(axis=1)
            worst[grid.prompts] = first + last_argmin(grid.spread(self._score, np.inf))
        return best, worst

    @cached_property
    def _score(self) -> Floats:
        """Scores by number; what has none comes last."""
        scores = self.rows["score"]
        if scores.null_count():
            scores = scores.fill_null(np.finfo(np.float64).min)
        return self.by_number(scores.to_numpy())

    def column(self, name: str) -> NDArray[Any]:
        """A column of the answers, by number."""
        return self.by_number(self.rows[name].to_numpy())

    def take(self, numbers: Ints, *columns: str) -> pl.DataFrame:
        """Columns of some answers."""
        return self.rows[list(columns)][pl.Series(numbers if self.row is None else self.row[numbers])]

    def by_number(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values of the rows, by number."""
        return values if self.row is None else values[self.row]

    @cached_property
    def coin(self) -> NDArray[np.float64]:
        """Each answer's own number in (0, 1)."""
        return self.by_number(uniforms(self.rows["candidate_id"], self.spec.seed, "pair", self.spec.strategy))

    def of_each(self, choose: np.ufunc, values: Floats) -> Floats:
        """Each prompt's least, largest, … of `values`, which has one for each answer; shape (prompts,)."""
        chosen: Floats = choose.reduceat(values, self.start) if len(self.start) else np.empty(0)
        return chosen

    def without(self, some: Ints) -> Ints:
        """The other answers, by prompt, best first."""
        other = np.ones(len(self.of), bool)
        other[some] = False
        others: Ints = self.ranked[other[self.ranked]]
        return others

    def shuffled(self) -> Ints:
        """The answers by prompt, each prompt's in the order of their coins."""
        order: Ints = np.lexsort((self.coin, self.of))
        return order


@dataclass(frozen=True)
class Proposals:
    """Pairs of a field's answers, by number.

    Attributes:
        first, second: the two of each, shape (pairs,).
        decided: the first is meant as the chosen one; else the higher score decides.
        one_each: no prompt has two of them, and they come in the order of the prompts' ids.
        probability: that the first is better, where something else than scores says so, shape (pairs,).
        missing: what no pair was proposed for, by reason: no_reference, nothing_but_references, one_sampler (prompts),
            no_length_match (answers), answer_left_out (verdicts).
    """

    first: Ints
    second: Ints
    decided: bool = False
    one_each: bool = False
    probability: Floats | None = None
    missing: Mapping[str, int] = attribute(default_factory=dict)


def propose(field: Field, spec: PairSpec) -> Proposals:
    """What the strategy of `spec` proposes."""
    return _STRATEGIES[spec.strategy](field, spec)


def _best_worst(field: Field, spec: PairSpec) -> Proposals:
    if spec.per_prompt == 1 and field.all_may_be_chosen:
        best, worst = field.best_and_worst()
        several = field.by_id[field.size[field.by_id] > 1]
        return Proposals(best[several], worst[several], decided=True, one_each=True)
    half = np.minimum(spec.per_prompt, field.size // 2)
    prompt = np.repeat(np.arange(len(half)), half)
    turn = np.arange(len(prompt)) - _before(half)[prompt]
    chosen = field.best_first[field.start[prompt] + turn]
    rejected = field.ranked[field.start[prompt] + field.size[prompt] - 1 - turn]
    # Where the worst is the only one that may be chosen, the best, which was cut off, stands for what cannot be.
    rejected = np.where((chosen == rejected) & (turn == 0), field.ranked[field.start[prompt]], rejected)
    met = (field.rank[chosen] < field.rank[rejected]) | (turn == 0)  # else best and worst have passed each other
    return Proposals(chosen[met], rejected[met], decided=True)


def _best_random(field: Field, spec: PairSpec) -> Proposals:
    best = field.best_first[field.start]
    coin = field.coin.copy()
    coin[best] = 2.0
    drawn = field.of_each(np.minimum, coin)
    rejected = np.flatnonzero((coin == drawn[field.of]) & (coin < 2.0))
    return Proposals(best[field.of[rejected]], rejected, decided=True)


def _random_labelled(field: Field, spec: PairSpec) -> Proposals:
    possible = field.size * (field.size - 1) // 2
    prompts = field.take(field.start, "prompt_id")["prompt_id"]
    drawn: list[Ints] = []
    for turn in range(min(spec.per_prompt, int(possible.max(initial=0)))):
        # Floyd's sampling without replacement: of the first t + 1 numbers one, or t where it was drawn before.
        last = possible - np.minimum(spec.per_prompt, possible) + turn
        number = (uniforms(prompts, spec.seed, "random-labelled", turn) * (last + 1)).astype(np.int64)
        before = np.any([number == one for one in drawn], axis=0) if drawn else np.zeros(len(number), bool)
        drawn.append(np.where(last < possible, np.where(before, last, number), -1))
    number, prompt = _joined(drawn), np.tile(np.arange(len(possible)), len(drawn))
    number, prompt = number[number >= 0], prompt[number >= 0]
    second = ((1 + np.sqrt(1 + 8 * number)) // 2).astype(np.int64)  # the number-th of (0,1), (0,2), (1,2), (0,3), …
    first = number - second * (second - 1) // 2
    order = np.lexsort((second, first, prompt))
    first, second = ((field.start[prompt] + one)[order] for one in (first, second))
    return Proposals(field.ranked[first], field.ranked[second])


def _first_round(field: Field, spec: PairSpec) -> Proposals:
    return Proposals(*_neighbours(field.shuffled(), field.of))


def _tournament(field: Field, spec: PairSpec) -> Proposals:
    standing, rounds = field.shuffled(), []
    rank = _inverse(field.best_first)
    goes_on = np.ones(len(rank), bool)
    while True:
        first, second = _neighbours(standing, field.of)
        if not len(first):
            break
        rounds.append((first, second))
        goes_on[np.where(rank[first] > rank[second], first, second)] = False
        standing = standing[goes_on[standing]]  # whoever met nobody goes on
    firsts, seconds = ([pair[side] for pair in rounds] for side in (0, 1))
    return Proposals(_joined(firsts), _joined(seconds))


def _adjacent(field: Field, spec: PairSpec) -> Proposals:
    first = np.flatnonzero(field.turn + 1 < field.size[field.of])
    return Proposals(field.ranked[first], field.ranked[first + 1])


def _all(field: Field, spec: PairSpec) -> Proposals:
    return Proposals(*_every_two(field.start, field.size))


def _top_bottom(field: Field, spec: PairSpec) -> Proposals:
    top = np.minimum(spec.top, field.size - 1)  # one is left for the bottom
    best = field.best_first[field.turn < top[field.of]]
    rest = field.without(best)
    from_the_end = (np.cumsum(field.size - top)[field.of[rest]] - 1) - np.arange(len(rest))
    return Proposals(*_every_meeting(field, best, rest[from_the_end < spec.bottom]), decided=True)


def _length_matched(field: Field, spec: PairSpec) -> Proposals:
    chars, score = field.column("chars").astype(np.float64), field.column("score")
    free = np.ones(len(field.of), bool)
    firsts, seconds, unmatched = [], [], 0
    for _ in range(spec.per_prompt):
        left = field.best_first[free[field.best_first]]
        prompts, at, there = np.unique(field.of[left], return_index=True, return_counts=True)
        prompts, at = prompts[there > 1], at[there > 1]
        if not len(prompts):
            break
        best = np.full(len(field.size), -1)
        best[prompts] = left[at]
        free[best[prompts]] = False
        mine = best[field.of]
        apart = np.abs(chars - chars[mine])
        near = apart / np.maximum(chars, chars[mine]) <= spec.length_tolerance
        fits = np.flatnonzero(free & (mine >= 0) & near)
        # Who scores less goes before who does not, so that the latter is named only where it is the reason for no pair.
        order = fits[np.lexsort((-field.rank[fits], apart[fits], score[fits] >= score[mine[fits]], field.of[fits]))]
        found, at = np.unique(field.of[order], return_index=True)
        firsts.append(best[found])
        seconds.append(order[at])
        unmatched += len(prompts) - len(found)
        free[seconds[-1]] = score[seconds[-1]] >= score[firsts[-1]]
    missing = {"no_length_match": unmatched}
    return Proposals(_joined(firsts), _joined(seconds), decided=True, missing=missing)


def _against_reference(field: Field, spec: PairSpec) -> Proposals:
    is_reference = field.by_number((field.rows["sampler"] == spec.reference).to_numpy())
    references = np.flatnonzero(is_reference)
    first, second = _every_meeting(field, references, field.without(references))
    has = np.bincount(field.of[references], minlength=len(field.size))
    missing = {
        "no_reference": int(((has == 0) & (field.size > 1)).sum()),
        "nothing_but_references": int(((has == field.size) & (field.size > 1)).sum()),
    }
    if not spec.trust_reference:
        return Proposals(first, second, missing=missing)
    return Proposals(first, second, decided=True, probability=np.ones(len(first)), missing=missing)


def _cross_sampler(field: Field, spec: PairSpec) -> Proposals:
    sampler = field.by_number(field.rows["sampler"].rank("dense").to_numpy().astype(np.int64))
    key = field.of[field.best_first] * (int(sampler.max(initial=0)) + 1) + sampler[field.best_first]
    best = field.best_first[np.unique(key, return_index=True)[1]]
    samplers = np.bincount(field.of[best], minlength=len(field.size))
    first, second = _every_two(_before(samplers), samplers)
    missing = {"one_sampler": int(((samplers == 1) & (field.size > 1)).sum())}
    return Proposals(best[first], best[second], missing=missing)


_STRATEGIES: dict[str, Callable[[Field, PairSpec], Proposals]] = {
    "best-worst": _best_worst,
    "best-random": _best_random,
    "random-labelled": _random_labelled,
    "first-round": _first_round,
    "tournament": _tournament,
    "adjacent": _adjacent,
    "all": _all,
    "top-bottom": _top_bottom,
    "length-matched": _length_matched,
    "against-reference": _against_reference,
    "cross-sampler": _cross_sampler,
}


def _neighbours(rows: Ints, of: Ints) -> tuple[Ints, Ints]:
    """In rows by prompt, each prompt's 1st with its 2nd, its 3rd with its 4th and so on."""
    size = np.unique(of[rows], return_counts=True)[1]
    place = np.arange(len(rows)) - np.repeat(_before(size), size)
    first = np.flatnonzero((place % 2 == 0) & (place + 1 < np.repeat(size, size)))
    return rows[first], rows[first + 1]


def _every_two(start: Ints, size: Ints) -> tuple[Ints, Ints]:
    """Every two of the numbers start, …, start + size - 1, the smaller first, prompt by prompt."""
    firsts, seconds = [], []
    for n in np.unique(size):
        i, j = np.triu_indices(int(n), 1)
        of_size = start[size == n][:, None]
        firsts.append((of_size + i).ravel())
        seconds.append((of_size + j).ravel())
    first, second = _joined(firsts), _joined(seconds)
    order = np.argsort(first, kind="stable")
    return first[order], second[order]


def _every_meeting(field: Field, some: Ints, others: Ints) -> tuple[Ints, Ints]:
    """Each of `some` with each of `others` of the same prompt; both stand by prompt."""
    there = np.bincount(field.of[others], minlength=len(field.size))
    meets = there[field.of[some]]
    turn = np.arange(meets.sum()) - np.repeat(_before(meets), meets)
    return np.repeat(some, meets), others[np.repeat(_before(there)[field.of[some]], meets) + turn]


def _inverse(order: Ints) -> Ints:
    """The place of each number in an order of all of them."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place


def _joined(arrays: list[Ints]) -> Ints:
    return np.concatenate([np.empty(0, np.int64), *arrays])


def _before(size: Ints) -> Ints:
    """How many come before each prompt's."""
    before: Ints = np.cumsum(size) - size
    return before
