"""Attention over packed examples: each prompt once, then its responses, which do not attend to each other.

It computes PyTorch's scaled dot-product attention block by block, so that masked parts are not computed: each prompt
attends to itself, and each response to the prompt and to itself. Sliding windows are counted in positions, and logits
are capped where the model caps them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

TOGETHER = 1.5
"""The responses of an example are one block if that computes at most so many times the attention that is needed; else
each is a block, which copies the keys of the prompt."""

PACKED_ATTENTION = "prefdata-packed"
"""The name that `packed_attention` has among transformers' implementations of attention."""


@dataclass(frozen=True, slots=True)
class Span:
    """Position of an example in a packed row: its first token, and the lengths of its prompt and of each response."""

    start: int
    prompt: int
    responses: tuple[int, ...]

    @property
    def end(self) -> int:
        """Index one past its last token."""
        return self.start + self.prompt + sum(self.responses)


@dataclass(frozen=True, slots=True)
class Block:
    """Queries and keys that are computed together; without a mask they are the same tokens, and causal."""

    queries: slice
    keys: tuple[slice, ...]
    mask: Tensor | None

    def of_keys(self, part: Tensor) -> Tensor:
        """Slice `part` `[1, heads, M, size]` to the positions of the keys."""
        pieces = [part[:, :, piece] for piece in self.keys]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)


@dataclass(frozen=True, slots=True)
class Packing:
    """The spans of a packed row, from its first to its last token."""

    spans: tuple[Span, ...]
    _blocks: dict[tuple[Any, ...], list[Block]] = field(default_factory=dict)

    def blocks(self, window: int | None, like: Tensor) -> list[Block]:
        """Split attention into blocks, in the order of their queries.

        Args:
            window: how many positions a token attends to, its own included; None: all.
            like: masks have its dtype and device.
        """
        key = (window, like.dtype, like.device)
        if key not in self._blocks:  # every layer of a pass needs the same blocks
            self._blocks[key] = [block for span in self.spans for block in _blocks_of(span, window, like)]
        return self._blocks[key]


def _blocks_of(span: Span, window: int | None, like: Tensor) -> Iterator[Block]:
    prompt = slice(span.start, span.start + span.prompt)
    whole = slice(span.start, span.end)
    if len(span.responses) == 1:
        yield Block(whole, (whole,), _window_mask(span.prompt + span.responses[0], window, like))
        return
    if span.prompt:
        yield Block(prompt, (prompt,), _window_mask(span.prompt, window, like))
    own = sum(span.responses) * (span.end - span.start)
    if own <= TOGETHER * sum(response * (span.prompt + response) for response in span.responses):
        yield Block(slice(prompt.stop, span.end), (whole,), _additive(_visible(span, window)[span.prompt :], like))
        return
    at = prompt.stop
    for response in span.responses:
        alone, place = Span(0, span.prompt, (response,)), slice(at, at + response)
        yield Block(place, (prompt, place), _additive(_visible(alone, window)[span.prompt :], like))
        at += response


def _window_mask(length: int, window: int | None, like: Tensor) -> Tensor | None:
    if window is None or length <= window:
        return None
    return _additive(_visible(Span(0, 0, (length,)), window), like)


def _visible(span: Span, window: int | None) -> Tensor:
    """Return `[L, L]`: whether the token of a row sees that of a column."""
    parts = (span.prompt, *span.responses)
    branch = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor(parts))
    starts = (0, *[span.prompt] * len(span.responses))
    position = torch.cat([torch.arange(start, start + part) for start, part in zip(starts, parts, strict=True)])
    visible = (branch[:, None] == branch) | (branch == 0)
    visible &= position[:, None] >= position
    return visible if window is None else visible & (position[:, None] - position < window)


def _additive(visible: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(visible.shape, dtype=like.dtype).masked_fill_(~visible, -torch.inf).to(like.device)


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    packing: Packing,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within each example of a packed row, as transformers' implementations of attention do.

    Args:
        module: the layer; its settings are the other arguments.
        query: `[1, heads, M, size]`.
        key: `[1, key heads, M, size]`, as many or fewer.
        value: as `key`.
        attention_mask: unused; `packing` replaces it.
        packing: the positions of the examples.
        scaling: factor of the logits; default: `size ** -0.5`.
        dropout: the fraction of attention weights that are dropped.
        sliding_window: how many positions a token attends to, its own included; None: all.
        softcap: logits `l` become `softcap * tanh(l / softcap)`, as in Gemma 2.

    Returns:
        `[1, M, heads, size]`, and no weights.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    attend = F.scaled_dot_product_attention if softcap is None else _capped_attention
    more: dict[str, Any] = {} if softcap is None else {"softcap": softcap}
    parts = [
        attend(
            query[:, :, block.queries],
            block.of_keys(key),
            block.of_keys(value),
            attn_mask=block.mask,
            is_causal=block.mask is None,
            dropout_p=dropout,
            scale=scaling,
            **more,
        )
        for block in packing.blocks(sliding_window, query)
    ]
    return torch.cat(parts, 2).transpose(1, 2), None


def _capped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None,
    is_causal: bool,
    dropout_p: float,
    scale: float | None,
    softcap: float,
) -> Tensor:
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = softcap * torch.tanh(query @ key.transpose(2, 3) * (scale / softcap))
    if is_causal:
        future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
        logits = logits.masked_fill(future, -torch.inf)
    elif attn_mask is not None:
        logits = logits + attn_mask
    weights = logits.softmax(-1, dtype=torch.float32).to(value.dtype)
    return F.dropout(weights, dropout_p, training=dropout_p > 0) @ value


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
