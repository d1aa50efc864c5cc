"""Settings of losses as fields of specs. It does not import torch, since the command line reads it."""

from __future__ import annotations

from typing import Any

from prefdata.specs import Group, identity_field
from prefdata.train.objectives.catalog import LOSSES
from prefdata.train.objectives.registry import Command, listed

DEFAULT_LOSS: dict[Command, str] = {"sft": "nll", "rm": "bradley-terry", "dpo": "sigmoid", "kto": "kto"}
"""The default loss of each command."""


def setting(command: Command, name: str, description: str, **bounds: Any) -> Any:
    """Declare a setting that only some losses have; its help names the losses and the default."""
    defaults = {loss.name: loss.settings[name] for loss in LOSSES.of(command) if name in loss.settings}
    own = defaults.get(DEFAULT_LOSS[command])
    others: dict[str, list[str]] = {}
    for loss, value in defaults.items():
        if value != own:
            others.setdefault(str(value), []).append(loss)
    notes = [f"{value} with {listed(losses)}" for value, losses in others.items()]
    if own is None and len(others) == 1:
        ((value, losses),) = others.items()
        notes = [f"Of {listed(losses)}" + ("" if value == "()" else f" (default: {value})")]
    text = " ".join([description, *([f"{', '.join(notes)}."] if notes else [])])
    return identity_field(own, text, group=Group.LOSS, **bounds)
