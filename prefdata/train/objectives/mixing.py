"""Pieces that losses share: both orders of a pair weighed by its label, comparable pairs of a group, sums over them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

PairLoss = Callable[[Tensor, Tensor], Tensor]
"""`[E]` losses from the values `[E]` of the preferred and of the other response."""


def mixed(loss: PairLoss, values: Tensor, labels: Tensor | None) -> Tensor:
    """Compute the expected loss under labels that are right with a probability: `p f(c, r) + (1 - p) f(r, c)`.

    Args:
        loss: the loss of a pair whose label is right.
        values: `[E, 2]` of the chosen and the rejected response.
        labels: `[E, 2]` the probabilities `p` and `1 - p`; None: every label is right.
    """
    chosen, rejected = values.unbind(1)
    if labels is None:
        return loss(chosen, rejected)
    right, flipped = labels.unbind(1)
    return right * loss(chosen, rejected) + flipped * loss(rejected, chosen)


def logistic(z: Tensor) -> Tensor:
    """Compute `-log sigmoid(z)`, finite for every finite z."""
    return -F.logsigmoid(z)


def log1mexp(x: Tensor) -> Tensor:
    """Compute `log(1 - exp(x))` for x < 0, exact near both ends (Maechler 2012); x = 0 counts as -1e-12."""
    x = x.clamp(max=-1e-12)
    near = x > -0.6931471805599453
    # Each branch gets only arguments for which it is finite, so that the other's gradient is not NaN.
    small, large = torch.where(near, x, -1.0), torch.where(near, -1.0, x)
    return torch.where(near, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


def better(rating: Tensor, present: Tensor) -> Tensor:
    """Return `[E, K, K]`: whether response i is rated above response j; ties and absent ones are never compared.

    Args:
        rating: `[E, K]`, NaN where there is none.
        present: `[E, K]`.
    """
    both = present[:, :, None] & present[:, None, :]
    return (rating[:, :, None] > rating[:, None, :]) & both


def best(rating: Tensor, present: Tensor) -> Tensor:
    """Return `[E, K]` weights that sum to 1 over the best responses of each example: tied ones share equally."""
    known = torch.where(present & ~rating.isnan(), rating, -torch.inf)
    top = (known == known.max(1, keepdim=True).values) & known.isfinite()
    return top / top.sum(1, keepdim=True).clamp(min=1)


def over_pairs(losses: Tensor, compared: Tensor, *, mean: bool = True) -> Tensor:
    """Average (or sum) `losses` `[E, K, K]` over the pairs `compared`: `[E]`, 0 where there is none."""
    total = torch.where(compared, losses, 0.0).sum((1, 2))
    return total / compared.sum((1, 2)).clamp(min=1) if mean else total


def gaps(values: Tensor) -> Tensor:
    """Return the differences `values_i - values_j`, `[E, K, K]`."""
    return values[:, :, None] - values[:, None, :]


def plackett_luce(values: Tensor, rating: Tensor, present: Tensor) -> Tensor:
    """Compute the negative log-likelihood `[E]` of the ranking by `rating` under the Plackett-Luce model.

    `-sum_i log(exp v_i / (exp v_i + sum of exp v_j over j rated below i))`. Equal ratings are not compared, so that the
    order of ties does not matter; without ties it is Plackett (1975) and Luce (1959).
    """
    below = better(rating, present)
    rows = torch.where(below, gaps(-values), -torch.inf)  # v_j - v_i
    terms = torch.logsumexp(torch.cat([torch.zeros_like(values)[..., None], rows], -1), -1)
    return torch.where(below.any(-1), terms, 0.0).sum(1)
