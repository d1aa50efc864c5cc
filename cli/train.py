"""prefdata train: sft, rm, dpo, kto and ppo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from prefdata.specs import Group
from prefdata.train.launch import launch, place
from prefdata.train.objectives.catalog import LOSSES
from prefdata.train.objectives.registry import WANTED
from prefdata.train.objectives.registry import Command as CommandName
from prefdata.train.ppo.specs import PpoSpec
from prefdata.train.specs import DpoSpec, KtoSpec, LossSpec, RmSpec, SftSpec

from . import output
from .help import Command, CommandGroup, List
from .options import Replace, ReportFormat, RunArgument, option, spec_options

COMMANDS: tuple[CommandName, ...] = ("sft", "rm", "dpo", "kto")


class AllLosses(CommandGroup):
    """The group, whose help lists the losses of all commands."""

    lists: ClassVar[list[List]] = [
        (f"train {command} --loss", [(loss.name, loss.line) for loss in LOSSES.of(command)]) for command in COMMANDS
    ]


def with_losses(command: CommandName) -> type[Command]:
    """Return a command whose help lists its losses by the data that they need."""
    kinds = dict.fromkeys(loss.data for loss in LOSSES.of(command))
    of_kind = {kind: [(loss.name, loss.line) for loss in LOSSES.of(command) if loss.data == kind] for kind in kinds}
    lists = [(f"Losses of {WANTED[kind]}", rows) for kind, rows in of_kind.items()]
    return type("Losses", (Command,), {"lists": lists})


app = typer.Typer(cls=AllLosses, help="Train a model: sft, rm, dpo, kto or ppo. docs/objectives.md has the equations.")

Data = Annotated[
    str,
    typer.Argument(metavar="DATA", help="A run directory, an export, a Parquet, JSON or JSONL file, or a hub dataset."),
]
Out = Annotated[Path, option("--out", metavar="DIR", help="The model folder to write.", group=Group.OUTPUT)]
DryRun = Annotated[
    bool,
    option(
        "--dry-run",
        metavar=None,
        help="Show parameters, tokens, steps and memory by part, estimated from the config and the data, and train "
        "nothing. The model needs no weights.",
        group=Group.OUTPUT,
    ),
]


def _add(spec_type: type[LossSpec], help: str, example: str) -> None:
    """Add the command of a kind of losses."""

    @app.command(spec_type.command, cls=with_losses(spec_type.command), help=help, epilog=f"Example: {example}")
    @spec_options(spec_type)
    def command(
        data: Data,
        out: Out,
        spec: LossSpec,
        replace: Replace = False,
        format: ReportFormat = "text",
        dry_run: DryRun = False,
    ) -> None:
        from prefdata.train import train

        if dry_run:
            output.facts(train.plan_training(data, spec.model_copy(update={"nproc": 1}), out))
            return
        if spec.nproc > 1 and place().world == 1:
            raise typer.Exit(launch(spec.nproc, [sys.executable, "-m", "prefdata.cli", *sys.argv[1:]]))
        done = getattr(train, f"train_{spec.command}")(data, spec, out, replace=replace, progress=True)
        if place().rank == 0:
            output.outcome(done, format)


_add(
    SftSpec,
    "Imitate responses: supervised fine-tuning.",
    "prefdata train sft demonstrations.jsonl --model base --out sft --epochs 2 --lr 2e-5",
)
_add(
    RmSpec,
    "Score better responses higher: a reward model.",
    "prefdata train rm preferences.jsonl --model sft --out reward_model",
)
_add(
    DpoSpec,
    "Prefer better responses: direct preference optimisation and its variants.",
    "prefdata train dpo runs/demo --model policy --out runs/demo/models/dpo",
)
_add(
    KtoSpec,
    "Learn from single responses labelled good or bad.",
    "prefdata train kto labels.jsonl --model policy --out kto",
)


@app.command(
    "ppo",
    cls=Command,
    epilog="Example: prefdata train ppo runs/demo --model policy --reward reward_model=rm --out runs/demo/models/ppo",
)
@spec_options(PpoSpec)
def ppo(
    run: RunArgument,
    out: Out,
    spec: PpoSpec,
    replace: Replace = False,
    format: ReportFormat = "text",
    dry_run: Annotated[
        bool,
        option(
            "--dry-run",
            metavar=None,
            help="Show the memory of each role in MiB; train nothing.",
            group=Group.OUTPUT,
        ),
    ] = False,
) -> None:
    """Learn from scores of the model's own responses: PPO, RLOO, GRPO, REINFORCE, online DPO."""
    import pyarrow as pa

    from prefdata.train.ppo.ppo import dry_run as memory_of
    from prefdata.train.ppo.ppo import train_ppo

    if dry_run:
        rows = [{name: _mebibytes(name, value) for name, value in row.items()} for row in memory_of(run, spec, out)]
        output.table(pa.Table.from_pylist(rows), "json" if format == "json" else "table")
        return
    done = train_ppo(run, spec, out, replace=replace, progress=True)
    output.outcome(done, format)


def _mebibytes(name: str, value: object) -> object:
    return round(value / 2**20, 1) if isinstance(value, int) and name != "parameters" else value
