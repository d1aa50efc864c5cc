"""Check on a few tokens that a model computes what the trainer assumes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from prefdata.errors import ModelError, UsageError
from prefdata.train.attention import PACKED_ATTENTION
from prefdata.train.batches import Example, Layout, collate
from prefdata.train.head import Head
from prefdata.train.logps import last_hidden, score_head

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""By how much two ways may differ, relative to the norm, by the type of the weights.

In float32 rounding is below 1e-5 and a wrong mask above 1e-2; in bfloat16 rounding is about 1e-2.
"""

COMPARED_PARAMETERS = 10_000_000
"""How many gradients are compared: those of the smallest parameters, which are in every layer."""

log = logging.getLogger("prefdata.train")


def is_reward_model(model: Any) -> bool:
    """Return whether the model has a linear `score` head."""
    return isinstance(score_head(model), nn.Linear)


@torch.no_grad()
def check_trunk(model: Any, name: str) -> None:
    """Compare the trunk and head that are trained with the whole model.

    Raises:
        ModelError: a token attends to later tokens, or the head is more than a linear layer.
    """
    model.eval()
    tokens = torch.tensor([_probe_ids(model)[:6]], device=model.device)
    hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[:, :4]
    alone = model.base_model(input_ids=tokens[:, :4], use_cache=False).last_hidden_state
    if not _close(hidden, alone):
        raise ModelError(f"{name}: tokens of {type(model).__name__} attend to later tokens; it cannot be trained here.")
    theirs = model(input_ids=tokens[:, :4], use_cache=False).logits
    ours = model.score(alone[:, -1]) if is_reward_model(model) else Head.of(model).logits(alone)
    if not _close(ours, theirs):
        raise ModelError(
            f"{name}: the head of {type(model).__name__} is not a linear layer; it cannot be trained here."
        )


def _close(one: Tensor, other: Tensor) -> bool:
    if one.dtype == torch.float32:
        return torch.allclose(one, other, rtol=1e-3, atol=1e-4)
    return bool((one - other).float().norm() <= TOLERANCE[one.dtype] * other.float().norm())


def pick_layout(model: Any, asked: Literal["auto", Layout], name: str) -> Layout:
    """Pick the layout of a model's batches: packed where it gives the same numbers and gradients, else padded.

    Sets the model's attention to `packed_attention` if packed is picked.

    Raises:
        UsageError: packed was requested, and the model computes something else with it.
    """
    if asked == "padded":
        return "padded"
    theirs = model.config._attn_implementation
    want = _probe(model, "padded")
    try:
        model.set_attn_implementation(PACKED_ATTENTION)
        reason = _difference(want, _probe(model, "packed"), TOLERANCE[model.dtype])
    except Exception as error:  # whatever a model's own code does with what it does not know
        reason = f"{type(error).__name__}: {error}"
    if reason is None:
        log.info("%s: each prompt is computed once for its responses (packed, as padded rows to rounding).", name)
        return "packed"
    model.set_attn_implementation(theirs)
    if asked == "packed":
        raise UsageError(
            f"{name} cannot be trained with --batch-layout packed ({reason}). Use --batch-layout auto or padded."
        )
    log.warning("%s: each response is a row with its own copy of the prompt, which is slower (%s).", name, reason)
    return "padded"


def _probe_ids(model: Any) -> list[int]:
    config = model.config.get_text_config()
    ids = [i for i in range(min(40, config.vocab_size)) if i != config.pad_token_id]
    return (ids * 6)[:40]


def _probe_examples(model: Any) -> list[Example]:
    """Make three examples: a pair, a prompt with one response, and a group whose prompt is a single token."""
    ids = np.array(_probe_ids(model), dtype=np.int32)
    return [
        Example(ids[:9], (ids[9:12], ids[5:11])),
        Example(ids[3:7], (ids[7:12],)),
        Example(ids[2:3], (ids[4:6], ids[8:14], ids[1:2])),
    ]


def _probe(model: Any, layout: Layout) -> list[Tensor]:
    """Compute hidden states where tokens are predicted, and the gradients of their sum by some parameters."""
    model.eval()
    examples = _probe_examples(model)
    batch = collate(examples, np.arange(len(examples)), layout).to(model.device)
    with torch.enable_grad():
        hidden = last_hidden(model, batch)[batch.predictors].float()
        directions = torch.linspace(-1, 1, hidden.numel(), device=hidden.device).view_as(hidden)
        parameters = _compared(model)
        gradients = torch.autograd.grad((hidden * directions).sum(), parameters, allow_unused=True)
    return [hidden.detach(), *(gradient.float() for gradient in gradients if gradient is not None)]


def _compared(model: Any) -> list[Tensor]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    taken: list[Tensor] = []
    left = COMPARED_PARAMETERS
    for parameter in sorted(trained, key=lambda parameter: parameter.numel()):
        left -= parameter.numel()
        if taken and left < 0:
            break
        taken.append(parameter)
    return taken


def _difference(want: Sequence[Tensor], got: Sequence[Tensor], tolerance: float) -> str | None:
    """Describe what differs by more than `tolerance`, relative to the norm, or return None."""
    if len(want) != len(got):
        return "other parameters get a gradient"
    for what, part in (("numbers", slice(1)), ("gradients", slice(1, None))):
        # Over all gradients together: some of them, such as those of the keys' biases, are rounding errors only.
        whole = sum(float(one.square().sum()) for one in want[part])
        off = sum(float((one - other).square().sum()) for one, other in zip(want[part], got[part], strict=True))
        if not off <= tolerance**2 * whole:
            return f"its {what} differ by {(off / max(whole, 1e-30)) ** 0.5:.1e} of their norm"
    return None
