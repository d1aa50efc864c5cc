"""Log-probabilities of the tokens that are trained, and of no others.

The trunk of the model runs over the padded rows; its head is applied only where the next token is a trained one, in
chunks, so that no tensor of (positions x vocabulary) ever exists for the whole batch. A chunk's logits are computed
again in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prefdata.train.batches import Batch

CHUNK_ELEMENTS = 1 << 26
"""Logits that exist at one time: 256 MiB in float32."""


def sequence_logps(model: Any, batch: Batch, chunk_elements: int = CHUNK_ELEMENTS) -> Tensor:
    """`[E, K]` log-probabilities of the responses, nats summed over their trained tokens, in float32.

    Args:
        model: a causal language model of transformers.
        batch: `E` trees of `K` responses.
        chunk_elements: how many logits may exist at one time.
    """
    hidden = last_hidden(model, batch)
    tokens = token_logps(model, hidden.flatten(0, 1)[batch.predicts], batch.targets, chunk_elements)
    # Every token to its own cell, then a sum along rows: deterministic on every device, which index_add is not.
    rows, columns = batch.tokens.shape
    cells = tokens.new_zeros(rows * columns).index_put((batch.predicts,), tokens)
    return cells.view(rows, columns).sum(1).view(-1, batch.width)


def last_hidden(model: Any, batch: Batch) -> Tensor:
    """`[R, T, H]` the trunk's last hidden states.

    Rows are padded on the right and attention is causal: no token ever sees the padding, so that no mask is needed.
    """
    hidden: Tensor = model.base_model(input_ids=batch.tokens, use_cache=False).last_hidden_state
    return hidden


def token_logps(model: Any, hidden: Tensor, targets: Tensor, chunk_elements: int = CHUNK_ELEMENTS) -> Tensor:
    """`[N]` log-probabilities of `targets` `[N]` under the head's distributions at `hidden` `[N, H]`, in float32."""
    head = model.get_output_embeddings()
    rows = max(1, chunk_elements // head.weight.shape[0])
    if len(hidden) <= rows:
        return _chunk_logps(model, hidden, targets)
    parts = [
        checkpoint(_chunk_logps, model, h, t, use_reentrant=False)
        for h, t in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    ]
    return torch.cat(parts)


def _chunk_logps(model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    return -F.cross_entropy(logits(model, hidden).float(), targets, reduction="none")


def logits(model: Any, hidden: Tensor) -> Tensor:
    """The head's logits, with what some families do to them: Cohere and Granite scale, Gemma caps."""
    config = model.config.get_text_config()
    out: Tensor = model.get_output_embeddings()(hidden)
    if scale := getattr(config, "logit_scale", None):
        out = out * scale
    if scaling := getattr(config, "logits_scaling", None):
        out = out / scaling
    if cap := getattr(config, "final_logit_softcapping", None):
        out = cap * torch.tanh(out / cap)
    return out


def end_scores(model: Any, batch: Batch) -> Tensor:
    """`[E, K]` a reward model's scores, read at each response's last token, in float32.

    The place comes from the batch and not from comparing ids with the padding's: where the padding token is the end
    token, that comparison reads the token before the end.
    """
    hidden = last_hidden(model, batch)
    rows = torch.arange(len(hidden), device=hidden.device)
    scores: Tensor = model.score(hidden[rows, batch.ends])
    return scores.float().view(-1, batch.width)
