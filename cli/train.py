"""prefdata train: sft, rm and dpo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefdata.specs import Group
from prefdata.specs.train import DpoSpec, RmSpec, SftSpec

from . import show
from .help import Command, CommandGroup
from .options import Replace, ReportFormat, option, takes

app = typer.Typer(cls=CommandGroup, help="Train a model: sft, rm or dpo.")

Data = Annotated[
    str,
    typer.Argument(metavar="DATA", help="A run directory, an export, a Parquet, JSON or JSONL file, or a hub dataset."),
]
Out = Annotated[Path, option("--out", metavar="DIR", help="The model folder to write.", group=Group.OUTPUT)]


@app.command(
    "sft",
    cls=Command,
    epilog="Example: prefdata train sft demonstrations.jsonl --model base --out sft --epochs 2 --lr 2e-5",
)
@takes(SftSpec)
def sft(data: Data, out: Out, spec: SftSpec, replace: Replace = False, format: ReportFormat = "text") -> None:
    """Imitate answers: supervised fine-tuning on completions."""
    from prefdata.train.train import train_sft

    done = train_sft(data, spec, out, replace=replace, progress=True)
    show.outcome(done, format)


@app.command(
    "rm", cls=Command, epilog="Example: prefdata train rm preferences.jsonl --model sft --out reward_model --epochs 1"
)
@takes(RmSpec)
def rm(data: Data, out: Out, spec: RmSpec, replace: Replace = False, format: ReportFormat = "text") -> None:
    """Score chosen above rejected: a Bradley-Terry reward model."""
    from prefdata.train.train import train_rm

    done = train_rm(data, spec, out, replace=replace, progress=True)
    show.outcome(done, format)


@app.command(
    "dpo",
    cls=Command,
    epilog="Example: prefdata train dpo runs/demo --model policy --out runs/demo/models/dpo --beta 0.1",
)
@takes(DpoSpec)
def dpo(data: Data, out: Out, spec: DpoSpec, replace: Replace = False, format: ReportFormat = "text") -> None:
    """Prefer chosen to rejected: direct preference optimisation."""
    from prefdata.train.train import train_dpo

    done = train_dpo(data, spec, out, replace=replace, progress=True)
    show.outcome(done, format)
