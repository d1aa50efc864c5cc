"""Trees of tokens, the order they are trained in, and the padded batches that a model takes.

A tree is one prompt and its K responses: K = 1 for supervised fine-tuning, 2 for pairs. A batch lays each response out
as a row of its own, behind its prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from prefdata.ids import ID_DIGITS, seed

Ids = np.ndarray
"""A vector of token ids, int32."""


@dataclass(frozen=True, slots=True)
class Tree:
    """One prompt and its responses.

    `trained[k]` says which tokens of response k count (None: all of them). The first token of a tree has nothing before
    it that could predict it and never counts.
    """

    prompt: Ids
    responses: tuple[Ids, ...]
    trained: tuple[np.ndarray, ...] | None = None
    weight: float = 1.0
    margin: float = 0.0
    probability: float = 1.0

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return len(self.prompt) + max(len(response) for response in self.responses)

    @property
    def tokens(self) -> int:
        """Tokens of all rows together."""
        return sum(len(self.prompt) + len(response) for response in self.responses)

    @property
    def trained_tokens(self) -> int:
        """Tokens that count, of all responses."""
        return sum(len(self.targets(k)) for k in range(len(self.responses)))

    def targets(self, k: int) -> np.ndarray:
        """Positions, in the row of response k, of the tokens that count."""
        start = len(self.prompt)
        if self.trained is None:
            return np.arange(max(start, 1), start + len(self.responses[k]))
        places = np.flatnonzero(self.trained[k]) + start
        return places[places > 0]


@dataclass(frozen=True, slots=True)
class Batch:
    """`E` trees of `K` responses as `R = E * K` padded rows; row `e * K + k` is response k of tree e.

    Attributes:
        tokens: `[R, T]` ids, padded on the right.
        predicts: `[N]` flat positions (`row * T + column`) whose next token counts.
        targets: `[N]` those next tokens.
        ends: `[R]` column of each row's last token.
        weight, margin: `[E]`.
        labels: `[E, 2]` the probabilities that a pair's label is right, and that it is flipped.
        counts: `[R]` tokens that count.
        weights: `[E]` the same numbers as `weight`, to count with.
        width: K.
        index: the trees' places in the data.
    """

    tokens: Tensor
    predicts: Tensor
    targets: Tensor
    ends: Tensor
    weight: Tensor
    margin: Tensor
    labels: Tensor
    counts: list[int]
    weights: list[float]
    width: int
    index: np.ndarray

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        if device.type == "cpu":
            return self
        names = ("tokens", "predicts", "targets", "ends", "weight", "margin", "labels")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


def collate(trees: Sequence[Tree], index: np.ndarray) -> Batch:
    """The trees at `index` as one batch."""
    chosen = [trees[i] for i in index]
    width, columns = len(chosen[0].responses), max(tree.length for tree in chosen)
    tokens = np.zeros((len(chosen) * width, columns), dtype=np.int64)
    ends = np.empty(len(tokens), dtype=np.int64)
    places = []
    for row in range(len(tokens)):
        tree, k = chosen[row // width], row % width
        start, end = len(tree.prompt), len(tree.prompt) + len(tree.responses[k])
        tokens[row, :start] = tree.prompt
        tokens[row, start:end] = tree.responses[k]
        ends[row] = end - 1
        places.append(tree.targets(k) + row * columns)
    flat = np.concatenate(places)
    return Batch(
        tokens=torch.from_numpy(tokens),
        predicts=torch.from_numpy(flat - 1),
        targets=torch.from_numpy(tokens.reshape(-1)[flat]),
        ends=torch.from_numpy(ends),
        weight=torch.tensor([tree.weight for tree in chosen], dtype=torch.float32),
        margin=torch.tensor([tree.margin for tree in chosen], dtype=torch.float32),
        # Each rounded once from float64, so that p = 1 - e gives the very numbers that label smoothing by e does.
        labels=torch.tensor([[tree.probability, 1 - tree.probability] for tree in chosen], dtype=torch.float32),
        counts=[len(place) for place in places],
        weights=[tree.weight for tree in chosen],
        width=width,
        index=np.asarray(index),
    )


def micro_batches(trees: Sequence[Tree], index: Sequence[int], max_tokens: int) -> Iterator[Batch]:
    """The trees at `index` in batches of at most `max_tokens` tokens with padding, of trees that are alike in length.

    A tree that is larger than `max_tokens` gets a batch of its own: the bound on length is the data's business.
    """
    waiting: list[int] = []
    for i in sorted(index, key=lambda i: (trees[i].length, i)):
        if waiting and (len(waiting) + 1) * len(trees[i].responses) * trees[i].length > max_tokens:
            yield collate(trees, np.array(waiting))
            waiting = []
        waiting.append(i)
    if waiting:
        yield collate(trees, np.array(waiting))


@lru_cache(maxsize=2)
def order(count: int, run_seed: int, epoch: int) -> np.ndarray:
    """The order of `count` trees in an epoch (from 0): a permutation that only the seed and the epoch decide."""
    return np.random.Generator(np.random.PCG64(seed(run_seed, "order", epoch))).permutation(count)


def step_index(count: int, batch_size: int, run_seed: int, step: int) -> np.ndarray:
    """Which trees an optimiser step (from 0) trains on; the last step of an epoch may have fewer."""
    epoch, place = divmod(step, steps_per_epoch(count, batch_size))
    return order(count, run_seed, epoch)[place * batch_size : (place + 1) * batch_size]


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Optimiser steps that see every tree once."""
    return -(-count // batch_size)


def content(trees: Sequence[Tree]) -> str:
    """The id of what the trees hold: their tokens and which of them count."""
    sha = hashlib.sha256()
    for tree in trees:
        for part in (tree.prompt, *tree.responses, *(tree.trained or ())):
            sha.update(len(part).to_bytes(8, "little"))
            sha.update(np.ascontiguousarray(part).tobytes())
    return sha.hexdigest()[:ID_DIGITS]
