"""A network without its head that computes a prompt once: it encodes a prefix and continues from its cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from threading import local
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

KeysValues: TypeAlias = Sequence[tuple[Tensor, Tensor]]
"""Each layer's keys and values, shape (rows, heads, width, size)."""


class CachedBackbone:
    """transformers' own network, whose cache must hold every position (`DynamicCache` of plain layers).

    Sliding windows, recurrent states and encoders keep something else: `unfit` says so. The methods are called in
    several threads at a time. Rows are padded on the right: `ids` has shape (rows, width), and `ends` how many tokens
    each row has, shape (rows,).
    """

    def __init__(self, backbone: Any) -> None:
        """Wrap a network, and make its last layer finish no more than what is read."""
        self._backbone = backbone
        self._read = local()
        self._finish_last_only()

    @staticmethod
    @torch.inference_mode()
    def unfit(backbone: Any, pad: int, device: torch.device) -> str | None:
        """Why this network cannot do it, or None where it may."""
        if not {"past_key_values", "position_ids", "attention_mask"} <= set(signature(backbone.forward).parameters):
            return "the model takes no cache and positions"
        said = backbone(input_ids=torch.tensor([[pad]], device=device), use_cache=True)
        cache = getattr(said, "past_key_values", None)
        if not isinstance(cache, DynamicCache) or any(type(layer) is not DynamicLayer for layer in cache.layers):
            return "the model's cache does not hold every position (a sliding window, a recurrence or an encoder)"
        return None

    @torch.inference_mode()
    def begin(self, ids: Tensor, ends: Tensor) -> KeysValues:
        """Return the keys and values of the rows' tokens, those of the padding included."""
        own = torch.arange(ids.shape[1], device=ids.device)
        mask = None if bool((ends == ids.shape[1]).all()) else (own < ends[:, None]).long()
        with self._last_only(ends - 1):
            cache = self._backbone(input_ids=ids, attention_mask=mask, use_cache=True).past_key_values
        return [(layer.keys, layer.values) for layer in cache.layers]

    @torch.inference_mode()
    def go_on(self, ids: Tensor, ends: Tensor, begun: Tensor, kept: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the last hidden state at each row's last token, shape (rows, hidden).

        Each row continues from the first `begun` of the keys and values in its row of `kept`; `begun` has shape
        (rows,), and `kept` as many places as the largest.
        """
        own, before = (torch.arange(n, device=ids.device) for n in (ids.shape[1], int(begun.max())))
        with self._last_only(ends - 1):
            hidden: Tensor = self._backbone(
                input_ids=ids,
                attention_mask=torch.cat([before < begun[:, None], own < ends[:, None]], 1).long(),
                # What is padding stays within the context.
                position_ids=begun[:, None] + torch.minimum(own, ends[:, None] - 1),
                past_key_values=_cache(kept),
                use_cache=True,
            ).last_hidden_state
        return hidden[torch.arange(len(ids), device=ids.device), ends - 1]

    @contextmanager
    def _last_only(self, last: Tensor) -> Iterator[None]:
        """Within it, in this thread, the last layer finishes one token a row, the one that is read."""
        self._read.at = torch.arange(len(last), device=last.device), last
        try:
            yield
        finally:
            self._read.at = None

    def _finish_last_only(self) -> None:
        """Make the last layer observe `_last_only`: of the tokens that are not read only their keys are needed.

        The outputs of attention and feed-forward for that token are added to all; the others' states are invalid.
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
