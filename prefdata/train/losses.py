"""Losses: pure functions from per-sequence values to per-example values, in one registry.

Shapes: `E` examples. No function here averages; the loop divides a sum by the size of the whole optimiser step, so
that the result does not depend on how the step was cut into micro-batches.

To add one: write the function, enter it in `LOSSES`, name it in its spec's `loss` field, and add its values and its
`gradcheck` to tests/train/test_losses.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def nll(logps: Tensor) -> Tensor:
    """Negative log-likelihood of each answer: `-log p(answer | prompt)`, nats summed over its trained tokens.

    Args:
        logps: `[E]` log-probabilities of the answers.
    """
    return -logps


def bradley_terry(
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | None = None,
    center: float = 0.0,
    labels: Tensor | None = None,
) -> Tensor:
    """The Bradley-Terry loss of reward models, `-log sigmoid(r_c - r_r - m) + center * (r_c + r_r)^2`.

    Bradley and Terry (1952); with a margin as Touvron et al. (2023, arXiv:2307.09288), equation 2; centred as
    Eisenstein et al. (2023, arXiv:2312.09244), section 3.

    Args:
        chosen: `[E]` scores.
        rejected: `[E]` scores.
        margin: `[E]`, or None for 0.
        center: weight of the term that keeps scores near zero.
        labels: `[E, 2]` as `soft_sigmoid` takes them, or None where every label is right.
    """
    gap = chosen - rejected if margin is None else chosen - rejected - margin
    loss = -F.logsigmoid(gap) if labels is None else soft_sigmoid(gap, labels)
    return loss + center * (chosen + rejected).square() if center else loss


def dpo_sigmoid(
    chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0, labels: Tensor | None = None
) -> Tensor:
    """DPO, `-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)` with `h = chosen - rejected`.

    Rafailov et al. (2023, arXiv:2305.18290), equation 7; with label smoothing `e` it is cDPO (Mitchell 2023), whose
    minimum lies at `sigmoid(beta h) = 1 - e`.

    Args:
        chosen: `[E]` log-ratios `log p(answer) - log p_ref(answer)`, summed over tokens.
        rejected: `[E]` the same of the rejected answers.
        beta: strength of the tie to the reference.
        label_smoothing: the share `e` of labels that are taken to be flipped.
        labels: `[E, 2]` as `soft_sigmoid` takes them, in the place of one `e` for all.
    """
    z = beta * (chosen - rejected)
    if labels is not None:
        return soft_sigmoid(z, labels)
    loss = -(1 - label_smoothing) * F.logsigmoid(z)
    return loss - label_smoothing * F.logsigmoid(-z) if label_smoothing else loss


def soft_sigmoid(z: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of labels that are right with a probability, `-p log sigmoid(z) - (1 - p) log sigmoid(-z)`.

    Its minimum lies at `sigmoid(z) = p`; with `p = 1 - e` for every pair it is cDPO's loss.

    Args:
        z: `[E]` logits of the labels.
        labels: `[E, 2]` the probabilities `p` and `1 - p`.
    """
    right, flipped = labels.unbind(1)
    return -right * F.logsigmoid(z) - flipped * F.logsigmoid(-z)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "nll": nll,
    "bradley-terry": bradley_terry,
    "sigmoid": dpo_sigmoid,
}
"""Every loss by the name that specs use."""
