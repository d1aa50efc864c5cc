"""prefdata check: check a model, or a run's files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from prefdata.specs import Group

from . import output
from .help import Command, CommandGroup
from .options import ChatTemplateArg, ChatTemplateDate, ChatTemplateFlag, Device, TextFormat, option

app = typer.Typer(cls=CommandGroup, help="Check a model, or a run's files.")


@app.command("run", cls=Command, epilog="Example: prefdata check run runs/demo")
def run(path: Annotated[Path, typer.Argument(metavar="RUN", help="A run; or a model or export that it made.")]) -> None:
    """Read every file of a run, and say which are damaged, missing or changed: a line each, and exit code 1."""
    from prefdata.explore.check_run import check_run, leftovers, unfinished

    faults = 0
    for fault in check_run(path):
        faults += 1
        output.line(fault)
    for folder in unfinished(path):
        typer.echo(f"prefdata: {folder} is not finished: rows may be missing. Its command continues it.", err=True)
    for left in leftovers(path):
        typer.echo(f"prefdata: {left} is being written, or was left by a process that was killed.", err=True)
    if faults:
        raise typer.Exit(1)
    output.line(f"{path}: every file is unchanged.")


@app.command("reward-model", cls=Command, epilog="Example: prefdata check reward-model sample_data/reward_model")
def reward_model(
    model: Annotated[str, typer.Argument(metavar="M", help="A sequence-classification model: folder or hub name.")],
    engine: Annotated[
        Literal["auto", "transformers", "vllm"],
        option(
            "--engine",
            metavar="auto|transformers|vllm",
            help="auto compares with vLLM if it is installed, transformers does not. (default: auto)",
            group=Group.ENGINE,
        ),
    ] = "auto",
    data: Annotated[
        Path | None,
        option(
            "--data",
            metavar="FILE",
            help="Preferences whose texts are scored (default: built-in ones).",
            group=Group.INPUT,
        ),
    ] = None,
    text_format: TextFormat = None,
    chat_template: ChatTemplateFlag = None,
    chat_template_arg: ChatTemplateArg = None,
    chat_template_date: ChatTemplateDate = None,
    device: Device = None,
    dtype: Annotated[
        str, option("--dtype", help="float32, bfloat16, float16. (default: float32)", group=Group.ENGINE)
    ] = "float32",
    limit: Annotated[
        int,
        option("--limit", metavar="INT", help="Texts of --data to score. (default: 64)", min=2, group=Group.INPUT),
    ] = 64,
    format: Annotated[
        Literal["table", "csv", "json", "jsonl", "markdown"],
        option(
            "--format",
            "-f",
            metavar="table|csv|json|jsonl|markdown",
            help="How the checks are printed. (default: table)",
            group=Group.OUTPUT,
        ),
    ] = "table",
) -> None:
    """Check that scores are the same in any batch, padding, order, engine and load, and of the right text."""
    import pyarrow as pa

    from prefdata.explore.reward_model_checks import check
    from prefdata.explore.reward_models import from_data
    from prefdata.specs import RewardModelSpec

    read = {"text_format": text_format and str(text_format), "chat_template": chat_template}
    read |= {"chat_template_date": chat_template_date}
    variables = tuple(chat_template_arg or ())
    values = {"reward_model": model, **read, "chat_template_arg": variables}
    spec = RewardModelSpec.parse(values, where="check reward-model")
    items = [] if data is None else [item for pair in from_data(data) for item in (pair.chosen, pair.rejected)][:limit]
    choice = spec.template_choice
    found = check(model, engine=engine, device=device, dtype=dtype, text_format=text_format, choice=choice, items=items)
    rows = [{"check": c.check, "verdict": c.verdict, "seen": c.seen, "limit": c.limit} for c in found]
    output.table(pa.Table.from_pylist(rows), format)
    if any(one.passed is False for one in found):
        raise typer.Exit(1)
