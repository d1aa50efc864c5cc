"""Rows in progress on a network: prompts and responses so far, left-padded, with attention mask and cache."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

ROOM = 64
"""Positions that a cache keeps free for new tokens."""

SPREAD_SHARE = 0.2
"""Maximum difference of cached logits from those of whole rows, in standard deviations of the logits."""


class PreallocatedCacheLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A cache layer in buffers with room to spare: a new token copies nothing, a removed row only what fills its gap.

    `keys` and `values` are views of the first rows and positions of the buffers.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Create an empty layer."""
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self._buffers: list[Tensor] = []
        self._held: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new positions behind the old ones; returns all keys and values, (B, heads, positions, size)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        states, rows, start = (key_states, value_states), len(key_states), self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self._buffers or self._buffers[0].shape[-2] < end:
            self._buffers = [_roomy(new, rows, end) for new in states]
            for buffer, held in zip(self._buffers, self._held, strict=False):  # nothing is held at first
                buffer[:, :, :start] = held
        for buffer, new in zip(self._buffers, states, strict=True):
            buffer[:rows, :, start:end] = new
        return self._show(rows, end)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in that order; one that keeps its place is not copied."""
        if not self._buffers:
            return
        rows, end = len(indices), self.get_seq_length()
        moved = torch.arange(rows, device=indices.device)
        if rows <= len(self._buffers[0]):
            moved = moved[indices != moved]
        else:
            self._buffers = [_roomy(held, rows, end) for held in self._held]
        for buffer, held in zip(self._buffers, self._held, strict=True):
            buffer[:, :, :end].index_copy_(0, moved, held[indices[moved]])
        self._show(rows, end)

    def _show(self, rows: int, end: int) -> tuple[Tensor, Tensor]:
        keys, values = self._held = [buffer[:rows, :, :end] for buffer in self._buffers]
        self.keys, self.values = keys, values
        return keys, values


def _select_rows(layer: Any, index: Tensor) -> None:
    # Layers with recurrent states (Mamba and hybrids) move them only in `reorder_cache`.
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        layer.reorder_cache(index)  # type: ignore[arg-type]
    else:
        layer.batch_select_indices(index)


def _roomy(like: Tensor, rows: int, end: int) -> Tensor:
    return like.new_empty(rows, like.shape[1], end + ROOM, like.shape[3])


class BatchState:
    """The rows of a batch.

    Attributes:
        logits: (B, V) of each row's next token.
    """

    def __init__(self, net: Any, prompts: Sequence[tuple[int, ...]], most: int) -> None:
        """Compute the prompts, each distinct one once; no row may have more than `most` positions."""
        self._net, self._most, device = net, most, net.device
        # transformers' Mamba has another name for its cache, and ignores this one.
        self._cache_name = "cache_params" if "cache_params" in signature(net.forward).parameters else "past_key_values"
        distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        width = max(map(len, prompts))
        ids = torch.zeros(len(distinct), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for prompt, row in distinct.items():
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        self._cache = DynamicCache(config=net.config)
        # Layers of another kind (sliding windows, recurrent states) manage their own room.
        self._cache.layers = [
            PreallocatedCacheLayer() if type(one) is DynamicLayer else one for one in self._cache.layers
        ]
        self._mask = mask.to(device)
        self.logits = self._forward(ids.to(device), (self._mask.cumsum(1) - 1).clamp(min=0))
        if len(distinct) < len(prompts):
            self.select(torch.tensor([distinct[prompt] for prompt in prompts], device=device))

    def select(self, index: Tensor) -> None:
        """Keep these rows, in that order; a row may occur several times."""
        for layer in self._cache.layers:
            _select_rows(layer, index)
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
            # Mamba would multiply the one new token by the mask of all.
            attention_mask=None if self._cache_name == "cache_params" and ids.shape[1] == 1 else self._mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_name: self._cache},
        )
        logits: Tensor = out.logits[:, -1]
        return logits


class WholeRows:
    """The rows of a batch of a network whose cache cannot be used: each is computed alone, from its first token.

    Attributes:
        logits: (B, V) of each row's next token.
    """

    logits: Tensor

    def __init__(self, net: Any, prompts: Sequence[tuple[int, ...]], most: int) -> None:
        """As `BatchState`."""
        self._net, self._most = net, most
        self._rows = list(prompts)
        self._compute()

    def select(self, index: Tensor) -> None:
        """As `BatchState.select`."""
        self._rows, self.logits = [self._rows[i] for i in index.tolist()], self.logits[index]

    def append(self, tokens: Tensor) -> None:
        """As `BatchState.append`."""
        self._rows = [(*row, token) for row, token in zip(self._rows, tokens.tolist(), strict=True)]
        self._compute()

    def _compute(self) -> None:
        computed = {row: self._last(row) for row in dict.fromkeys(self._rows)}
        self.logits = torch.stack([computed[row] for row in self._rows])

    def _last(self, row: tuple[int, ...]) -> Tensor:
        # A row that has ended stays for a while, and may run past the positions that the network knows.
        ids = torch.tensor([row[: self._most]], device=self._net.device)
        logits: Tensor = self._net(input_ids=ids, use_cache=False).logits[0, -1]
        return logits


@torch.inference_mode()
def pick_batch_state(net: Any) -> type[BatchState] | type[WholeRows]:
    """Choose the class of a batch's rows: `BatchState` where it gives the numbers of whole rows, else `WholeRows`."""
    prompts = [(1, 2, 3), (4, 3, 2, 1, 2, 3, 4), (1, 2, 3)]
    steps = [torch.tensor(tokens, device=net.device) for tokens in ([2, 3, 1], [4, 1, 3])]
    whole = WholeRows(net, prompts, 16)
    try:
        rows = BatchState(net, prompts, 16)
        for tokens in steps:
            for state in (rows, whole):
                state.append(tokens)
                state.select(torch.tensor([2, 0, 1], device=net.device))
            # With a wrong state logits differ by about one standard deviation; bfloat16 rounding is far below.
            apart = (rows.logits - whole.logits).float().abs().amax()
            if apart > SPREAD_SHARE * whole.logits.float().std():
                return WholeRows
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return WholeRows
    return BatchState


def packed(going: Tensor) -> Tensor:
    """Return the places (N,) of the rows that continue, (B,) bool, such that few move: the last ones fill the gaps."""
    places = going.nonzero()[:, 0]
    index = torch.arange(len(places), device=going.device)
    index[~going[: len(index)]] = places[places >= len(index)]
    return index
