"""Values for losses, in float64, as a test writes them."""

from __future__ import annotations

from typing import Any

import torch

from prefdata.train.objectives.catalog import LOSSES
from prefdata.train.objectives.objective import Objective
from prefdata.train.objectives.registry import Command
from prefdata.train.objectives.values import Policy, Scored


def table(*rows: Any) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def labels(*probabilities: float) -> torch.Tensor:
    return table(*([p, 1 - p] for p in probabilities))


def pair(chosen: float, rejected: float, **more: Any) -> Policy:
    """One pair with these log-ratios: the reference gives both log-probability -20."""
    reference = table([-20.0, -20.0])
    return Policy.of(reference + table([chosen, rejected]), reference, **more)


def group(logps: list[float], ratings: list[float], **more: Any) -> Policy:
    return Policy.of(table(logps), ratings=table(ratings)[..., None], **more)


def scored(scores: list[float], ratings: list[float] | None = None, **more: Any) -> Scored:
    if ratings is not None:
        more["ratings"] = table(ratings)[..., None]
    return Scored.of(table(scores), **more)


def objective(command: Command, name: str, **settings: Any) -> Objective:
    entry = LOSSES.find(command, name)
    assert set(settings) <= set(entry.settings)
    return Objective(entry, {**entry.settings, **settings})


def losses(command: Command, name: str, values: Policy | Scored, **settings: Any) -> torch.Tensor:
    """`[E]` losses with a loss's defaults, changed by settings."""
    return objective(command, name, **settings).loss(values)[0]


def value(command: Command, name: str, values: Policy | Scored, **settings: Any) -> float:
    """The loss of one example."""
    (found,) = losses(command, name, values, **settings).tolist()
    return float(found)
