"""The registry of losses: their names, data and settings. It does not import torch, since help reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from prefdata.errors import did_you_mean

Command = Literal["sft", "rm", "dpo", "kto"]
Data = Literal["demonstrations", "pairs", "groups", "unpaired", "rated"]

WANTED: dict[Data, str] = {
    "demonstrations": "demonstrations (messages, or prompt and completion)",
    "pairs": "pairs (prompt, chosen and rejected)",
    "groups": "groups (prompt, completions and scores)",
    "unpaired": "labelled responses (prompt, completion and label)",
    "rated": "rated responses (prompt, completion and a column for each attribute; or prompt, completions and scores)",
}
"""The name of each kind of data in messages, with the columns of its files."""

OPTIONS = ("label_smoothing", "soft_labels", "f_divergence", "f_alpha", "ld_alpha", "wpo", "nll_weight")
"""Settings of many losses that are not arguments of the loss functions; they are applied in `options`."""

ELSEWHERE = {
    "dpo": "train dpo --loss sigmoid",
    "cdpo": "train dpo --loss sigmoid --label-smoothing 0.1",
    "sigmoid_norm": "sigmoid-mean (TRL's) or sigmoid (that of RSO's paper)",
    "sigmoid-norm": "sigmoid (that of RSO's paper) or sigmoid-mean (TRL's)",
    "dpo_norm": "sigmoid-mean",
    "ipo": "ipo-mean (TRL's) or ipo-sum (the paper's)",
    "hinge-norm": "hinge",
    "exo_pair": "exo",
    "nca_pair": "nca",
    "bco_pair": "bco-pair",
    "sppo_hard": "sppo",
    "aot_pair": "aot",
    "aot_unpaired": "aot-unpaired",
    "apo_zero": "apo-zero",
    "apo_down": "apo-down",
    "apo_zero_unpaired": "train kto --loss apo-zero",
    "slic": "slic-hf (pairs), or slic-rank, slic-margin, slic-list or slic-reward (groups)",
    "rpo": "train dpo --nll-weight 1",
    "wpo": "train dpo --wpo",
    "ld-dpo": "train dpo --ld-alpha 0.5",
    "sft": "train sft, or train dpo --loss rrhf --rank-weight 0 (groups)",
    "kto_pair": "train kto, which splits pairs into labelled responses",
}
"""Names of losses in other tools and papers, and their names here."""

Reward = Literal["ratios", "mean_ratios", "logps", "means"]
"""A policy's reward over beta in metrics: log-ratios to the reference, log-probabilities, or these per token."""


@dataclass(frozen=True)
class Loss:
    """An entry of the registry.

    Attributes:
        name: its value of `--loss`.
        command: the `train` command that has it.
        line: its line of help.
        equation: its value for one example, in the notation of docs/objectives.md.
        source: the paper.
        function: its implementation, `module.function` in this package.
        data: the kind of data that it needs.
        settings: its settings and their defaults; all but `OPTIONS` are arguments of the function.
        reference: whether it needs the log-probabilities of the initial model.
        coupled: whether it couples the examples of an optimiser batch.
        weighted: whether examples can have weights.
        ranks: whether it compares responses by rating, so that a group of equal ratings is of no use.
        reward: the quantity that metrics show as rewards.
        trl, openrlhf: its name there, or how theirs differs.
    """

    name: str
    command: Command
    line: str
    equation: str
    source: str
    function: str
    data: Data
    settings: Mapping[str, Any] = field(default_factory=dict)
    reference: bool = False
    coupled: bool = False
    weighted: bool = True
    ranks: bool = False
    reward: Reward = "ratios"
    trl: str = ""
    openrlhf: str = ""

    def compute(self) -> Callable[..., Any]:
        """Import the function."""
        module, _, name = self.function.partition(".")
        function: Callable[..., Any] = getattr(import_module(f"prefdata.train.objectives.{module}"), name)
        return function


class Registry:
    """All losses.

    Args:
        losses: in the order of help.
    """

    def __init__(self, losses: Iterable[Loss]) -> None:
        self.losses = tuple(losses)
        self._by_name = {(loss.command, loss.name): loss for loss in self.losses}

    def of(self, command: Command) -> list[Loss]:
        """List the losses of a command, in the order of help."""
        return [loss for loss in self.losses if loss.command == command]

    def find(self, command: Command, name: str) -> Loss:
        """Find the loss of that name.

        Raises:
            ValueError: no loss has that name; the message suggests others.
        """
        if found := self._by_name.get((command, name)):
            return found
        elsewhere = [loss.command for loss in self.losses if loss.name == name]
        if elsewhere:
            raise ValueError(f"--loss {name} is one of `train {elsewhere[0]}`, not of `train {command}`")
        if (here := ELSEWHERE.get(name)) is not None:
            raise ValueError(f"--loss {name}: use {here}")
        known = [loss.name for loss in self.of(command)]
        alike = [one for one in known if one.startswith(f"{name}-")]
        if len(alike) > 1:
            raise ValueError(f"--loss {name} is ambiguous: use {' or '.join(alike)}")
        raise ValueError(f"--loss {name}: there is no such loss.{did_you_mean(name, known).removesuffix('.')}")

    def with_setting(self, command: Command, setting: str) -> list[str]:
        """List the names of a command's losses that have a setting."""
        return [loss.name for loss in self.of(command) if setting in loss.settings]

    def settings(self, command: Command) -> list[str]:
        """List all settings of a command's losses."""
        return list(dict.fromkeys(name for loss in self.of(command) for name in loss.settings))

    def resolve(self, command: Command, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Resolve every setting of a command's losses: as given, else its default; None where the loss has none.

        Args:
            command: the command.
            name: the loss.
            given: settings by name; None and False mean not given.

        Raises:
            ValueError: the loss is unknown, or lacks the setting; the message names the losses that have it.
        """
        loss = self.find(command, name)
        values: dict[str, Any] = {}
        for setting in self.settings(command):
            value = given.get(setting)
            asked = value is not None and value is not False
            if asked and setting not in loss.settings:
                flag, having = setting.replace("_", "-"), self.with_setting(command, setting)
                raise ValueError(f"--loss {name} has no --{flag}, which {listed(having)} {_have(having)}: leave it out")
            values[setting] = value if asked else loss.settings.get(setting, value)
        return values


def listed(names: list[str]) -> str:
    """Join names as a sentence lists them: `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _have(names: list[str]) -> str:
    return "has" if len(names) == 1 else "have"
