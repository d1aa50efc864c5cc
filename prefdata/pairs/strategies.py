"""The strategies: which two candidates of a prompt are proposed as a pair. Pure, and for all prompts at once.

A strategy names `RankedCandidates` by row number. Each has its rule; i counts a prompt's candidates from the best (of
equals the earlier sample is better), n is how many there are, and random choices are made by candidate id and seed.

- best-worst: the i-th best against the i-th worst, for i up to `per_prompt` and n/2; none is in two pairs.
- best-random: the best against one of the others, at random.
- random-labelled: `per_prompt` of the n(n-1)/2 possible pairs, at random (SLiC-HF, 2305.10425).
- first-round: all in random order, the 1st against the 2nd, the 3rd against the 4th, … (RSO, 2309.06657, section 4).
- tournament: the first round, then its winners by score, and so on: n-1 pairs (RSO).
- adjacent: the i-th best against the next.
- all: every two.
- top-bottom: each of the `top` best against each of the `bottom` worst of the others; one answer at least is left for
  the bottom.
- length-matched: the i-th best that is left, for i up to `per_prompt`, against what scores less and is nearest to it in
  length, by at most `length_tolerance` of the longer; of equals the worst. None is in two pairs.
- against-reference: every candidate against every one of the reference's sampler.
- cross-sampler: each sampler's best against each other one's.

Where truncated responses may only be rejected, the best is the best of the others, also in a tournament.
A prompt of two candidates or more for which there is nothing to propose is counted by the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import field as attribute
from functools import cached_property

import numpy as np

from prefdata.keyed_random import uniforms
from prefdata.specs import PairSpec
from prefdata.stats.ragged import Floats, Ints, RaggedRows, argmin_last, argsort_desc, offsets


@dataclass(frozen=True)
class RankedCandidates(RaggedRows):
    """The candidates of some prompts, ranked by score; each is named by its row number.

    `rows` have candidate_id, prompt_id, sampler, sample_index, score, chars and may_be_chosen.
    """

    @cached_property
    def turn(self) -> Ints:
        """0, 1, … for each prompt's first, second, … row, shape (rows,)."""
        turn: Ints = np.arange(self.rows.height) - self.starts[self.prompt_index]
        return turn

    @cached_property
    def ranked(self) -> Ints:
        """Rows by prompt, best first, of equals the earlier sample."""
        ranked = np.arange(self.rows.height)
        for block in self.blocks():
            best = argsort_desc(block.scatter(self._score, -np.inf))
            ranked[block.rows] = block.gather(np.take_along_axis(block.scatter(ranked, -1), best, axis=1))
        return ranked

    @cached_property
    def rank(self) -> Ints:
        """How many rows come before each in `ranked`."""
        return _inverse_permutation(self.ranked)

    @cached_property
    def best_first(self) -> Ints:
        """Rows as in `ranked`, but each prompt's that may be chosen before those that may not."""
        if self.all_may_be_chosen:
            return self.ranked
        best_first: Ints = np.lexsort((self.rank, ~self.column("may_be_chosen"), self.prompt_index))
        return best_first

    @cached_property
    def all_may_be_chosen(self) -> bool:
        """Whether each candidate may be a pair's chosen one."""
        return bool(self.rows["may_be_chosen"].all())

    def best_and_worst(self) -> tuple[Ints, Ints]:
        """Return the first and last of each prompt in `ranked`, without a full ranking; shape (prompts,)."""
        best, worst = np.empty_like(self.starts), np.empty_like(self.starts)
        for block in self.blocks():
            first = self.starts[block.prompts]
            best[block.prompts] = first + block.scatter(self._score, -np.inf).argmax(axis=1)
            worst[block.prompts] = first + argmin_last(block.scatter(self._score, np.inf))
        return best, worst

    @cached_property
    def _score(self) -> Floats:
        """Finite scores, so that nothing ranks with the padding of a block; candidates without one come last."""
        least = float(np.finfo(np.float64).min)
        return self.rows["score"].fill_nan(None).fill_null(least).clip(least, -least).to_numpy()

    def of_each(self, choose: np.ufunc, values: Floats) -> Floats:
        """Each prompt's minimum, maximum, … of `values`, shape (rows,); the result has shape (prompts,)."""
        chosen: Floats = choose.reduceat(values, self.starts) if len(self.starts) else np.empty(0)
        return chosen

    def without(self, some: Ints) -> Ints:
        """Return the other candidates, by prompt, best first."""
        other = np.ones(self.rows.height, bool)
        other[some] = False
        others: Ints = self.ranked[other[self.ranked]]
        return others


@dataclass(frozen=True)
class Proposals:
    """Pairs of candidates, by row number.

    Attributes:
        first, second: the two of each, shape (pairs,).
        decided: the first is meant as the chosen one; else the higher score decides.
        one_each: no prompt has two of them.
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


def propose(candidates: RankedCandidates, spec: PairSpec) -> Proposals:
    """Return the proposals of the strategy of `spec`."""
    return _STRATEGIES[spec.strategy](candidates, spec)


def _best_worst(candidates: RankedCandidates, spec: PairSpec) -> Proposals:
    if spec.per_prompt == 1 and candidates.all_may_be_chosen:
        best, worst = candidates.best_and_worst()
        several = candidates.sizes > 1
        return Proposals(best[several], worst[several], decided=True, one_each=True)
    half = np.minimum(spec.per_prompt, candidates.sizes // 2)
    prompt = np.repeat(np.arange(len(half)), half)
    turn = np.arange(len(prompt)) - offsets(half)[prompt]
    chosen = candidates.best_first[candidates.starts[prompt] + turn]
    rejected = candidates.ranked[candidates.starts[prompt] + candidates.sizes[prompt] - 1 - turn]
    # Where the worst is the only one that may be chosen, the truncated best shows what cannot be a pair.
    rejected = np.where((chosen == rejected) & (turn == 0), candidates.ranked[candidates.starts[prompt]], rejected)
    met = (candidates.rank[chosen] < candidates.rank[rejected]) | (
        turn == 0
    )  # else best and worst have passed each other
    return Proposals(chosen[met], rejected[met], decided=True)


def _best_random(candidates: RankedCandidates, spec: PairSpec) -> Proposals:
    best = candidates.best_first[candidates.starts]
    uniform = _uniforms(candidates, spec)
    uniform[best] = 2.0
    lowest = candidates.of_each(np.minimum, uniform)
    rejected = np.flatnonzero((uniform == lowest[candidates.prompt_index]) & (uniform < 2.0))
    return Proposals(best[candidates.prompt_index[rejected]], rejected, decided=True)


def _random_labelled(candidates: RankedCandidates, spec: PairSpec) -> Proposals:
    possible = candidates.sizes * (candidates.sizes - 1) // 2
    prompts = candidates.rows["prompt_id"][candidates.starts]
    drawn: list[Ints] = []
    for turn in range(min(spec.per_prompt, int(possible.max(initial=0)))):
        # Floyd's sampling without replacement: of the first t + 1 numbers one, or t where it was drawn before.
        last = possible - np.minimum(spec.per_prompt, possible) + turn
        number = (uniforms(prompts, spec.seed, "random-labelled", turn) * (last + 1)).astype(np.int64)
        before = np.any([number == one for one in drawn], axis=0) if drawn else np.zeros(len(number), bool)
        drawn.append(np.where(last < possible, np.where(before, last, number), -1))
    number, prompt = _concatenate(drawn), np.tile(np.arange(len(possible)), len(drawn))
    number, prompt = number[number >= 0], prompt[number >= 0]
    second = ((1 + np.sqrt(1 + 8 * number)) // 2).astype(np.int64)  # the number-th of (0,1), (0,2), (1,2), (0,3), …
    first = number - second * (second - 1) // 2
    order = np.lexsort((second, first, prompt))
    first, second = ((candidates.starts[prompt] + one)[order] for one in (first, second))
    return Proposals(candidates.ranked[first], candidates.ranked[second])


def _first_round(candidates: RankedCandidates, spec: PairSpec) -> Proposals:
    return Proposals(*_adjacent_pairs(_shuffled(candidates, spec), candidates.prompt_index))


def _tournament(candidates: RankedCandidates, spec: PairSpec) -> Proposals:
    standing, rounds = _shuffled(candidates, spec), []
    rank = _inverse_permutation(candidates.best_first)
    stays_in = np.ones(len(rank), bool)
    while True:
        first, second = _adjacent_pairs(standing, candidates.prompt_index)
        if not len(first):
            break
        rounds.append((first, second))
        stays_in[np.where(rank[first] > rank[second], first, second)] = False
        standing = standing[stays_in[standing]]  # one that has met no other stays in
    firsts, seconds = ([pair[side] for pair in rounds] for side in (0, 1))
    return Proposals(_concatenate(firsts), _concatenate(seconds))


def _adjacent(candidates: RankedCandidates, spec: PairSpec) -> Proposals:
    first = np.flatnonzero(candidates.turn + 1 < candidates.sizes[candidates.prompt_index])
    return Proposals(candidates.ranked[first], candidates.ranked[first + 1])


def _all(candidates: RankedCandidates, spec: PairSpec) -> Proposals:
    return Proposals(*_all_pairs(candidates.starts, candidates.sizes))


def _top_bottom(candidates: RankedCandidates, spec: PairSpec) -> Proposals:
    top = np.minimum(spec.top, candidates.sizes - 1)  # one is left for the bottom
    best = candidates.best_first[candidates.turn < top[candidates.prompt_index]]
    rest = candidates.without(best)
    from_the_end = (np.cumsum(candidates.sizes - top)[candidates.prompt_index[rest]] - 1) - np.arange(len(rest))
    return Proposals(*_cross_pairs(candidates, best, rest[from_the_end < spec.bottom]), decided=True)


def _length_matched(candidates: RankedCandidates, spec: PairSpec) -> Proposals:
    chars, score = candidates.column("chars").astype(np.float64), candidates.column("score")
    free = np.ones(len(candidates.prompt_index), bool)
    firsts, seconds, unmatched = [], [], 0
    for _ in range(spec.per_prompt):
        left = candidates.best_first[free[candidates.best_first]]
        prompts, at, there = np.unique(candidates.prompt_index[left], return_index=True, return_counts=True)
        prompts, at = prompts[there > 1], at[there > 1]
        if not len(prompts):
            break
        best = np.full(len(candidates.sizes), -1)
        best[prompts] = left[at]
        free[best[prompts]] = False
        mine = best[candidates.prompt_index]
        apart = np.abs(chars - chars[mine])
        near = apart / np.maximum(chars, chars[mine]) <= spec.length_tolerance
        fits = np.flatnonzero(free & (mine >= 0) & near)
        # Who scores less goes before who does not, so that the latter is named only where it is the reason for no pair.
        order = fits[
            np.lexsort(
                (-candidates.rank[fits], apart[fits], score[fits] >= score[mine[fits]], candidates.prompt_index[fits])
            )
        ]
        found, at = np.unique(candidates.prompt_index[order], return_index=True)
        firsts.append(best[found])
        seconds.append(order[at])
        unmatched += len(prompts) - len(found)
        free[seconds[-1]] = score[seconds[-1]] >= score[firsts[-1]]
    missing = {"no_length_match": unmatched}
    return Proposals(_concatenate(firsts), _concatenate(seconds), decided=True, missing=missing)


def _against_reference(candidates: RankedCandidates, spec: PairSpec) -> Proposals:
    references = np.flatnonzero((candidates.rows["sampler"] == spec.reference).to_numpy())
    first, second = _cross_pairs(candidates, references, candidates.without(references))
    has = np.bincount(candidates.prompt_index[references], minlength=len(candidates.sizes))
    missing = {
        "no_reference": int(((has == 0) & (candidates.sizes > 1)).sum()),
        "nothing_but_references": int(((has == candidates.sizes) & (candidates.sizes > 1)).sum()),
    }
    if not spec.trust_reference:
        return Proposals(first, second, missing=missing)
    return Proposals(first, second, decided=True, probability=np.ones(len(first)), missing=missing)


def _cross_sampler(candidates: RankedCandidates, spec: PairSpec) -> Proposals:
    sampler = candidates.rows["sampler"].rank("dense").to_numpy().astype(np.int64)
    key = (
        candidates.prompt_index[candidates.best_first] * (int(sampler.max(initial=0)) + 1)
        + sampler[candidates.best_first]
    )
    best = candidates.best_first[np.unique(key, return_index=True)[1]]
    samplers = np.bincount(candidates.prompt_index[best], minlength=len(candidates.sizes))
    first, second = _all_pairs(offsets(samplers), samplers)
    missing = {"one_sampler": int(((samplers == 1) & (candidates.sizes > 1)).sum())}
    return Proposals(best[first], best[second], missing=missing)


_STRATEGIES: dict[str, Callable[[RankedCandidates, PairSpec], Proposals]] = {
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


def _uniforms(candidates: RankedCandidates, spec: PairSpec) -> Floats:
    """Return a random number in (0, 1) for each candidate, determined by its id, shape (rows,)."""
    return uniforms(candidates.rows["candidate_id"], spec.seed, "pair", spec.strategy)


def _shuffled(candidates: RankedCandidates, spec: PairSpec) -> Ints:
    """Return the candidates by prompt, each prompt's in random order."""
    order: Ints = np.lexsort((_uniforms(candidates, spec), candidates.prompt_index))
    return order


def _adjacent_pairs(rows: Ints, of: Ints) -> tuple[Ints, Ints]:
    """In rows by prompt, each prompt's 1st with its 2nd, its 3rd with its 4th and so on."""
    size = np.unique(of[rows], return_counts=True)[1]
    place = np.arange(len(rows)) - np.repeat(offsets(size), size)
    first = np.flatnonzero((place % 2 == 0) & (place + 1 < np.repeat(size, size)))
    return rows[first], rows[first + 1]


def _all_pairs(start: Ints, size: Ints) -> tuple[Ints, Ints]:
    """Every two of the numbers start, …, start + size - 1, the smaller first, prompt by prompt."""
    firsts, seconds = [], []
    for n in np.unique(size):
        i, j = np.triu_indices(int(n), 1)
        of_size = start[size == n][:, None]
        firsts.append((of_size + i).ravel())
        seconds.append((of_size + j).ravel())
    first, second = _concatenate(firsts), _concatenate(seconds)
    order = np.argsort(first, kind="stable")
    return first[order], second[order]


def _cross_pairs(candidates: RankedCandidates, some: Ints, others: Ints) -> tuple[Ints, Ints]:
    """Each of `some` with each of `others` of the same prompt; both are ordered by prompt."""
    there = np.bincount(candidates.prompt_index[others], minlength=len(candidates.sizes))
    meets = there[candidates.prompt_index[some]]
    turn = np.arange(meets.sum()) - np.repeat(offsets(meets), meets)
    return np.repeat(some, meets), others[np.repeat(offsets(there)[candidates.prompt_index[some]], meets) + turn]


def _inverse_permutation(order: Ints) -> Ints:
    """Return the position of each number in a permutation."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place


def _concatenate(arrays: list[Ints]) -> Ints:
    return np.concatenate([np.empty(0, np.int64), *arrays])
