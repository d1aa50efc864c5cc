"""Losses of reward models, of scores `[E, K, H]`; `a` and `b` are those of the chosen and the rejected response."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prefdata.train.objectives import mixing
from prefdata.train.objectives.mixing import better, gaps, logistic, mixed, over_pairs
from prefdata.train.objectives.values import Scored


def bradley_terry(v: Scored, *, center_rewards: float, safety_weight: float) -> Tensor:
    """Compute the Bradley-Terry loss, `-log s(a - b - m) + center_rewards (a + b)^2 + safety_weight BCE`.

    Bradley and Terry (1952); with a margin m as Touvron et al. (2023, arXiv:2307.09288), equation 2; centred as
    Eisenstein et al. (2023, arXiv:2312.09244); Llama 2's auxiliary loss adds, for each response that is
    labelled safe or not (ratings 1 and 0), the cross-entropy of `s(score)`.
    """
    scores = v.scores[..., 0]
    loss = _preference(scores, v)
    if center_rewards:
        loss = loss + center_rewards * scores.sum(1).square()
    return loss + safety_weight * _safety(scores, v) if safety_weight else loss


def k_wise(v: Scored, *, use_margin: bool) -> Tensor:
    """Average `-log s(score_i - score_j - m)` over all pairs `r_i > r_j` of a prompt, m 0 or their rating gap.

    Ouyang et al. (2022, arXiv:2203.02155), equation 1: all pairs of a prompt are one element of a batch.
    """
    margin = gaps(v.rating.nan_to_num()) if use_margin else 0.0
    return over_pairs(logistic(gaps(v.scores[..., 0]) - margin), better(v.rating, v.present))


def plackett_luce(v: Scored) -> Tensor:
    """Compute the Plackett-Luce NLL of the ranking of a prompt's responses (Plackett 1975; Luce 1959)."""
    return mixing.plackett_luce(v.scores[..., 0], v.rating, v.present)


def bce(v: Scored) -> Tensor:
    """Compute the cross-entropy of single labels: `-log s(score)` of a good, `-log (1 - s(score))` of a bad response.

    Pointwise rankers of SLiC-HF (Zhao et al. 2023, arXiv:2305.10425).
    """
    return logistic((2 * v.label - 1) * v.scores[:, 0, 0])


def mse(v: Scored) -> Tensor:
    """Average `(score_kh - rating_kh)^2` over the ratings that an example has, one head for each attribute.

    Regression heads as HelpSteer's and ArmoRM's (Wang et al. 2023, arXiv:2311.09528; 2024, arXiv:2406.12845).
    """
    known = v.present[..., None] & ~v.ratings.isnan()
    errors = torch.where(known, v.scores - v.ratings.nan_to_num(), 0.0).square()
    return errors.sum((1, 2)) / known.sum((1, 2)).clamp(min=1)


def poe_length(v: Scored) -> Tensor:
    """Product of experts, `-log s((a - b) + (length score of a - that of b))`: what length explains is not learned.

    Shen et al. (2023, arXiv:2310.05199), whose bias expert is a small model; here it is linear in the
    number of tokens and its logarithm, is trained together with the head, and is not saved.
    """
    assert v.length_scores is not None
    return _preference(v.scores[..., 0] + v.length_scores, v)


def ensemble(v: Scored) -> Tensor:
    """Average the Bradley-Terry loss of several heads, each on its own bootstrap sample of the pairs.

    Coste et al. (2023, arXiv:2310.02743) train whole models; the heads share a trunk as Osband et al. (2016,
    arXiv:1602.04621). A high variance marks scores that are uncertain.
    """
    assert v.draws is not None
    losses = torch.stack([_preference(head, v) for head in v.scores.unbind(-1)], -1)
    return (losses * v.draws).mean(-1)


def _preference(scores: Tensor, v: Scored) -> Tensor:
    return mixed(lambda a, b: logistic(a - b - v.margin), scores, v.labels)


def _safety(scores: Tensor, v: Scored) -> Tensor:
    known = v.present & ~v.rating.isnan()
    losses = F.binary_cross_entropy_with_logits(scores, v.rating.nan_to_num(), reduction="none")
    return torch.where(known, losses, 0.0).sum(1)
