"""prefdata train: sft, rm and dpo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefdata.train.specs import DpoSpec, RmSpec, SftSpec

from . import show
from .options import Replace, takes

app = typer.Typer(no_args_is_help=True, help="Train a model: sft, rm or dpo.")

Data = Annotated[
    str,
    typer.Argument(metavar="DATA", help="A run directory, an export, a Parquet, JSON or JSONL file, or a hub dataset."),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="The model folder to make.")]


@app.command(
    "sft", epilog="Example: prefdata train sft demonstrations.jsonl --model base --out sft --epochs 2 --lr 2e-5"
)
@takes(SftSpec)
def sft(data: Data, out: Out, spec: SftSpec, replace: Replace = False) -> None:
    """Imitate answers: supervised fine-tuning on completions."""
    from prefdata.train.runs import train_sft

    with show.progress("train sft") as progress:
        done = train_sft(data, spec, out, replace=replace, progress=progress)
    show.outcome(done)


@app.command("rm", epilog="Example: prefdata train rm preferences.jsonl --model sft --out reward_model --epochs 1")
@takes(RmSpec)
def rm(data: Data, out: Out, spec: RmSpec, replace: Replace = False) -> None:
    """Score chosen above rejected: a Bradley-Terry reward model."""
    from prefdata.train.runs import train_rm

    with show.progress("train rm") as progress:
        done = train_rm(data, spec, out, replace=replace, progress=progress)
    show.outcome(done)


@app.command("dpo", epilog="Example: prefdata train dpo runs/demo --model policy --out runs/demo/models/dpo --beta 0.1")
@takes(DpoSpec)
def dpo(data: Data, out: Out, spec: DpoSpec, replace: Replace = False) -> None:
    """Prefer chosen to rejected: direct preference optimisation."""
    from prefdata.train.runs import train_dpo

    with show.progress("train dpo") as progress:
        done = train_dpo(data, spec, out, replace=replace, progress=progress)
    show.outcome(done)
