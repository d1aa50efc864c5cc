"""What each trainer computes from a batch: the sum of its loss, and the means worth logging.

An objective is all that distinguishes one trainer from another; the loop, the data, the checkpoints are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from prefdata.specs.train import DpoSpec, RmSpec, SftSpec
from prefdata.train.batches import Batch, Tree
from prefdata.train.logps import end_scores, sequence_logps
from prefdata.train.losses import LOSSES

Sums = dict[str, tuple[Tensor, float]]
"""Metrics as (sum, count), so that micro-batches add up to the same mean however they were cut."""


@dataclass(frozen=True)
class Objective:
    """A trainer's own part.

    Attributes:
        noun: what an example is called in messages.
        size: the size of a set of trees, by which the loss's sum is divided: examples by weight, or tokens.
        evaluate: (model, batch) -> the summed loss, and metrics.
        dropout: whether the model's own dropout is on in training.
    """

    noun: str
    size: Callable[[Sequence[Tree]], float]
    evaluate: Callable[[nn.Module, Batch], tuple[Tensor, Sums]]
    dropout: bool = False


def sft(spec: SftSpec) -> Objective:
    """Supervised fine-tuning; the loss is the weighted mean over the trained tokens."""
    loss = LOSSES[spec.loss]

    def evaluate(model: nn.Module, batch: Batch) -> tuple[Tensor, Sums]:
        total = (loss(sequence_logps(model, batch)[:, 0]) * batch.weight).sum()
        return total, {"loss": (total.detach(), _weighted(batch.counts, batch.weights))}

    def size(trees: Sequence[Tree]) -> float:
        return _weighted([tree.trained_tokens for tree in trees], [tree.weight for tree in trees])

    return Objective("conversations", size, evaluate, dropout=True)


def rm(spec: RmSpec) -> Objective:
    """A pairwise reward model; the loss is the weighted mean over pairs."""
    loss = LOSSES[spec.loss]

    def evaluate(model: nn.Module, batch: Batch) -> tuple[Tensor, Sums]:
        chosen, rejected = end_scores(model, batch).unbind(1)
        margin = batch.margin if spec.use_margin else None
        labels = batch.labels if spec.soft_labels else None
        values = loss(chosen, rejected, margin, spec.center_rewards, labels)
        return _preferences(values, chosen, rejected, batch.weight, sum(batch.weights))

    return Objective("pairs", _weight, evaluate)


def dpo(spec: DpoSpec, reference: Tensor) -> Objective:
    """DPO; the loss is the weighted mean over pairs.

    Args:
        spec: beta, and label smoothing or soft labels.
        reference: `[trees, 2]` the frozen model's log-probabilities of all the data, by place.
    """
    loss = LOSSES[spec.loss]

    def evaluate(model: nn.Module, batch: Batch) -> tuple[Tensor, Sums]:
        logps = sequence_logps(model, batch)
        chosen, rejected = (logps - reference[batch.index].to(logps.device)).unbind(1)
        labels = batch.labels if spec.soft_labels else None
        values = loss(chosen, rejected, spec.beta, spec.label_smoothing, labels)
        total, sums = _preferences(values, spec.beta * chosen, spec.beta * rejected, batch.weight, sum(batch.weights))
        count = float(len(values))
        sums["logps/chosen"] = (logps[:, 0].detach().sum(), count)
        sums["logps/rejected"] = (logps[:, 1].detach().sum(), count)
        sums["logps/chosen_drift"] = (chosen.detach().sum(), float(sum(batch.counts[::2])))  # nats a token
        return total, sums

    return Objective("pairs", _weight, evaluate)


def _weighted(tokens: Sequence[int], weights: Sequence[float]) -> float:
    return sum(count * weight for count, weight in zip(tokens, weights, strict=True))


def _weight(trees: Sequence[Tree]) -> float:
    return sum(tree.weight for tree in trees)


def _preferences(values: Tensor, chosen: Tensor, rejected: Tensor, weight: Tensor, size: float) -> tuple[Tensor, Sums]:
    # rewards/accuracies counts strict wins, as TRL does; what neither wins is in rewards/ties.
    total = (values * weight).sum()
    chosen, rejected, count = chosen.detach(), rejected.detach(), float(len(values))
    return total, {
        "loss": (total.detach(), size),
        "rewards/chosen": (chosen.sum(), count),
        "rewards/rejected": (rejected.sum(), count),
        "rewards/margins": ((chosen - rejected).sum(), count),
        "rewards/accuracies": ((chosen > rejected).sum(), count),
        "rewards/ties": ((chosen == rejected).sum(), count),
    }
