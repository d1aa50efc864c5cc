"""Which two answers of a prompt are compared, and in which order they are shown.

- first-round: all in random order, the 1st with the 2nd, the 3rd with the 4th, …: n/2 comparisons (RSO, 2309.06657).
- tournament: knock-out in random order, the winner stays: n-1 comparisons (SLiC-HF, 2305.10425).
- all: every two, n(n-1)/2.

In both orders each two are shown twice, so that a judge who prefers the first place is found out: where the verdicts
differ, their mean is near one half. With `flip` they are shown once, in a random order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from prefdata import ids
from prefdata.specs.rank import CompareSpec

ORDERS = ("first-second", "second-first")

Two = tuple[str, str]
"""Two candidates' ids, in the random order of the schedule."""

Seen = dict[tuple[Two, str], float | None]
"""The verdicts so far: the probability that the first beats the second, by the two and their order."""


def schedule(group: Sequence[str], seen: Seen, spec: CompareSpec) -> Iterator[Two]:
    """Yield the comparisons of one prompt's candidates, in their random order, as far as they can be known yet."""
    if spec.schedule == "all":
        yield from combinations(group, 2)
    elif spec.schedule == "first-round":
        yield from zip(group[::2], group[1::2], strict=False)
    else:
        champion = group[0]
        for challenger in group[1:]:
            two = (champion, challenger)
            yield two
            verdicts = [seen[two, order] for order in orders(two, spec) if (two, order) in seen]
            if len(verdicts) < len(orders(two, spec)):
                return  # who meets the next one is not known yet
            known = [probability for probability in verdicts if probability is not None]
            champion = challenger if known and sum(known) / len(known) < 0.5 else champion


def orders(two: Two, spec: CompareSpec) -> tuple[str, ...]:
    """In which orders two candidates are shown."""
    if spec.order == "both":
        return ORDERS
    return (ORDERS[int(ids.unit_uniform(spec.seed, "order", *two) < 0.5)],)


def how_many(answers: int, spec: CompareSpec) -> int:
    """How many comparisons a prompt with so many answers comes to."""
    rounds = {"all": answers * (answers - 1) // 2, "first-round": answers // 2, "tournament": max(answers - 1, 0)}
    return rounds[spec.schedule] * (2 if spec.order == "both" else 1)
