"""A rollout by hand: prompts, responses and scores that no model has sampled."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from prefdata.train.batches import Example
from prefdata.train.ppo.rollout import Rollout

LENGTHS = ((3, 5, 1), (7, 2, 4), (6, 6))


def rollout_of(seed: int = 0) -> Rollout:
    """Three prompts with 3, 3 and 2 scored responses of unequal lengths."""
    draw = np.random.default_rng(seed)

    def ids(count: int) -> np.ndarray:
        return draw.integers(4, 260, count, dtype=np.int32)

    examples = [Example(ids(4 + place), tuple(map(ids, lengths))) for place, lengths in enumerate(LENGTHS)]
    present = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0]]).bool()
    scores = torch.tensor(draw.normal(size=(3, 3)), dtype=torch.float32) * present
    truncated = torch.tensor([[0, 1, 0], [0, 0, 0], [1, 0, 0]]).bool()
    return Rollout(examples, 3, scores, truncated, present, Counter(), {}, [], {})
