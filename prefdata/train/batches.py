"""Examples as token ids, their order in training, and batches for the model.

An example is a prompt and its K responses: K = 1 for demonstrations and unpaired data, 2 for pairs, more for groups. A
batch is laid out in one of two ways:

- `packed`: one row without padding, which holds each prompt once, followed by its responses. Positions start again
  after the prompt, and the attention of `prefdata.train.attention` keeps responses apart. A prompt is computed once for
  all of its responses, with gradient.
- `padded`: each response is a row of its own after its prompt, padded on the right. It works for any causal model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from prefdata.ids import ID_DIGITS, seed
from prefdata.train.attention import Packing, Span

Ids = np.ndarray
"""A vector of token ids, int32."""

Layout = Literal["packed", "padded"]
"""How a batch's tokens are laid out for the model."""


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt and its responses.

    Attributes:
        prompt: token ids.
        responses: token ids of each response; the chosen one of a pair is first.
        trained: which tokens of each response count; None: all of them. The first token of an example never counts:
            no token precedes it.
        weight: the example's weight in the loss.
        margin: the reward gap that the chosen response should have.
        probability: the probability that a pair's label is right.
        label: whether the response is desirable, for unpaired data.
        ratings: the ratings of each response by attribute, for groups.
    """

    prompt: Ids
    responses: tuple[Ids, ...]
    trained: tuple[np.ndarray, ...] | None = None
    weight: float = 1.0
    margin: float = 0.0
    probability: float = 1.0
    label: bool | None = None
    ratings: tuple[tuple[float, ...], ...] | None = None

    @property
    def length(self) -> int:
        """Tokens of the prompt with the longest response."""
        return len(self.prompt) + max(len(response) for response in self.responses)

    @property
    def tokens(self) -> int:
        """Tokens of all responses, each with the prompt."""
        return sum(len(self.prompt) + len(response) for response in self.responses)

    @property
    def shared_tokens(self) -> int:
        """Tokens of the prompt, once, and of all responses."""
        return len(self.prompt) + sum(len(response) for response in self.responses)

    @property
    def trained_tokens(self) -> int:
        """Tokens that count, of all responses."""
        return sum(len(self.trained_places(k)) for k in range(len(self.responses)))

    def trained_places(self, k: int) -> np.ndarray:
        """Return the indices, within response k, of the tokens that count."""
        places = np.arange(len(self.responses[k])) if self.trained is None else np.flatnonzero(self.trained[k])
        return places if len(self.prompt) else places[places > 0]


@dataclass(frozen=True, slots=True)
class Batch:
    """`E` examples with up to `K` responses: token ids for the model, and labels for the loss; `N` tokens count.

    Attributes:
        input_ids: `[1, M]` packed, or padded with one row per response.
        position_ids: as `input_ids`; None where every row starts at 0.
        packing: the positions of the examples in a packed row; None for padded rows.
        predictors: `[N]` flat indices into `input_ids` of the tokens whose next token counts.
        targets: `[N]` ids of those next tokens.
        row: `[N]` the response of each, `e * K + k`.
        position: `[N]` its index in the response.
        ends: `[E, K]` flat indices of each response's last token; 0 where there is no such response.
        counts: `[E, K]` tokens that count.
        present: `[E, K]` whether the example has that response.
        weight: `[E]` the examples' weights in the loss.
        margin: `[E]` the reward gap that the chosen response should have.
        labels: `[E, 2]` the probabilities that a pair's label is right, and that it is flipped.
        label: `[E]` 1 where the response is desirable, else 0.
        ratings: `[E, K, A]` by attribute, NaN where there is none.
        index: the examples' indices in the data.
    """

    input_ids: Tensor
    position_ids: Tensor | None
    packing: Packing | None
    predictors: Tensor
    targets: Tensor
    row: Tensor
    position: Tensor
    ends: Tensor
    counts: Tensor
    present: Tensor
    weight: Tensor
    margin: Tensor
    labels: Tensor
    label: Tensor
    ratings: Tensor
    index: np.ndarray

    def to(self, device: torch.device) -> Batch:
        """Copy the batch to `device`."""
        if device.type == "cpu":
            return self
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in values if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def collate(
    examples: Sequence[Example], index: np.ndarray, layout: Layout = "padded", width: int | None = None
) -> Batch:
    """Collate the examples at `index` into one batch; K is `width`, or the largest number of responses among them."""
    taken = [examples[i] for i in index]
    width = width or max(len(example.responses) for example in taken)
    placed = _packed(taken) if layout == "packed" else _padded(taken)
    targets, rows, positions = _targets(taken, width)
    ends = np.zeros((len(taken), width), dtype=np.int64)
    predictors = []
    for (e, k), (before, start) in placed.starts.items():
        ends[e, k] = start + len(taken[e].responses[k]) - 1
        flat = start + taken[e].trained_places(k) - 1
        predictors.append(np.where(flat < start, before, flat))  # the prompt's end predicts the first token
    counts = np.bincount(rows, minlength=len(taken) * width).reshape(-1, width)
    return Batch(
        input_ids=torch.from_numpy(placed.ids),
        position_ids=None if placed.positions is None else torch.from_numpy(placed.positions),
        packing=placed.packing,
        predictors=torch.from_numpy(np.concatenate(predictors)),
        targets=torch.from_numpy(targets),
        row=torch.from_numpy(rows),
        position=torch.from_numpy(positions),
        ends=torch.from_numpy(ends),
        counts=torch.from_numpy(counts),
        present=torch.tensor([[k < len(example.responses) for k in range(width)] for example in taken]),
        index=np.asarray(index),
        **_labels(taken, width),
    )


@dataclass(frozen=True, slots=True)
class _Placed:
    """Laid-out tokens: `starts[e, k]` is the flat index of the prompt's last token and of the response's first."""

    ids: np.ndarray
    positions: np.ndarray | None
    packing: Packing | None
    starts: dict[tuple[int, int], tuple[int, int]]


def _packed(examples: Sequence[Example]) -> _Placed:
    ids, positions, spans, starts, at = [], [], [], {}, 0
    for e, example in enumerate(examples):
        prompt = len(example.prompt)
        spans.append(Span(at, prompt, tuple(map(len, example.responses))))
        ids += [example.prompt, *example.responses]
        positions += [np.arange(prompt), *(prompt + np.arange(len(response)) for response in example.responses)]
        before, at = at + prompt - 1, at + prompt
        for k, response in enumerate(example.responses):
            starts[e, k] = before, at
            at += len(response)
    packed = np.concatenate(ids).astype(np.int64)[None]
    return _Placed(packed, np.concatenate(positions)[None], Packing(tuple(spans)), starts)


def _padded(examples: Sequence[Example]) -> _Placed:
    columns = max(example.length for example in examples)
    ids = np.zeros((sum(len(example.responses) for example in examples), columns), dtype=np.int64)
    starts: dict[tuple[int, int], tuple[int, int]] = {}
    for e, example in enumerate(examples):
        start = len(example.prompt)
        for k, response in enumerate(example.responses):
            row = len(starts)
            ids[row, :start] = example.prompt
            ids[row, start : start + len(response)] = response
            starts[e, k] = row * columns + start - 1, row * columns + start
    return _Placed(ids, None, None, starts)


def _targets(examples: Sequence[Example], width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the tokens that count, the response of each (`e * width + k`) and its index there."""
    targets, rows, positions = [], [], []
    for e, example in enumerate(examples):
        for k, response in enumerate(example.responses):
            places = example.trained_places(k)
            targets.append(response[places].astype(np.int64))
            rows.append(np.full(len(places), e * width + k))
            positions.append(places)
    return np.concatenate(targets), np.concatenate(rows), np.concatenate(positions)


def _labels(examples: Sequence[Example], width: int) -> dict[str, Tensor]:
    """Collect the examples' weights, margins, labels and ratings, as `Batch` holds them."""
    rated = [example.ratings for example in examples if example.ratings]
    ratings = np.full((len(examples), width, len(rated[0][0]) if rated else 1), np.nan, dtype=np.float32)
    for e, example in enumerate(examples):
        if example.ratings:
            ratings[e, : len(example.ratings)] = example.ratings
    return {
        "weight": torch.tensor([example.weight for example in examples], dtype=torch.float32),
        "margin": torch.tensor([example.margin for example in examples], dtype=torch.float32),
        # Each is rounded once from float64, so that p = 1 - e gives the same bits as label smoothing by e.
        "labels": torch.tensor([[e.probability, 1 - e.probability] for e in examples], dtype=torch.float32),
        "label": torch.tensor([float(example.label or 0) for example in examples]),
        "ratings": torch.from_numpy(ratings),
    }


def micro_batches(
    examples: Sequence[Example], index: Sequence[int], max_tokens: int, layout: Layout = "padded"
) -> Iterator[Batch]:
    """Batch the examples at `index`: at most `max_tokens` tokens each, padding included, of similar lengths.

    All have the same K. An example that is larger than `max_tokens` gets a batch of its own; `max_length` bounds it.
    """
    yield from collated(examples, index, cuts(examples, index, max_tokens, layout), layout)


def collated(
    examples: Sequence[Example], index: Sequence[int], parts: Iterable[Sequence[int]], layout: Layout
) -> Iterator[Batch]:
    """Collate each of `parts` of `index` into a batch; all have the K of the whole index."""
    width = max((len(examples[i].responses) for i in index), default=1)
    for part in parts:
        yield collate(examples, np.array(part), layout, width)


def cuts(examples: Sequence[Example], index: Sequence[int], max_tokens: int, layout: Layout) -> list[list[int]]:
    """Cut the examples at `index`, by length, into parts of at most `max_tokens` tokens, or of one example."""
    parts: list[list[int]] = []
    rows = tokens = 0
    for i in sorted(index, key=lambda i: (examples[i].length, i)):
        rows, tokens = rows + len(examples[i].responses), tokens + examples[i].shared_tokens
        if not parts or (tokens if layout == "packed" else rows * examples[i].length) > max_tokens:
            parts.append([])
            rows, tokens = len(examples[i].responses), examples[i].shared_tokens
        parts[-1].append(i)
    return parts


def shares(
    examples: Sequence[Example], index: Sequence[int], max_tokens: int, layout: Layout, world: int
) -> list[list[list[int]]]:
    """Divide the parts of `cuts` among `world` processes, such that each has about as many tokens.

    They are the same parts for any `world`, unless there are fewer than processes: then they are cut smaller. The first
    process always has one.
    """

    def cost(part: Sequence[int]) -> int:
        if layout == "packed":
            return sum(examples[i].shared_tokens for i in part)
        return sum(len(examples[i].responses) for i in part) * max(examples[i].length for i in part)

    parts = cuts(examples, index, max_tokens, layout)
    tokens = sum(map(cost, parts)) // world
    while len(parts) < min(world, len(index)):
        parts = cuts(examples, index, tokens, layout)
        tokens //= 2
    taken: list[list[list[int]]] = [[] for _ in range(world)]
    loads = [0] * world
    for part in sorted(parts, key=cost, reverse=True):  # the largest first, to the process that has the least
        least = loads.index(min(loads))
        taken[least].append(part)
        loads[least] += cost(part)
    # In the order of the parts, so that the sums of one process do not depend on their sizes.
    return [sorted(own, key=lambda part: (examples[part[0]].length, part[0])) for own in taken]


@lru_cache(maxsize=2)
def order(count: int, run_seed: int, epoch: int) -> np.ndarray:
    """Permute `count` examples for an epoch (from 0); the permutation depends on the seed and the epoch only."""
    return np.random.Generator(np.random.PCG64(seed(run_seed, "order", epoch))).permutation(count)


def step_indices(count: int, batch_size: int, run_seed: int, step: int) -> np.ndarray:
    """Return the indices of the examples of an optimiser step (from 0); the last step of an epoch may have fewer."""
    epoch, place = divmod(step, steps_per_epoch(count, batch_size))
    return order(count, run_seed, epoch)[place * batch_size : (place + 1) * batch_size]


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Count the optimiser steps in which every example is seen once."""
    return -(-count // batch_size)


def content_hash(examples: Sequence[Example]) -> str:
    """Hash the content of the examples: their tokens and which of them count."""
    sha = hashlib.sha256()
    for example in examples:
        for part in (example.prompt, *example.responses, *(example.trained or ())):
            sha.update(len(part).to_bytes(8, "little"))
            sha.update(np.ascontiguousarray(part).tobytes())
    return sha.hexdigest()[:ID_DIGITS]
