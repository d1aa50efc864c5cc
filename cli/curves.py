"""prefdata curves: best-of-N reward against the number of candidates and the temperature."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

from prefdata.errors import InputError, UsageError
from prefdata.printable import printable
from prefdata.specs import Group

from . import output
from .options import Partial, RunArgument, option, parse_int

if TYPE_CHECKING:
    from prefdata.explore.curves.curves import Curves

EXAMPLE = "Example: prefdata curves runs/demo --scorer reward --gold truth --plan 8,16,32,64"

Format = Literal["table", "csv", "json", "jsonl", "markdown", "parquet"]
ENDINGS: dict[str, Format] = {
    ".csv": "csv", ".json": "json", ".jsonl": "jsonl", ".md": "markdown", ".parquet": "parquet", ".txt": "table",
}  # fmt: skip
"""The format that a file's name implies."""

TIED = 0.5
"""Fraction of tied scores from which on the scores' distribution counts as finite, and the exact KL is shown."""

Point = dict[str, Any]
Key = tuple[str, str, int]


def _scores(flag: str, tells: str) -> Any:
    return option(flag, group=Group.INPUT, help=f"Whose scores decide {tells}.")


def curves(
    run: RunArgument,
    scorer: Annotated[str | None, _scores("--scorer", "which response is best (default: the only ones)")] = None,
    gold: Annotated[str | None, _scores("--gold", "how good that response really is: over-optimisation")] = None,
    sampler: Annotated[
        list[str] | None,
        option("--sampler", group=Group.INPUT, help="Only these samplers' candidates (default: all)."),
    ] = None,
    by: Annotated[
        Literal["sampler", "temperature", "none"],
        option(
            "--by",
            metavar="sampler|temperature|none",
            help="A curve for each sampler, for each temperature, or one of all. (default: sampler)",
        ),
    ] = "sampler",
    n: Annotated[
        int | None,
        option(
            "-n",
            "--n",
            metavar="INT",
            parser=parse_int,
            help="Take prompts with this many scored candidates (default: what most have).",
        ),
    ] = None,
    plan: Annotated[
        str | None, option("--plan", help="Estimate reward and cost for these N, such as 8,16,32,64; also beyond n.")
    ] = None,
    seed: Annotated[
        int, option("--seed", metavar="INT", parser=parse_int, help="Seed of the bootstrap over prompts. (default: 0)")
    ] = 0,
    partial: Partial = False,
    out: Annotated[
        Path | None,
        option(
            "--out",
            metavar="FILE",
            group=Group.OUTPUT,
            help="Also write all points into this file (.csv, .parquet, .jsonl, …).",
        ),
    ] = None,
    format: Annotated[
        Format | None,
        option(
            "--format",
            "-f",
            metavar="table|csv|json|jsonl|markdown|parquet",
            group=Group.OUTPUT,
            help="Print all points, a row each, instead of the page.",
        ),
    ] = None,
) -> None:
    """Show the expected best of n by N and temperature with 95% intervals, its cost, and the diversity of responses.

    Unbiased for every n up to the number of candidates; with --plan extrapolated beyond, and marked so.
    """
    form = _form(out, format)
    planned = _numbers(plan)
    for flag, value, least in (("-n", n, 1), ("--seed", seed, 0)):
        if value is not None and value < least:
            raise UsageError(f"curves: {flag}: should be greater than or equal to {least}, not {value}")
    from prefdata.explore.curves.curves import curves as explore
    from prefdata.storage.run import Run

    if gold is not None and gold == (scorer if scorer is not None else Run(run).only("scores", partial=partial).name):
        raise UsageError(f"--gold {gold} is the scorer itself: name another scorer, of the real quality.")
    found = explore(
        Run(run), scorer, gold=gold, samplers=tuple(sampler or ()), by=by, n=n, plan=planned, seed=seed, partial=partial
    )  # fmt: skip
    if out is not None:
        _write(found, out, form)
    if format is None:
        page(found, planned, gold)
    elif out is None:
        output.table(found.rows.to_arrow(), format)


def _numbers(plan: str | None) -> list[int]:
    try:
        return sorted({int(part) for part in plan.split(",")}) if plan is not None else []
    except ValueError:
        raise UsageError(f"--plan takes numbers separated by commas, such as 8,16,32,64, not {plan!r}.") from None


def _form(out: Path | None, format: Format | None) -> Format:
    if format is not None or out is None:
        return format or "csv"
    if out.suffix not in ENDINGS:
        raise UsageError(f"--out {out}: name a file that ends in {', '.join(ENDINGS)}, or give --format.")
    return ENDINGS[out.suffix]


def _write(found: Curves, out: Path, form: Format) -> None:
    from prefdata.storage.atomic import write_output

    def write(file: TextIO) -> None:
        with contextlib.redirect_stdout(file):
            output.table(found.rows.to_arrow(), form)

    try:
        write_output(out, write)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}.") from None


def page(found: Curves, plan: Sequence[int], gold: str | None) -> None:
    """Print the main results; the long table has the rest."""
    points = {(row["curve"], row["group"], row["n"]): row for row in found.rows.iter_rows(named=True)}
    groups = list(dict.fromkeys(group for _, group, _ in points))
    scorer = found.rows["scorer"][0]
    if len(groups) > 1:
        _compared(points, groups, scorer)
        _leading(points, "lead", scorer)
        _leading(points, "gold_lead", gold)
    for group in groups:
        _one(points, group, scorer)
        if gold is not None:
            _against_gold(points, group, scorer, gold)
    _differences(points, groups)
    if plan:
        _planned(points, groups, plan, scorer)
    _account(found)


def _compared(points: dict[Key, Point], groups: list[str], scorer: str) -> None:
    ns = _doublings([n for curve, _, n in points if curve == "max"])
    body = []
    for group in groups:
        cells = [points.get(("max", group, n)) for n in ns]
        marks = [_style(points.get(("lead", group, n))) for n in ns]
        body.append([group, *(_styled(_number(c) + _mark(c), m) for c, m in zip(cells, marks, strict=True))])
    _table(f"The best of n by {scorer}: expected score", ["group", *(f"n = {n}" for n in ns)], body)
    if any("~" in cell for row in body for cell in row):
        output.line("  ~ extrapolated\n")


def _leading(points: dict[Key, Point], curve: str, scorer: str | None) -> None:
    winners = {n: row for (kind, _, n), row in points.items() if kind == curve}
    body = [
        [str(n), _styled(winners[n]["group"], _style(winners[n])), _with_interval(winners[n]), _sure(winners[n])]
        for n in _doublings(list(winners))
    ]
    if body:
        _table(
            f"Which group's best of n is best by {scorer}, and how far ahead of the next",
            ["n", "group", "lead", ""],
            body,
        )


def _apart(lead: Point | None) -> bool:
    return lead is not None and lead["low"] is not None and lead["low"] > 0


def _style(lead: Point | None) -> str:
    return "bold green" if _apart(lead) else ""


def _sure(lead: Point) -> str:
    return "" if lead["low"] is None else "significant" if _apart(lead) else "not significant"


def _star(lead: Point | None) -> str:
    sure = "" if lead is None else _sure(lead)
    return " *" if sure == "significant" else f" ({sure})" if sure else ""


def _one(points: dict[Key, Point], group: str, scorer: str) -> None:
    ns = _doublings(_steps(points, "median", group))
    prompts = points[("max", group, 1)]["prompts"]
    pass_ = ("pass", group, 1) in points
    title = f"pass@n by {scorer}" if pass_ else f"best of n by {scorer}"
    more = _kl(points, group, max(ns))
    body = [
        [
            str(n),
            _with_interval(points.get(("max", group, n))),
            *(_number(points.get((curve, group, n))) for curve in ("median", "gap")),
            _share(points.get(("win_rate", group, n))),
            *(_number(points.get((curve, group, n))) for curve in ("kl_bound", *more)),
            _share(points.get(("unique_share", group, n))),
        ]
        for n in ns
    ]
    head = ["n", title, "median", "best - median", "beats one draw", "KL at most", *more.values(), "unique texts"]
    _table(f"{group}: {prompts:,} prompts with {max(ns)} candidates or more", head, body)


def _kl(points: dict[Key, Point], group: str, last: int) -> dict[str, str]:
    """Return the curves of the KL divergence that say more than its bound, and their headings."""
    heads = {"kl_empirical": "KL if these are all"} if points[("tied", group, last)]["value"] >= TIED else {}
    model = points.get(("kl_model", group, last))
    if model is not None and _number(model) != _number(points[("kl_bound", group, last)]):
        heads["kl_model"] = "KL by the model"
    return heads


def _against_gold(points: dict[Key, Point], group: str, scorer: str, gold: str) -> None:
    from prefdata.explore.curves.points import ROUNDING

    steps = _steps(points, "gold", group)
    first = points[("gold", group, 1)]["value"]
    body = []
    for n in _doublings(steps):
        mine, most = points[("gold", group, n)]["value"], points[("gold_ceiling", group, n)]["value"]
        there = n > 1 and most - first > ROUNDING * max(abs(most), abs(first))
        captured = f"{(mine - first) / (most - first):.0%}" if there else ""
        body.append([
            str(n), _number(points[("max", group, n)]), _with_interval(points[("gold", group, n)]),
            _number(points[("gold_ceiling", group, n)]), captured, _number(points.get(("best_tokens", group, n)), 1),
        ])  # fmt: skip
    head = ["n", scorer, f"{gold} of the best by {scorer}", f"best by {gold} itself", "of the gain", "its tokens"]
    _table(f"{group}: {scorer} chooses, {gold} judges", head, body)
    fall = points[("gold_fall", group, max(steps))]
    if fall["value"] > 0:
        peak = max(steps, key=lambda n: points[("gold", group, n)]["value"])
        sure = ", not significant: the interval includes 0" if _sure(fall) == "not significant" else ""
        output.line(
            f"  {gold} is highest at n = {peak}; at n = {max(steps)} it has lost {_with_interval(fall)}{sure}.\n"
        )


def _differences(points: dict[Key, Point], groups: list[str]) -> None:
    curves = ("distinct_1", "distinct_2", "distinct_3", "self_bleu")
    body = []
    for group in groups:
        n = max(_steps(points, "median", group))
        cells = [_number(points.get((curve, group, n))) for curve in curves]
        body.append([group, str(n), *cells, _share(points.get(("unique_share", group, n)))])
    head = ["group", "responses", "distinct-1", "distinct-2", "distinct-3", "self-BLEU", "unique texts"]
    _table("How different the responses to one prompt are", head, body)


def _planned(points: dict[Key, Point], groups: list[str], plan: Sequence[int], scorer: str) -> None:
    body = []
    for n in plan:
        for group in groups:
            row, lead = points[("max", group, n)], points.get(("lead", group, n))
            tokens = [points.get((curve, group, n)) for curve in ("completion_tokens", "prompt_tokens")]
            how = "unknown" if row["value"] is None else "extrapolated" if row["extrapolated"] else "measured"
            base = points[("max", group, 1)]["value"]
            gain = "" if row["value"] is None else f"+{_figure(max(row['value'] - base, 0.0))}"
            name = _styled(group, _style(lead)) + _star(lead)
            body.append([str(n), name, _with_interval(row), gain, how, *(_number(t, 0) for t in tokens)])
    head = ["N", "group", f"best of N by {scorer}", "over one sample", "", "tokens drawn", "tokens read"]
    star = any(_apart(points.get(("lead", group, n))) for group in groups for n in plan)
    note = "; * is the best for this N" if star else ""
    _table(f"The plan: expected best of N, and its cost in tokens per prompt{note}", head, body)


def _account(found: Curves) -> None:
    report = found.report
    lines = [(report.unit, f"{report.rows_in:,} in, {report.rows_out:,} out")]
    lines += [(f"dropped: {reason.replace('_', ' ')}", f"{count:,}") for reason, count in report.dropped.items()]
    lines += [(name.replace("_", " "), output.number(value)) for name, value in report.figures.items() if value]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        output.line(f"  {name:<{width}}  {value}")
    for note in found.notes:
        output.line(f"  note: {note}")


def _steps(points: dict[Key, Point], curve: str, group: str) -> list[int]:
    return [n for kind, mine, n in points if kind == curve and mine == group]


def _doublings(ns: Sequence[int]) -> list[int]:
    """1, 2, 4, … and the last, of those in the table."""
    return sorted({n for n in ns if n.bit_count() == 1 or n == max(ns)})


def _number(row: Point | None, digits: int = 3) -> str:
    return "" if row is None or row["value"] is None else _figure(row["value"], digits)


def _figure(value: float, digits: int = 3) -> str:
    value = round(value, digits) + 0.0  # no negative zero
    return f"{value:,.{digits}f}" if abs(value) < 1e9 else f"{value:.{digits}e}"


def _share(row: Point | None) -> str:
    return "" if row is None or row["value"] is None else f"{row['value']:.1%}"


def _interval(row: Point | None) -> str:
    return "" if row is None or row["low"] is None else f"[{_figure(row['low'])}, {_figure(row['high'])}]"


def _with_interval(row: Point | None) -> str:
    return f"{_number(row)} {_interval(row)}".strip()


def _mark(row: Point | None) -> str:
    return "~" if row is not None and row["extrapolated"] and row["value"] is not None else ""


def _styled(text: str, style: str) -> str:
    from rich.markup import escape

    text = escape(printable(text))
    return f"[{style}]{text}[/]" if style else text


def _table(title: str, head: list[str], body: list[list[str]]) -> None:
    """Print a table: on a terminal its headings as narrow as they must be, elsewhere plain text."""
    from textwrap import fill

    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.markup import escape, render
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(head):
        widest = max([9, *(len(word) for word in name.split())] + [cell_len(render(row[place]).plain) for row in body])
        justify: Literal["left", "right"] = "left" if name == "group" else "right"
        made.add_column(escape(fill(printable(name), widest)), justify=justify, vertical="bottom", no_wrap=True)
    for row in body:
        made.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 400, highlight=False)
    console.print(f"[bold]{escape(printable(title))}[/]\n")
    console.print(made)
    console.print()
