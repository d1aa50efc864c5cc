"""docs/objectives.md says what the registry says."""

from __future__ import annotations

from pathlib import Path

from objectives_page import COMMANDS, loss_row, name_row
from shells import console_commands

from prefdata.train.objectives.catalog import LOSSES

PAGE = Path(__file__).parents[3] / "docs/objectives.md"


def test_the_tables_are_the_registry() -> None:
    """`python tests/objectives_page.py` prints them."""
    lines = PAGE.read_text("utf-8").splitlines()
    for loss in LOSSES.losses:
        assert loss_row(loss) in lines
        assert name_row(loss) in lines


def test_there_is_a_command_for_each_loss() -> None:
    shown = [command.split() for command in console_commands(PAGE)]
    for command in COMMANDS:
        default = LOSSES.of(command)[0].name
        of_command = [words for words in shown if words[1:3] == ["train", command]]
        named = {words[words.index("--loss") + 1] if "--loss" in words else default for words in of_command}
        assert named == {loss.name for loss in LOSSES.of(command)}
