"""prefdata demo: every step once on the sample data, by the commands that a user would type."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from prefdata.errors import PrefdataError

from . import output

DPO = "--lr 2e-4 --beta 0.1 --label-smoothing 0.3 --batch-size 32"
"""Found by experiment. Without the smoothing DPO over-optimises: the reward rises, the true reward falls."""

EXAMPLE = "Example: prefdata demo runs/demo"


def demo(
    run: Annotated[Path, typer.Argument(metavar="DIR", help="The run directory to make.")] = Path("runs/demo"),
) -> None:
    """Run every step on the sample data, printing each command, and compare the trained model with the one before."""
    began = time.monotonic()
    for number, arguments in enumerate(commands(run, sample_data()), start=1):
        typer.secho(f"\n[{number}] $ {shlex.join(['prefdata', *arguments])}", bold=True)
        sys.stdout.flush()
        _run(arguments)
    output.line(f"\nDone in {time.monotonic() - began:,.0f} s. Where everything is:")
    for line in where(run):
        output.line(f"  {line}")


def commands(run: Path, data: Path) -> list[list[str]]:
    """List the commands of the demo, in order."""
    policy, reward, truth = data / "policy", data / "reward_model", f"{data / 'world.py'}:true_reward"
    dpo = run / "models/dpo"
    rank = ["rank", str(run)]
    versus = "--policy best-of-16 --policy dpo"
    return [
        _words("ingest", run, data / "prompts.jsonl", "--source reviews"),
        _words("sample", run, "--model", policy, "-n 16 --max-tokens 96 --name policy"),
        _words(*rank, "--reward-model", reward, "--name reward"),
        _words(*rank, "--function", truth, "--name truth"),
        _words("select", run, "--method best-of-n --scorer reward --sampler policy --name best-of-16"),
        _words("select", run, "--method rso --k 8 --beta 0.5 --scorer reward --sampler policy --name rso-8"),
        _words("pair", run, "--selector rso-8 --strategy first-round --name rso-8"),
        _words("pair", run, "--selector all --scorer reward --sampler policy --per-prompt 4 --name best-worst"),
        _words("export", run, "--to", run / "exports/trl", "--dialect trl --pairing best-worst"),
        _words("train dpo", run, "--model", policy, "--out", dpo, "--pairing best-worst", DPO),
        _words("sample", run, "--model", dpo, "-n 16 --max-tokens 96 --split test --name dpo"),
        _words(*rank, "--reward-model", reward, "--name reward"),
        _words(*rank, "--function", truth, "--name truth"),
        _words("eval policies", run, "--scorer truth --scorer reward --baseline policy", versus, "--format table"),
    ]


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


def _words(*parts: str | Path) -> list[str]:
    return [word for part in parts for word in ([str(part)] if isinstance(part, Path) else part.split(" "))]


def _run(arguments: list[str]) -> None:
    # Each step in a process of its own, as a user would run it: memory that one engine holds is free for the next.
    done = subprocess.run([sys.executable, "-m", "prefdata.cli", *arguments], env=os.environ, check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        raise PrefdataError(f"the step above failed (exit code {done.returncode}); fix that and run the demo again.")
