"""The head of a language model: log-probabilities of given tokens without the logits of all positions.

Forward and backward passes go through the positions in chunks. A single chunk keeps its logits for the backward pass;
several are computed again there, chunk by chunk, and the gradient of the head is accumulated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, slots=True)
class Head:
    """A linear head and the model's transform of its logits: `cap * tanh(scale * l / cap) / temperature`.

    Attributes:
        module: the layer; one that is not a plain linear layer (an adapter, quantised weights) is called as a module.
        scale: factor of the logits (Cohere, Granite).
        cap: bound of the logits (Gemma); None: none.
        temperature: of the distributions.
    """

    module: Any
    scale: float = 1.0
    cap: float | None = None
    temperature: float = 1.0

    @classmethod
    def of(cls, model: Any, temperature: float = 1.0) -> Self:
        """Get the head of a transformers causal language model."""
        config = model.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        return cls(model.get_output_embeddings(), scale, getattr(config, "final_logit_softcapping", None), temperature)

    @property
    def vocabulary(self) -> int:
        """Number of logits per position."""
        return int(self.module.weight.shape[0])

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute logits `[N, V]` of hidden states `[N, H]`, in the precision of the layer."""
        return self.transform(self.module(hidden))

    def transform(self, logits: Tensor) -> Tensor:
        """Apply the model's scale and cap to the layer's output."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.cap is not None:
            logits = self.cap * torch.tanh(logits / self.cap)
        return logits if self.temperature == 1.0 else logits / self.temperature


def head_logps(
    head: Head, hidden: Tensor, targets: Tensor, chunk_elements: int, *, entropies: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Compute the log-probabilities `[N]` of `targets` `[N]` under the distributions at `hidden` `[N, H]`, in float32.

    Args:
        head: the head.
        hidden: hidden states.
        targets: token ids.
        chunk_elements: maximum number of logits in memory at one time.
        entropies: whether to compute the distributions' entropies `[N]` too, in nats and without gradient.
    """
    rows = max(1, chunk_elements // head.vocabulary)
    if type(head.module) is nn.Linear:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head.module.weight.dtype
        logps, found = _LinearLogps.apply(  # type: ignore[no-untyped-call]
            hidden, head.module.weight, head.module.bias, targets, head, rows, dtype, entropies
        )
        return logps, found if entropies else None
    parts = [
        checkpoint(_module_logps, head, h, t, use_reentrant=False)
        for h, t in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    ]
    logps, found = (torch.cat(part) for part in zip(*parts, strict=True))
    return logps, found if entropies else None


def _module_logps(head: Head, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logps = head.logits(hidden).float().log_softmax(-1)
    with torch.no_grad():
        entropies = -(logps.exp() * logps).sum(-1)
    return logps.gather(1, targets[:, None])[:, 0], entropies


@torch.no_grad()
def head_collisions(head: Head, hidden: Tensor, chunk_elements: int) -> Tensor:
    """Compute `[N]` `log sum_v p(v)^2` of the distributions at `hidden` `[N, H]`, in float32 without gradient."""
    parts = torch.split(hidden, max(1, chunk_elements // head.vocabulary))
    return torch.cat([torch.logsumexp(2 * head.logits(part).float().log_softmax(-1), -1) for part in parts])


def head_entropies(head: Head, hidden: Tensor, chunk_elements: int) -> Tensor:
    """`[N]` entropies of the distributions at `hidden` `[N, H]`, in nats, with gradient."""
    parts = torch.split(hidden, max(1, chunk_elements // head.vocabulary))
    return torch.cat([checkpoint(_entropy, head, part, use_reentrant=False) for part in parts])


def _entropy(head: Head, hidden: Tensor) -> Tensor:
    logps = head.logits(hidden).float().log_softmax(-1)
    return -(logps.exp() * logps).sum(-1)


def head_kls(head: Head, hidden: Tensor, other: Head, theirs: Tensor, chunk_elements: int) -> Tensor:
    """Compute KL(p || q) `[N]` in nats, p the distributions at `hidden` `[N, H]`, q those of `other` at `theirs`."""
    rows = max(1, chunk_elements // head.vocabulary)
    parts = [
        checkpoint(_kl, head, h, other, t, use_reentrant=False)
        for h, t in zip(torch.split(hidden, rows), torch.split(theirs, rows), strict=True)
    ]
    return torch.cat(parts)


def _kl(head: Head, hidden: Tensor, other: Head, theirs: Tensor) -> Tensor:
    p, q = (one.logits(states).float().log_softmax(-1) for one, states in ((head, hidden), (other, theirs)))
    return (p.exp() * (p - q)).sum(-1)


class _LinearLogps(torch.autograd.Function):
    """Log-probabilities of a linear head; their gradient by a logit is `1[it is the target's] - its probability`.

    The backward pass overwrites the saved tensors, so it can run only once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: Head,
        rows: int,
        dtype: torch.dtype,
        entropies: bool,
    ) -> tuple[Tensor, Tensor]:
        keep = len(hidden) <= rows and any(ctx.needs_input_grad)
        picked, norms, found, kept = [], [], [], None
        for h, t in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True):
            logits = _logits(head, h, weight, bias, dtype)
            table = logits.log_softmax(1)
            picked.append(table.gather(1, t[:, None]))
            norms.append(logits.gather(1, t[:, None]) - picked[-1])
            if entropies:
                found.append(-(table.exp() * table).sum(1))
            kept = table if keep else None
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(norms), kept)
        ctx.head, ctx.rows, ctx.dtype = head, rows, dtype
        entropy = torch.cat(found) if found else picked[0].new_empty(0)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(picked)[:, 0], entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, norms, kept = ctx.saved_tensors
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        grads: list[Tensor | None] = [torch.empty_like(hidden) if of_hidden else None, None, None]
        for at in range(0, len(hidden), ctx.rows):
            part = slice(at, at + ctx.rows)
            h = hidden[part].to(ctx.dtype)
            table = kept
            if table is None:
                table = _logits(ctx.head, h, weight, bias, ctx.dtype).log_softmax(1)
            slopes = _slopes(ctx.head, table, norms[part], targets[part], grad[part]).to(ctx.dtype)
            if grads[0] is not None:
                grads[0][part] = slopes @ weight.to(ctx.dtype)
            if of_weight:
                grads[1] = _sum(grads[1], slopes.T @ h, weight)
            if of_bias:
                grads[2] = _sum(grads[2], slopes.sum(0), bias)
        return (*grads, None, None, None, None, None)


def _logits(head: Head, hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    bias = None if bias is None else bias.to(dtype)
    logits = F.linear(hidden.to(dtype), weight.to(dtype), bias)
    return head.transform(logits.to(torch.promote_types(dtype, torch.float32)))


def _slopes(head: Head, table: Tensor, norms: Tensor, targets: Tensor, grad: Tensor) -> Tensor:
    """Compute the gradient `[N, V]` by the layer's output; `table`, the log-probabilities, is overwritten.

    Args:
        head: the head.
        table: `[N, V]` log-probabilities.
        norms: `[N, 1]` the logsumexp of each position's logits.
        targets: `[N]`.
        grad: `[N]` the gradient by the targets' log-probabilities.
    """
    bend = None if head.cap is None else 1 - ((table + norms) * (head.temperature / head.cap)).square_()
    slopes = table.exp_().mul_(-grad[:, None])
    rows = torch.arange(len(targets), device=targets.device)
    slopes.index_put_((rows, targets), grad, accumulate=True)
    if bend is not None:
        slopes.mul_(bend)
    factor = head.scale / head.temperature
    return slopes if factor == 1.0 else slopes.mul_(factor)


def _sum(total: Tensor | None, more: Tensor, like: Tensor) -> Tensor:
    return more.to(like.dtype) if total is None else total.add_(more)
