"""prefdata demo: every step once on the sample data, by the commands that a user would type."""

from __future__ import annotations

import time
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from . import output
from .run import execute, recipes_folder

EXAMPLE = "Example: prefdata demo runs/demo"


def demo(
    run: Annotated[Path, typer.Argument(metavar="DIR", help="The run directory to make.")] = Path("runs/demo"),
) -> None:
    """Run every step on the sample data, printing each command, and compare the trained model with the one before."""
    from prefdata.pipeline import read_recipe

    began = time.monotonic()
    recipe = read_recipe(recipes_folder() / "demo.yaml")
    execute(recipe, "demo", run, {"data": str(sample_data())})
    output.line(f"\nDone in {time.monotonic() - began:,.0f} s. Where everything is:")
    for line in where(run):
        output.line(f"  {line}")


def where(run: Path) -> list[str]:
    """List the outputs of the demo by folder, and the next commands."""
    return [
        f"{run}/{{prompts,candidates,scores,selections,pairs}}  the tables, as Parquet",
        f"{run}/exports/trl                                     shards for TRL and the hub",
        f"{run}/models/dpo                                      the trained model, for transformers and vLLM",
        f"prefdata status {run}                                 what was made, by which command",
        f'prefdata sql {run} "select * from preferences limit 3"  query it',
    ]


def sample_data() -> Path:
    """Return the folder of the sample data: the package's, or the checkout's."""
    try:
        return Path(str(resources.files("prefdata.sample_data")))
    except ModuleNotFoundError:
        return Path(__file__).parents[1] / "sample_data"
