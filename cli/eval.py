"""prefdata eval: compare policies and judges, and measure a reward model on labelled pairs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prefdata.specs import Group

from . import output
from .help import Command, CommandGroup
from .options import (
    ChatTemplateArg,
    ChatTemplateDate,
    ChatTemplateFlag,
    Device,
    Ignore,
    Layout,
    Limit,
    OneMeans,
    Partial,
    RunArgument,
    Split,
    TableFormat,
    TextFormat,
    Verdict,
    option,
)

if TYPE_CHECKING:
    from prefdata.explore.reward_models import Evaluation, Pair

Scores = dict[str, float | None]

OnBadRows = Annotated[
    Literal["error", "drop"],
    option(
        "--on-bad-rows",
        metavar="error|drop",
        group=Group.INPUT,
        help="Rows of files that cannot be used. (default: error)",
    ),
]

app = typer.Typer(cls=CommandGroup, help="Evaluate policies and reward models.")


@app.command(
    "policies",
    cls=Command,
    epilog="Example: prefdata eval policies runs/demo --scorer truth --baseline policy --policy dpo",
)
def policies(
    run: RunArgument,
    scorer: Annotated[
        list[str], option("--scorer", group=Group.INPUT, help="Whose scores; the first decides the win rate.")
    ],
    baseline: Annotated[str, option("--baseline", group=Group.INPUT, help="The sampler or selection to win against.")],
    policy: Annotated[
        list[str],
        option("--policy", group=Group.INPUT, help="A sampler (all its responses) or a selection (its first)."),
    ],
    split: Split = "test",
    format: TableFormat = None,
) -> None:
    """Compare policies on the same prompts: mean scores, win rate over a baseline with its 95% interval, mean tokens.

    A selected response is compared only with samples that it was not chosen from: fresh ones, or each left out in turn.
    """
    from prefdata.explore.policies import compare
    from prefdata.storage.run import Run

    rows = compare(Run(run), scorer, policy, baseline, split)
    with_notes = format in ("csv", "json", "jsonl") or (format is None and not sys.stdout.isatty())
    output.table((rows if with_notes else rows.drop("note")).to_arrow(), format)
    if not with_notes:
        for name, note in rows.select("policy", "note").drop_nulls().iter_rows():
            typer.echo(f"\n{name}: {note}")


@app.command("judges", cls=Command, epilog="Example: prefdata eval judges runs/ranking --judge duel")
def judges(
    run: RunArgument,
    judge: Annotated[
        list[str] | None,
        option("--judge", group=Group.INPUT, help="Whose comparisons (default: all)."),
    ] = None,
    partial: Partial = False,
    format: TableFormat = None,
) -> None:
    """Measure how judges agree: with themselves in both orders, and with each other (kappa, AC1)."""
    from prefdata.explore.judges import judges as found
    from prefdata.storage.run import Run

    alone, together = found(Run(run), tuple(judge or ()), partial=partial)
    output.table(alone.to_arrow(), format)
    if together.height:
        typer.echo()
        output.table(together.to_arrow(), format)


@app.command(
    "reward-model",
    cls=Command,
    epilog="Example: prefdata eval reward-model sample_data/reward_model sample_data/heldout_preferences.jsonl",
)
def reward_model(
    scorer: Annotated[
        str, typer.Argument(metavar="M", help="A reward model (folder or hub name), FILE.py:NAME, or a run's scorer.")
    ],
    data: Annotated[
        list[str], typer.Argument(metavar="DATA…", help="Labelled pairs: files, exports, hub names, or a run.")
    ],
    pairing: Annotated[str | None, option("--pairing", group=Group.INPUT, help="Which pairs of a run.")] = None,
    by: Annotated[
        list[str] | None,
        option("--by", group=Group.INPUT, help="A column to group by (default: source and subset)."),
    ] = None,
    rows: Annotated[
        Path | None,
        option("--rows", metavar="FILE", group=Group.OUTPUT, help="Write a JSON object per pair into this file."),
    ] = None,
    label: Annotated[
        str | None, option("--label", group=Group.MODEL, help="Which label of several, by name or number.")
    ] = None,
    text_format: TextFormat = None,
    chat_template: ChatTemplateFlag = None,
    chat_template_arg: ChatTemplateArg = None,
    chat_template_date: ChatTemplateDate = None,
    layout: Layout = None,
    ignore: Ignore = None,
    one_means: OneMeans = None,
    verdict: Verdict = None,
    limit: Limit = None,
    on_bad_rows: OnBadRows = "error",
    device: Device = None,
    dtype: Annotated[
        str, option("--dtype", help="auto, float32, bfloat16, float16. (default: auto)", group=Group.ENGINE)
    ] = "auto",
    format: Annotated[
        Literal["table", "json"],
        option(
            "--format",
            "-f",
            metavar="table|json",
            help="How the figures are printed. (default: table)",
            group=Group.OUTPUT,
        ),
    ] = "table",
) -> None:
    """Accuracy on labelled pairs with 95% intervals, margins, calibration, length bias, other samplers' responses."""
    from prefdata.errors import UsageError
    from prefdata.explore import reward_models
    from prefdata.formats.reading import ReadOptions
    from prefdata.storage.run import Run
    from prefdata.storage.schemas import TABLES

    read: dict[str, Any] = {
        "label": label,
        "text_format": text_format and str(text_format),
        "chat_template": chat_template,
        "chat_template_arg": tuple(chat_template_arg or ()),
        "chat_template_date": chat_template_date,
    }
    runs = [Run(Path(name)) for name in data if any((Path(name) / table).is_dir() for table in TABLES)]
    options = ReadOptions(layout, tuple(ignore or ()), one_means, verdict, limit=limit, on_bad_rows=on_bad_rows)
    if runs and options != ReadOptions():
        raise UsageError(f"{runs[0]} is a run: leave out how files are read (--layout, --limit, …).")
    stored = next((run for run in runs if scorer in {p.name for p in run.partitions("scores")}), None)
    if stored is not None and len(data) == 1:
        if given := [name for name, value in read.items() if value]:
            flag = f"--{given[0].replace('_', '-')}"
            raise UsageError(f"the scores of {scorer} are in the run, and {flag} changes nothing here: leave it out.")
        pairs, scores = reward_models.stored_pairs(stored, scorer, pairing)
    else:
        groups = by or reward_models.GROUPS
        pairs = _read_pairs(data, part=pairing, by=groups, options=options)
        scores = _scored(scorer, pairs, device=device, dtype=dtype, **read)
    samplers = {} if stored is None else reward_models.sampler_scores(stored, scorer)
    if rows is not None:
        reward_models.write_rows(rows, pairs, scores)
    _print(reward_models.evaluate(pairs, scores, samplers), format)


def _read_pairs(data: list[str], **how: Any) -> list[Pair]:
    """Read the labelled pairs of files, exports and runs; those that are left out are counted on stderr."""
    from collections import Counter

    from prefdata.explore.reward_models import from_data

    left_out: Counter[str] = Counter()
    pairs = [pair for name in data for pair in from_data(name, left_out=left_out, **how)]
    for reason, count in left_out.items():
        typer.echo(f"left out: {reason.replace('_', ' ')} {count:,}", err=True)
    return pairs


def _scored(named: str, pairs: list[Pair], **settings: Any) -> Scores:
    from prefdata.explore.reward_models import score_pairs
    from prefdata.scorers.open import dated_scorer, open_scorer
    from prefdata.scorers.protocol import computed_by
    from prefdata.specs import RankSpec

    kind = "function" if ".py:" in named else "reward_model"
    given = {name: value for name, value in settings.items() if value != "auto"}  # a function has none of them
    scorer = open_scorer(dated_scorer(RankSpec.parse({kind: named, **given}, where="eval reward-model")))
    if computed := computed_by(scorer):
        typer.echo(f"computed in {computed['dtype']} on {computed['device']}", err=True)
    try:
        return score_pairs(scorer, pairs)
    finally:
        scorer.close()


def _print(found: Evaluation, form: str) -> None:
    import json

    import pyarrow as pa

    if form == "json":
        typer.echo(json.dumps(found.as_json(), ensure_ascii=False, indent=2))
        return
    for title, rows in (
        ("accuracy (a tie is half)", found.accuracy.to_arrow()),
        ("margins", pa.Table.from_pylist([found.margins])),
        (f"calibration of sigmoid(margin): ECE {found.ece:.4f}", found.reliability.to_arrow()),
        ("length in characters: accuracies and correlations", _two_columns(found.length)),
        ("scores of responses", found.distributions.to_arrow()),
    ):
        typer.echo(f"{title}\n")
        output.table(rows, "table")
        typer.echo("")


def _two_columns(figures: dict[str, float | None]) -> Any:
    import pyarrow as pa

    return pa.Table.from_pylist([{"figure": name.replace("_", " "), "value": v} for name, v in figures.items()])
