"""prefdata demo: the whole way once, on the sample data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "Example: prefdata demo runs/demo"


def demo(
    run: Annotated[Path, typer.Argument(metavar="DIR", help="The run directory to make.")] = Path("runs/demo"),
) -> None:
    """Run every step on the sample data, printing each command, and compare the trained model with the one before."""
    raise NotImplementedError
