"""The tables of docs/objectives.md, as the registry has them: `python tests/objectives_page.py` prints them."""

from __future__ import annotations

from prefdata.train.objectives.catalog import LOSSES
from prefdata.train.objectives.registry import Command, Loss

COMMANDS: tuple[Command, ...] = ("sft", "rm", "dpo", "kto")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def loss_row(loss: Loss) -> str:
    """What a loss is."""
    settings = ", ".join(_shown(*item) for item in loss.settings.items() if COMMON.get(item[0], ...) != item[1])
    return f"| `{loss.name}` | {_cell(loss.equation)} | {settings} | {loss.source} |"


def name_row(loss: Loss) -> str:
    """What others call it."""
    return f"| `train {loss.command} --loss {loss.name}` | {loss.trl or 'none'} | {loss.openrlhf or 'none'} |"


COMMON = {
    "label_smoothing": 0.0,
    "soft_labels": False,
    "f_divergence": "reverse-kl",
    "f_alpha": 0.5,
    "ld_alpha": 1.0,
    "wpo": False,
    "nll_weight": 0.0,
    "use_margin": False,
}
"""Settings with a table of their own, and the value at which they change nothing."""


def _shown(name: str, value: object) -> str:
    return f"{name} {value}".removesuffix(" ()")


def tables() -> str:
    parts = []
    for command in COMMANDS:
        parts += [f"### train {command}", "", "| `--loss` | value for one example | settings | paper |"]
        parts += ["| --- | --- | --- | --- |", *map(loss_row, LOSSES.of(command)), ""]
    parts += ["| here | TRL 1.16 | OpenRLHF |", "| --- | --- | --- |", *map(name_row, LOSSES.losses)]
    return "\n".join(parts)


if __name__ == "__main__":
    print(tables())
