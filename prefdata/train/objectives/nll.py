"""Losses of demonstrations."""

from __future__ import annotations

from torch import Tensor

from prefdata.train.objectives.values import Policy


def nll(v: Policy) -> Tensor:
    """Negative log-likelihood, `-log p(response | prompt)`, summed over the trained tokens.

    The loop divides by the trained tokens of the optimiser step, each example by its weight: rejection-sampling
    fine-tuning's weights (Yuan et al. 2023, arXiv:2308.01825) are the data's.
    """
    return -v.logps[:, 0]
