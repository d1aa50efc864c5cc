"""A prompt is computed once for its candidates: its keys and values are kept, and each response attends to them.

Planning is pure: rows become groups (a common prefix and its branches) and batches of little padding.
`PrefixRunner` runs them on a network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from threading import Lock
from typing import TypeVar

import torch
from torch import Tensor

from prefdata.scorers.classifier.backbones import CachedBackbone, KeysValues
from prefdata.scorers.classifier.cores import each
from prefdata.scorers.classifier.rendering import RenderedText

T = TypeVar("T")

LEAST_SAVED = 16
"""Tokens that a prefix group has to save; below that, a separate pass over its prefix costs more."""

WASTE = 0.015
"""The share of padding above which a batch is closed, once it is large enough to be worth a pass of its own."""

LARGE_ENOUGH = 1 / 16
"""The share of the budget from which on a batch is worth a pass of its own."""

KEPT = 4
"""Budgets of tokens whose keys and values are kept at a time."""


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Rows with a common prefix: the prefix, and the rest of each row."""

    prefix: list[int]
    branches: list[tuple[RenderedText, list[int]]]


def prefix_groups(rows: Sequence[RenderedText]) -> tuple[list[PrefixGroup], list[RenderedText]]:
    """Return the prefix groups that save computation, and the rows that are computed whole.

    A branch has at least one token, the one at which its score is read.
    """
    by_prompt: dict[int, list[RenderedText]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt, []).append(row)
    found, whole = [], []
    for members in by_prompt.values():
        common = _common([row.ids for row in members])
        if common * (len(members) - 1) < LEAST_SAVED:
            whole += members
        else:
            found.append(PrefixGroup(members[0].ids[:common], [(row, row.ids[common:]) for row in members]))
    return found, whole


def _common(rows: list[list[int]]) -> int:
    """How many tokens all rows begin with, each one's last left out."""
    # In the order of dictionaries, what the first and the last row share is shared by all between.
    same = takewhile(lambda pair: pair[0] == pair[1], zip(min(rows), max(rows), strict=False))
    return min(sum(1 for _ in same), min(map(len, rows)) - 1)


def batches(things: Sequence[T], length: Callable[[T], int], budget: int, beside: int = 0) -> Iterator[list[T]]:
    """Batch the things, the longest first, with little padding.

    Args:
        things: what is batched.
        length: tokens of one.
        budget: most tokens of a batch, padding included; one thing alone may be longer.
        beside: tokens that every row has in addition to its own (the cache that it attends to).
    """
    batch: list[T] = []
    width = total = 0
    for thing in sorted(things, key=length, reverse=True):
        tokens = length(thing)
        if batch:
            rows = len(batch) + 1
            padding = 1 - (total + tokens) / (rows * width)
            if rows * (width + beside) > budget or (padding > WASTE and total >= LARGE_ENOUGH * budget):
                yield batch
                batch, total = [], 0
        width = width if batch else tokens
        total += tokens
        batch.append(thing)
    if batch:
        yield batch


def group_batches(found: Sequence[PrefixGroup], budget: int) -> Iterator[list[PrefixGroup]]:
    """Batch the prefix groups, those with the longest prefixes first, so that keys and values fit the budget."""
    chunk: list[PrefixGroup] = []
    for family in sorted(found, key=lambda family: len(family.prefix), reverse=True):
        if chunk and (len(chunk) + 1) * len(chunk[0].prefix) > KEPT * budget:
            yield chunk
            chunk = []
        chunk.append(family)
    if chunk:
        yield chunk


def padded(rows: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token rows padded on the right, and their lengths: shapes (rows, width) and (rows,)."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
    return ids, torch.tensor([len(row) for row in rows], device=device)


class TokenCount:
    """Counts of the tokens that a network has computed.

    Attributes:
        tokens: how many, padding included.
        needed: how many of them were not padding.
    """

    def __init__(self) -> None:
        """Start at 0."""
        self._counting = Lock()  # batches run in several threads
        self.tokens = self.needed = 0

    def add(self, ids: Tensor, needed: int) -> None:
        """Count token rows, with how many of them were not padding."""
        with self._counting:
            self.tokens += ids.numel()
            self.needed += needed

    @property
    def padding(self) -> float:
        """The share of padding."""
        return 1 - self.needed / max(1, self.tokens)


class PrefixRunner:
    """Runs prefix groups on a causal backbone."""

    def __init__(
        self, backbone: CachedBackbone, pad: int, device: torch.device, computed: TokenCount, *, several: bool = False
    ) -> None:
        """`pad` fills the rows, `computed` counts them, `several` batches run at a time."""
        self.backbone, self._pad, self._device, self._several = backbone, pad, device, several
        self._computed = computed

    def states(self, group: list[PrefixGroup], budget: int) -> Iterator[tuple[list[RenderedText], Tensor]]:
        """Rows of the prefix groups with the hidden state at each one's last token, shape (rows, hidden)."""
        group = sorted(group, key=lambda family: len(family.prefix), reverse=True)
        begun = self._beginnings(group, budget)
        width = len(group[0].prefix)
        branches = [(number, row, ids) for number, family in enumerate(group) for row, ids in family.branches]
        planned = batches(branches, lambda branch: len(branch[2]), budget, beside=width)
        yield from each((partial(self._branches, batch, *begun) for batch in planned), several=self._several)

    @torch.inference_mode()
    def _branches(
        self, batch: list[tuple[int, RenderedText, list[int]]], kept: KeysValues, lengths: Tensor
    ) -> tuple[list[RenderedText], Tensor]:
        of = torch.tensor([number for number, _, _ in batch], device=self._device)
        ids, ends = padded([ids for _, _, ids in batch], self._pad, self._device)
        begun = lengths[of]
        width = int(begun.max())

        def of_each(part: Tensor) -> Tensor:
            return part.index_select(0, of)[:, :, :width]  # as one index it would take twice as long

        mine = ((of_each(keys), of_each(values)) for keys, values in kept)
        states = self.backbone.go_on(ids, ends, begun, mine)
        self._computed.add(ids, int(ends.sum()))
        return [row for _, row, _ in batch], states

    @torch.inference_mode()
    def _beginnings(self, group: list[PrefixGroup], budget: int) -> tuple[KeysValues, Tensor]:
        """Each layer's keys and values of the groups' prefixes, shape (groups, heads, width, size), and lengths.

        The longest prefix comes first.
        """
        kept: list[tuple[Tensor, Tensor]] = []
        lengths = torch.tensor([len(family.prefix) for family in group], device=self._device)
        done = 0
        planned = list(batches(group, lambda family: len(family.prefix), budget))
        found = each((partial(self._beginning, batch) for batch in planned), several=self._several)
        for batch, layers in zip(planned, found, strict=True):
            for number, both in enumerate(layers):
                if number == len(kept):
                    keys, values = (_room(one, len(group), len(group[0].prefix)) for one in both)
                    kept.append((keys, values))
                for into, one in zip(kept[number], both, strict=True):
                    into[done : done + len(batch), :, : one.shape[2]] = one
            done += len(batch)
        return kept, lengths

    @torch.inference_mode()
    def _beginning(self, batch: list[PrefixGroup]) -> KeysValues:
        ids, ends = padded([family.prefix for family in batch], self._pad, self._device)
        layers = self.backbone.begin(ids, ends)
        self._computed.add(ids, int(ends.sum()))
        return layers


def _room(like: Tensor, rows: int, width: int) -> Tensor:
    """Zeros for as many rows and places; heads and their size as those of `like`."""
    return like.new_zeros((rows, like.shape[1], width, like.shape[3]))
