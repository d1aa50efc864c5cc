"""The layers of Llama and its kin in few passes over memory, for small networks on a CPU.

A small network's matrix products take less than half of its time; the rest goes to Python, and to tensors that are
written once and read once. Here queries, keys and values are one product, and so are the gate and what it lets through;
norms' weights are part of the products that follow; a rotation is one multiplication of complex numbers; what can be is
done in place; and the last layer reads one token a row, with one query.

That the numbers are those of transformers is not taken on trust: its user compares both on its own first rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefdata.scorers.backbones import KeysValues

FAMILIES = {"LlamaModel", "MistralModel", "Qwen2Model"}
"""transformers' networks of this kind: RMS norms before, rotary positions in two halves, a gated SiLU."""

STATIC_ROPES = {"default", "linear", "llama3", "yarn"}
"""Kinds of rotary positions whose frequencies do not hang on the length of a text."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer's products, each a matrix (in, out) and what is added, shape (out,), or None.

    Attributes:
        attend: to queries, keys and values, which stand beside each other; the norm's weights are in it.
        project: from what is attended to.
        widen: to the gate and what it lets through, beside each other; the norm's weights are in it.
        narrow: from what the gate lets through.
    """

    attend: tuple[Tensor, Tensor | None]
    project: tuple[Tensor, Tensor | None]
    widen: tuple[Tensor, Tensor | None]
    narrow: tuple[Tensor, Tensor | None]


class Lean:
    """A `Backbone` of a network of `FAMILIES`; `fits` tells which."""

    whole = True

    def __init__(self, net: Any) -> None:
        """Arrange the weights anew: some two thirds of them are copied."""
        first = net.layers[0].self_attn
        self._size: int = first.head_dim
        self._keys: int = first.k_proj.out_features // self._size
        self._queries: int = first.q_proj.out_features // self._size
        self._scale: float = first.scaling
        self._eps: float = net.norm.variance_epsilon
        self._embedding, self._norm = net.embed_tokens.weight.detach(), net.norm.weight.detach()
        self._frequencies, self._length = net.rotary_emb.inv_freq.float(), float(net.rotary_emb.attention_scaling)
        self._layers = [self._arranged(layer) for layer in net.layers]

    @staticmethod
    def fits(net: Any) -> bool:
        """Whether a network is one that this computes."""
        if type(net).__name__ not in FAMILIES or not type(net).__module__.startswith("transformers."):
            return False
        parts = [part for layer in net.layers for part in (layer.self_attn, layer.mlp)]
        linear = [one for part in parts for name, one in part.named_children() if name != "act_fn"]
        weights = [net.embed_tokens.weight, *net.layers.parameters()]
        return (
            all(type(one) is nn.Linear for one in linear)  # no adapter, and nothing quantised
            and net.config.hidden_act in ("silu", "swish")
            and all(weight.dtype == torch.float32 and weight.device.type == "cpu" for weight in weights)
            and getattr(net.rotary_emb, "rope_type", None) in STATIC_ROPES
            and 2 * len(net.rotary_emb.inv_freq) == net.layers[0].self_attn.head_dim
        )

    @torch.inference_mode()
    def begin(self, ids: Tensor, ends: Tensor) -> KeysValues:
        """See `Backbone`."""
        states, turns = self._embedded(ids), self._turns(torch.arange(ids.shape[1]))
        found = []
        for layer in self._layers:
            queries, keys, values = self._attend(layer, states, turns.expand(len(ids), -1, -1))
            found.append((keys, values))
            if layer is not self._layers[-1]:
                self._finish(layer, states, self._attended(queries, keys, values, None))
        return found

    @torch.inference_mode()
    def go_on(self, ids: Tensor, ends: Tensor, begun: Tensor, kept: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """See `Backbone`."""
        rows, width = ids.shape
        before, own = torch.arange(int(begun.max())), torch.arange(width)
        mask = None if not len(before) else _mask(before < begun[:, None], own <= own[:, None])
        states = self._embedded(ids)
        turns = self._turns(torch.arange(len(before) + width))[begun[:, None] + own]
        beginnings = iter(kept) if len(before) else None
        for layer in self._layers:
            queries, keys, values = self._attend(layer, states, turns)
            if beginnings is not None:
                keys, values = (torch.cat(both, 2) for both in zip(next(beginnings), (keys, values), strict=True))
            if layer is self._layers[-1]:
                last = ends - 1
                states = states[torch.arange(rows) * width + last]
                queries = queries[torch.arange(rows), :, last][:, :, None]
                mask = _last(mask, own <= last[:, None], last)
            self._finish(layer, states, self._attended(queries, keys, values, mask))
        return self._normed(states).mul_(self._norm)

    def _arranged(self, layer: Any) -> _Layer:
        attention, gated = layer.self_attn, layer.mlp
        before, between = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        # The two numbers that a position turns together come to stand beside each other.
        weight, added = _beside(attention.q_proj, attention.k_proj, attention.v_proj)
        order = torch.arange(len(weight)).view(-1, self._size)
        turned = order[: self._queries + self._keys]
        turned[:] = turned.view(-1, 2, self._size // 2).transpose(1, 2).flatten(1)
        order = order.flatten()
        wide, widened = _beside(gated.gate_proj, gated.up_proj)
        return _Layer(
            attend=(_weighted(weight[order], before), None if added is None else added[order]),
            project=(attention.o_proj.weight.detach().T, _bias(attention.o_proj)),
            widen=(_weighted(wide, between), widened),
            narrow=(gated.down_proj.weight.detach().T, _bias(gated.down_proj)),
        )

    def _embedded(self, ids: Tensor) -> Tensor:
        """The tokens' states, shape (rows * width, hidden)."""
        states: Tensor = self._embedding.index_select(0, ids.reshape(-1))
        return states

    def _turns(self, positions: Tensor) -> Tensor:
        """What queries and keys at these positions are multiplied by, shape (positions, size / 2), complex."""
        angles = torch.outer(positions.float(), self._frequencies)
        return torch.polar(torch.full_like(angles, self._length), angles)

    def _normed(self, states: Tensor) -> Tensor:
        """The states at a root mean square of 1 (Zhang and Sennrich 2019, 1910.07467)."""
        size = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        normed: Tensor = states * size.square_().div_(states.shape[-1]).add_(self._eps).rsqrt_()
        return normed

    def _attend(self, layer: _Layer, states: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, shape (rows, heads, width, size); `turns` has shape (rows, width, size / 2)."""
        rows, width, _ = turns.shape
        heads = _product(self._normed(states), layer.attend).view(rows, width, -1, self._size)
        turned = heads[:, :, : self._queries + self._keys].view(rows, width, -1, self._size // 2, 2)
        torch.view_as_complex(turned).mul_(turns[:, :, None])
        queries, keys, values = torch.split(heads.transpose(1, 2), [self._queries, self._keys, self._keys], 1)
        return queries, keys, values

    def _attended(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """What each token attends to, shape (rows * width, heads * size); causal without a mask."""
        found = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=mask is None, scale=self._scale,
            enable_gqa=self._queries != self._keys,
        )  # fmt: skip
        return found.transpose(1, 2).reshape(-1, self._queries * self._size)

    def _finish(self, layer: _Layer, states: Tensor, attended: Tensor) -> None:
        """Add to the states, in place, what attention and the feed-forward network say."""
        _add_product(states, attended, layer.project)
        gate, let_through = _product(self._normed(states), layer.widen).chunk(2, -1)
        _add_product(states, F.silu(gate, inplace=True).mul_(let_through), layer.narrow)


def _mask(before: Tensor, own: Tensor) -> Tensor:
    """What is added to attention: 0 where it may look, shape (rows, 1, width, places of the beginning and own)."""
    rows, width = len(before), len(own)
    seen = torch.cat([before[:, None].expand(-1, width, -1), own.expand(rows, -1, -1)], 2)
    return torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)[:, None]


def _last(mask: Tensor | None, own: Tensor, last: Tensor) -> Tensor:
    """The mask of each row's last token alone, shape (rows, 1, 1, places)."""
    if mask is None:
        return torch.zeros(own.shape).masked_fill_(~own, -torch.inf)[:, None, None]
    return mask[torch.arange(len(last)), :, last][:, :, None]


def _product(states: Tensor, by: tuple[Tensor, Tensor | None]) -> Tensor:
    matrix, added = by
    return torch.mm(states, matrix) if added is None else torch.addmm(added, states, matrix)


def _add_product(to: Tensor, states: Tensor, by: tuple[Tensor, Tensor | None]) -> None:
    matrix, added = by
    to.addmm_(states, matrix)
    if added is not None:
        to.add_(added)


def _beside(*parts: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Several products as one: its weight (out, in), and what it adds."""
    biases = [bias for part in parts if (bias := _bias(part)) is not None]
    return torch.cat([part.weight.detach() for part in parts]), torch.cat(biases) if biases else None


def _weighted(weight: Tensor, norm: Tensor) -> Tensor:
    """A product's matrix (in, out), the weights of the norm before it included."""
    return (weight * norm.detach()).T


def _bias(part: nn.Linear) -> Tensor | None:
    return None if part.bias is None else part.bias.detach()
