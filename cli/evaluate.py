"""prefdata eval: policies side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from . import show

app = typer.Typer(no_args_is_help=True, help="Evaluate policies.")


@app.command(
    "policies", epilog="Example: prefdata eval policies runs/demo --scorer truth --baseline policy --policy dpo"
)
def policies(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")],
    scorer: Annotated[list[str], typer.Option("--scorer", help="Whose scores; the first decides the win rate.")],
    baseline: Annotated[str, typer.Option("--baseline", help="The sampler or selection to win against.")],
    policy: Annotated[
        list[str], typer.Option("--policy", help="A sampler (all its answers) or a selection (its first answer).")
    ],
    split: Annotated[Literal["all", "train", "test"], typer.Option("--split", help="Which prompts.")] = "test",
    format: Annotated[
        Literal["table", "csv", "json", "jsonl", "markdown"] | None,
        typer.Option("--format", "-f", help="table on a terminal and csv in a pipe unless given."),
    ] = None,
) -> None:
    """Compare policies: mean scores, win rate against a baseline with its 95% interval, mean length in tokens."""
    from prefdata.explore.policies import compare
    from prefdata.store import Run

    show.table(compare(Run(run), scorer, policy, baseline, split).to_arrow(), format)
