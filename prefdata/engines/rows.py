"""Rows under way on a network: prompts and their answers so far, left-padded, with their attention mask and cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Positions that a cache keeps free for coming tokens."""


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A cache layer with room for coming tokens, so that a new one does not copy all that came before it."""

    def __init__(self, **kwargs: Any) -> None:
        """An empty layer."""
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new positions behind the old ones; returns all keys and values, (B, heads, positions, size)."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._buffers is None or self._buffers[0].shape[-2] < end:
            self._buffers = _roomy(self.keys, key_states, end), _roomy(self.values, value_states, end)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = new
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in that order."""
        super().batch_select_indices(indices)
        self._buffers = None


def _roomy(held: Tensor | None, new: Tensor, end: int) -> Tensor:
    buffer = new.new_empty(*new.shape[:2], end + ROOM, new.shape[-1])
    if held is not None and held.numel():
        buffer[:, :, : held.shape[-2]] = held
    return buffer


class Rows:
    """The rows of a batch.

    Attributes:
        logits: (B, V) of each row's next token.
    """

    def __init__(self, net: Any, prompts: Sequence[tuple[int, ...]], most: int) -> None:
        """Compute the prompts, each distinct one once; no row is to have more than `most` positions."""
        self._net, self._most, device = net, most, net.device
        distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        width = max(map(len, prompts))
        ids = torch.zeros(len(distinct), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for prompt, row in distinct.items():
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        self._cache = DynamicCache(config=net.config)
        # Layers of another kind (sliding windows, recurrent states) manage their own room.
        self._cache.layers = [RoomyLayer() if type(one) is DynamicLayer else one for one in self._cache.layers]
        self._mask = mask.to(device)
        self.logits = self._forward(ids.to(device), (self._mask.cumsum(1) - 1).clamp(min=0))
        if len(distinct) < len(prompts):
            self.select(torch.tensor([distinct[prompt] for prompt in prompts], device=device))

    def select(self, index: Tensor) -> None:
        """Keep these rows, in that order; a row may occur several times."""
        self._cache.batch_select_indices(index)
        self._mask, self.logits = self._mask[index], self.logits[index]

    def append(self, tokens: Tensor) -> None:
        """Give every row its next token, (B,)."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        # A row that has ended stays for a while, and may run past the positions that the network knows.
        positions = (self._mask.sum(1, keepdim=True) - 1).clamp(max=self._most - 1)
        self.logits = self._forward(tokens[:, None], positions)

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        out = self._net(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = out.logits[:, -1]
        return logits
