"""A prompt is computed once for its candidates: its keys and values are kept, and each answer attends to them.

Planning is pure: rows become families (a common beginning and its branches) and batches of little padding. `Branching`
runs them on a causal network whose cache holds every position (`DynamicCache` of plain layers); sliding windows,
recurrent states and encoders keep something else, and there the caller computes whole rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from itertools import takewhile
from threading import Lock, local
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from prefdata.scorers.cores import each
from prefdata.scorers.texts import Row

T = TypeVar("T")

LEAST_SAVED = 16
"""Tokens that a family has to save; below that a pass of its own over its beginning costs more."""

WASTE = 0.015
"""The share of padding above which a batch is closed, once it is large enough to be worth a pass of its own."""

LARGE_ENOUGH = 1 / 16
"""The share of the budget from which on a batch is worth a pass of its own."""

KEPT = 4
"""Budgets of tokens whose keys and values are kept at a time."""


@dataclass(frozen=True, slots=True)
class Family:
    """Rows that begin alike: what they have in common, and each row with what follows."""

    prefix: list[int]
    branches: list[tuple[Row, list[int]]]


def families(rows: Sequence[Row]) -> tuple[list[Family], list[Row]]:
    """The families that save something, and the rows that are computed whole.

    A branch has at least one token, the one at which its score is read.
    """
    by_prompt: dict[int, list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt, []).append(row)
    found, whole = [], []
    for members in by_prompt.values():
        common = _common([row.ids for row in members])
        if common * (len(members) - 1) < LEAST_SAVED:
            whole += members
        else:
            found.append(Family(members[0].ids[:common], [(row, row.ids[common:]) for row in members]))
    return found, whole


def _common(rows: list[list[int]]) -> int:
    """How many tokens all rows begin with, each one's last left out."""
    # In the order of dictionaries, what the first and the last row share is shared by all between.
    same = takewhile(lambda pair: pair[0] == pair[1], zip(min(rows), max(rows), strict=False))
    return min(sum(1 for _ in same), min(map(len, rows)) - 1)


def batches(things: Sequence[T], length: Callable[[T], int], budget: int, beside: int = 0) -> Iterator[list[T]]:
    """The things, the longest first, in batches of little padding.

    Args:
        things: what is batched.
        length: tokens of one.
        budget: most tokens of a batch, padding included; one thing alone may be longer.
        beside: tokens that every row has beside its own (the cache that it attends to).
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


def chunks(found: Sequence[Family], budget: int) -> Iterator[list[Family]]:
    """The families, those with the longest beginnings first, in groups whose keys and values fit the budget."""
    chunk: list[Family] = []
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


class Branching:
    """Runs families on a causal backbone.

    Attributes:
        computed: tokens that went through the network, padding included.
        needed: those that were not padding.
    """

    def __init__(self, backbone: Any, pad: int, device: torch.device, *, several: bool = False) -> None:
        """Wrap a network without its head; `pad` fills the rows, `several` batches run at a time."""
        self._backbone, self._pad, self._device, self._several = backbone, pad, device, several
        self._read = local()  # batches run in several threads
        self._counting = Lock()
        self.computed = self.needed = 0

    def fits(self) -> str | None:
        """Why this network cannot do it, or None where it may: then it is ready. To be asked once, before `states`."""
        parameters = signature(self._backbone.forward).parameters
        if not {"past_key_values", "position_ids", "attention_mask"} <= set(parameters):
            return "the model takes no cache and positions"
        with torch.inference_mode():
            one = torch.tensor([[self._pad]], device=self._device)
            cache = getattr(self._backbone(input_ids=one, use_cache=True), "past_key_values", None)
        if not isinstance(cache, DynamicCache) or any(type(layer) is not DynamicLayer for layer in cache.layers):
            return "the model's cache does not hold every position (a sliding window, a recurrence or an encoder)"
        self._finish_last_only()
        return None

    def states(self, group: list[Family], budget: int) -> Iterator[tuple[list[Row], Tensor]]:
        """Rows of the families with the hidden state at each one's last token, shape (rows, hidden)."""
        group = sorted(group, key=lambda family: len(family.prefix), reverse=True)
        begun = self._beginnings(group, budget)
        width = len(group[0].prefix)
        branches = [(number, row, ids) for number, family in enumerate(group) for row, ids in family.branches]
        planned = batches(branches, lambda branch: len(branch[2]), budget, beside=width)
        yield from each((partial(self._branches, batch, *begun) for batch in planned), several=self._several)

    @torch.inference_mode()
    def _branches(
        self, batch: list[tuple[int, Row, list[int]]], kept: list[tuple[Tensor, Tensor]], lengths: Tensor
    ) -> tuple[list[Row], Tensor]:
        of = torch.tensor([number for number, _, _ in batch], device=self._device)
        ids, ends = padded([ids for _, _, ids in batch], self._pad, self._device)
        begun, own = lengths[of], torch.arange(ids.shape[1], device=self._device)
        seen = torch.arange(int(begun.max()), device=self._device) < begun[:, None]

        def of_each(part: Tensor) -> Tensor:
            return part.index_select(0, of)[:, :, : seen.shape[1]]  # as one index it would take twice as long

        with self._last_only(ends - 1):
            hidden = self._backbone(
                input_ids=ids,
                attention_mask=torch.cat([seen, own < ends[:, None]], 1).long(),
                # What is padding stays within the context.
                position_ids=begun[:, None] + torch.minimum(own, ends[:, None] - 1),
                past_key_values=_cache((of_each(keys), of_each(values)) for keys, values in kept),
                use_cache=True,
            ).last_hidden_state
        self.count(ids, int(ends.sum()))
        return [row for _, row, _ in batch], hidden[torch.arange(len(batch), device=self._device), ends - 1]

    @torch.inference_mode()
    def _beginnings(self, group: list[Family], budget: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Each layer's keys and values of the families' beginnings, shape (families, heads, width, size), and lengths.

        The group has its longest beginning first.
        """
        kept: list[tuple[Tensor, Tensor]] = []
        lengths = torch.tensor([len(family.prefix) for family in group], device=self._device)
        done = 0
        planned = list(batches(group, lambda family: len(family.prefix), budget))
        caches = each((partial(self._beginning, batch) for batch in planned), several=self._several)
        for batch, cache in zip(planned, caches, strict=True):
            for number, layer in enumerate(cache.layers):
                if number == len(kept):
                    shape = (len(group), layer.keys.shape[1], len(group[0].prefix), layer.keys.shape[3])
                    kept.append(
                        (layer.keys.new_zeros(shape), layer.values.new_zeros((*shape[:3], layer.values.shape[3])))
                    )
                for into, found in zip(kept[number], (layer.keys, layer.values), strict=True):
                    into[done : done + len(batch), :, : found.shape[2]] = found
            done += len(batch)
        return kept, lengths

    @torch.inference_mode()
    def _beginning(self, batch: list[Family]) -> Any:
        ids, ends = padded([family.prefix for family in batch], self._pad, self._device)
        own = torch.arange(ids.shape[1], device=self._device)
        mask = None if bool((ends == ids.shape[1]).all()) else (own < ends[:, None]).long()
        with self._last_only(ends - 1):
            cache = self._backbone(input_ids=ids, attention_mask=mask, use_cache=True).past_key_values
        self.count(ids, int(ends.sum()))
        return cache

    def count(self, ids: Tensor, needed: int) -> None:
        """Account for token rows that went through the network."""
        with self._counting:
            self.computed += ids.numel()
            self.needed += needed

    @contextmanager
    def _last_only(self, last: Tensor) -> Iterator[None]:
        """Within it, in this thread, the last layer finishes one token a row, the one that is read."""
        self._read.at = torch.arange(len(last), device=last.device), last
        try:
            yield
        finally:
            self._read.at = None

    def _finish_last_only(self) -> None:
        """Make the last layer heed `_last_only`: of the tokens that are not read only their keys are needed.

        What attention and feed-forward network say of the one is added to all, and the others' states mean nothing.
        """
        layers = getattr(self._backbone, "layers", None) or getattr(self._backbone, "h", None)
        final = layers[-1] if layers else None
        project = getattr(getattr(final, "self_attn", None), "o_proj", None)
        read = self._read

        def pick(_: Any, said: tuple[Any, ...]) -> tuple[Any, ...] | None:
            at = getattr(read, "at", None)
            return None if at is None else (said[0][at][:, None], *said[1:])

        for part in (project, getattr(final, "mlp", None)):
            if isinstance(part, torch.nn.Module):
                part.register_forward_pre_hook(pick)


def _cache(kept: Iterable[tuple[Tensor, Tensor]]) -> DynamicCache:
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(kept):
        cache.update(keys, values, layer)
    return cache
