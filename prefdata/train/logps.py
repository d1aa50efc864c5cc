"""Log-probabilities of the trained tokens only; scores at the ends of responses.

The trunk of the model runs over a batch in either layout; the head is applied only where the next token is a trained
one, in chunks, so that no tensor of (positions x vocabulary) exists for a large batch, forward or backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prefdata.train.batches import Batch
from prefdata.train.head import Head, head_collisions, head_kls, head_logps

CHUNK_ELEMENTS = 1 << 26
"""Maximum number of logits in memory at one time: 256 MiB in float32."""


@dataclass(frozen=True, slots=True)
class ResponseLogps:
    """Log-probabilities of a batch's responses, in nats and float32.

    Attributes:
        tokens: `[N]` one for each token that counts.
        row: `[N]` the response of each, `e * K + k`.
        position: `[N]` its index in the response.
        counts: `[E, K]` tokens of each response that count.
        sums: `[E, K]` of the responses, summed over their tokens; 0 where there is none.
        entropies: `[N]` of the distributions at those tokens, without gradient; None unless requested.
        collisions: `[N]` `log sum_v p(v)^2` of those distributions, without gradient; None unless requested.
        kls: `[N]` KL from those distributions to a reference's; None unless requested.
    """

    tokens: Tensor
    row: Tensor
    position: Tensor
    counts: Tensor
    sums: Tensor
    entropies: Tensor | None = None
    collisions: Tensor | None = None
    kls: Tensor | None = None


def response_logps(
    model: Any,
    batch: Batch,
    *,
    entropies: bool = False,
    collisions: bool = False,
    reference: Any = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> ResponseLogps:
    """Compute the log-probabilities of a batch's responses, packed or padded.

    Args:
        model: a causal language model of transformers.
        batch: its examples.
        entropies: whether to compute `entropies`.
        collisions: whether to compute `collisions`.
        reference: the model for `kls`, with the same batch layout; None: no `kls`.
        chunk_elements: maximum number of logits in memory at one time.
    """
    hidden = last_hidden(model, batch)[batch.predictors]
    head = Head.of(model)
    tokens, found = head_logps(head, hidden, batch.targets, chunk_elements, entropies=entropies)
    kls = None
    if reference is not None:
        with torch.no_grad():
            theirs = last_hidden(reference, batch)[batch.predictors]
        kls = head_kls(head, hidden, Head.of(reference), theirs, chunk_elements)
    return ResponseLogps(
        tokens,
        batch.row,
        batch.position,
        batch.counts,
        sum_responses(batch, tokens),
        found,
        head_collisions(head, hidden, chunk_elements) if collisions else None,
        kls,
    )


def sum_responses(batch: Batch, values: Tensor) -> Tensor:
    """Sum values `[N]` over the tokens of each response: `[E, K]`."""
    # Scatter each token to its own cell, then sum along rows: deterministic on every device, unlike index_add.
    columns = int(batch.position.max()) + 1 if len(batch.position) else 1
    cells = values.new_zeros(batch.counts.numel(), columns).index_put((batch.row, batch.position), values)
    return cells.sum(1).view_as(batch.counts)


def last_hidden(model: Any, batch: Batch) -> Tensor:
    """Compute the trunk's last hidden states `[M, H]`, in the order of the batch's tokens.

    Padding is on the right and attention is causal, so no token attends to it and padded rows need no mask.
    """
    more: dict[str, Any] = {} if batch.packing is None else {"packing": batch.packing}
    if batch.position_ids is not None:
        more["position_ids"] = batch.position_ids
    hidden: Tensor = model.base_model(input_ids=batch.input_ids, use_cache=False, **more).last_hidden_state
    return hidden.flatten(0, 1)


def end_scores(model: Any, batch: Batch) -> Tensor:
    """Compute a reward model's scores by head, `[E, K, H]`, at each response's last token; 0 where there is none.

    Always in float32: rounded to bfloat16, scores that differ become equal. The position comes from the batch and not
    from comparing ids with the padding token: where that is the end token, the comparison finds the token before it.
    """
    hidden, head = last_hidden(model, batch)[batch.ends], score_head(model)
    with torch.autocast(hidden.device.type, enabled=False):
        bias = None if head.bias is None else head.bias.float()
        scores = F.linear(hidden.float(), head.weight.float(), bias)
    return torch.where(batch.present[..., None], scores, 0.0)


def score_head(model: Any) -> Any:
    """Return the head of a reward model, of an adapter the one that is trained; None without a head."""
    head = getattr(model, "score", None)
    trained = getattr(head, "modules_to_save", None)
    return head if trained is None else trained["default"]
