"""The output of commands: progress on stderr during the work, one screen of the Report on stdout at the end."""

from __future__ import annotations

import io
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from datetime import time as time_of_day
from decimal import Decimal
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from prefdata.errors import PrefdataError, UsageError
from prefdata.printable import printable, printable_json, printable_lines
from prefdata.sql.interrupt import let_interrupt_write

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

    from prefdata.storage.run import Outcome

_DID = {
    "made": "made",
    "continued": "added what was missing to",
    "remade": "made again, because its input or its files changed:",
    "replaced": "replaced",
    "kept": "nothing to do: it exists already,",
}


def outcome(done: Outcome | Sequence[Outcome], form: str = "text") -> None:
    """Print the report of a step: as text, or as JSON (a list where there are several).

    Raises:
        PrefdataError: it has no usable row; the report is printed first.
    """
    several = done if isinstance(done, Sequence) else [done]
    if form == "json":
        shown = [{"did": one.did, "path": str(one.path), **one.report.model_dump()} for one in several]
        line(as_json(shown if len(shown) > 1 else shown[0], indent=2))
    else:
        for one in several:
            _outcome(one)
    if failed := [one for one in several if one.report.failure]:
        raise PrefdataError(f"{failed[0].path}: {failed[0].report.failure}")


def line(text: str = "") -> None:
    """Print text; control characters, which a model or a server may have written, are escaped."""
    print(printable_lines(text), flush=True)


def _outcome(done: Outcome) -> None:
    report = done.report
    line(f"{report.step}: {_DID[done.did]} {done.path}")
    lines = [(report.unit, f"{report.rows_in:,} in, {report.rows_out:,} out")]
    lines += [(f"dropped: {_words(reason)}", f"{count:,}") for reason, count in report.dropped.items()]
    lines += [(_words(name), number(value)) for name, value in report.figures.items() if value is not None]
    if report.rows_in and not report.rows_out:
        lines.append(("note", f"Nothing is left: none of {report.rows_in:,} {report.unit} was kept."))
    if report.seconds:
        lines.append(("time", f"{report.seconds:,.1f} s ({report.per_second:,.0f} {report.unit}/s)"))
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        line(f"  {name:<{width}}  {value}")


def _words(name: str) -> str:
    return name.replace("left_out_", "left out: ").replace("_", " ")


def number(value: Any) -> str:
    """Format a figure for a reader."""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, Decimal):
        return f"{value:,f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def facts(values: dict[str, Any]) -> None:
    """Print facts by name as JSON, one a line: a list of numbers (token ids) too."""
    lines = (f"  {as_json(name)}: {as_json(value)}" for name, value in values.items())
    line("{\n" + ",\n".join(lines) + "\n}")


def table(rows: pa.Table, form: str | None, *, safe: bool = False) -> None:
    """Print rows in the given format, by default a table on a terminal and CSV in a pipe.

    With `safe`, CSV holds no formula that a spreadsheet would run.
    """
    pieces(iter([rows]), form, safe=safe)


def pieces(tables: Iterator[pa.Table], form: str | None, *, safe: bool = False) -> None:
    """Print rows that come in several tables with the same columns, each as it comes; as `table` does.

    Raises:
        UsageError: `safe` is for CSV alone.
    """
    import polars as pl

    let_interrupt_write()
    form = form or ("table" if sys.stdout.isatty() else "csv")
    if safe and form != "csv":
        raise UsageError(f"--safe is for --format csv, and this is {form}.")
    if form == "parquet":
        _parquet(tables)
        return
    printers: dict[str, Callable[[Iterator[pl.DataFrame]], None]] = {
        "json": _json_array,
        "jsonl": _json_lines,
        "csv": partial(_csv, safe=safe),
    }
    printer = printers.get(form) or partial(_grid, form=form)
    printer(frame for rows in tables if isinstance(frame := pl.from_arrow(_held(rows)), pl.DataFrame))


def _held(rows: pa.Table) -> pa.Table:
    """Rows as Python values: bytes, and dates after the year 9999 or before 1, become DuckDB's text of them."""
    import duckdb

    for place, field in enumerate(rows.schema):
        kind = str(field.type)
        if "binary" in kind or (("date" in kind or "timestamp" in kind) and not _has_values(rows[place])):
            column = duckdb.from_arrow(rows.select([place]).rename_columns(["x"]))
            text = column.project("cast(x as varchar) as x").to_arrow_table()["x"]
            rows = rows.set_column(place, field.name, text)
    return rows


def _has_values(column: pa.ChunkedArray) -> bool:
    try:
        column.to_pylist()
    except (OverflowError, ValueError):
        return False
    return True


def _parquet(tables: Iterator[pa.Table]) -> None:
    import pyarrow.parquet as pq

    first = next(tables)
    with pq.ParquetWriter(_Output(), first.schema) as writer:
        for rows in chain([first], tables):
            writer.write_table(rows)


class _Output(io.RawIOBase):
    """Standard output for a writer that also writes when it is closed: after a failed write it ignores the rest."""

    failed = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if not self.failed:
            self.failed = True
            sys.stdout.buffer.write(data)
            self.failed = False
        return len(data)


def _json_array(frames: Iterator[pl.DataFrame]) -> None:
    rows = (row for frame in frames for row in frame.iter_rows(named=True))
    before = "["
    for row in rows:
        print(before + "\n  " + as_json(row, indent=2).replace("\n", "\n  "), end="")
        before = ","
    print("[]" if before == "[" else "\n]")


def _json_lines(frames: Iterator[pl.DataFrame]) -> None:
    for frame in frames:
        for row in frame.iter_rows(named=True):
            print(as_json(row))
        sys.stdout.flush()


def _csv(frames: Iterator[pl.DataFrame], *, safe: bool) -> None:
    import polars as pl

    for number, frame in enumerate(frames):
        nested = [name for name, kind in frame.schema.items() if kind.to_python() in (list, dict)]
        as_text = [pl.Series(name, [as_json(v) for v in frame[name].to_list()], pl.String) for name in nested]
        flat = frame.with_columns(as_text)
        text = (_without_formulas(flat) if safe else flat).write_csv(include_header=number == 0)
        # Unchanged in a pipe or a file; escaped on a terminal.
        print(printable_lines(text) if sys.stdout.isatty() else text, end="", flush=True)


FORMULAS = r"^([=+\-@\t\r\n])"
"""How a cell begins that a spreadsheet takes for a formula (OWASP, CSV injection)."""


def _without_formulas(frame: pl.DataFrame) -> pl.DataFrame:
    """Put an apostrophe before the texts, and the names of columns, that a spreadsheet would run."""
    import polars as pl

    safe = frame.with_columns(pl.col(pl.String).str.replace(FORMULAS, "'$1"))
    return safe.rename({name: f"'{name}" for name in frame.columns if re.match(FORMULAS, name)})


def as_json(value: Any, indent: int | None = None) -> str:
    """Write standard JSON: NaN and infinity are null; safe on a terminal."""
    import json

    def dumped(value: Any) -> str:
        return printable_json(json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False, default=_plain))

    try:
        return dumped(value)
    except (ValueError, TypeError):  # replaced only where there are some: it is slow
        return dumped(_strict(value))


def _plain(value: Any) -> Any:
    """Replace a value that JSON cannot represent by one that it can."""
    if isinstance(value, Decimal):
        return int(value) if value == int(value) else float(value)
    return str(value)


def _strict(value: Any) -> Any:
    """`value` with null for NaN and infinity, and text for the keys of maps."""
    if isinstance(value, dict):
        return {str(key): _strict(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [_strict(inside) for inside in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _grid(frames: Iterator[pl.DataFrame], form: str) -> None:
    widths: list[int] = []  # where later rows are wider, they widen what follows
    for number, frame in enumerate(frames):
        head = [_cell(name, form) for name in frame.columns]
        body = [[_cell(value, form) for value in row] for row in frame.iter_rows()]
        widths = widths or [len(name) for name in head]
        widths = [min(max([width, *(len(row[i]) for row in body)]), WIDEST) for i, width in enumerate(widths)]
        right = [kind.is_numeric() for kind in frame.dtypes]
        rows = [head, _rule(widths, right, form), *body] if number == 0 else body
        for cells in rows:
            print(_line(cells, widths, right, form))
        sys.stdout.flush()


WIDEST = 1000
"""Characters to which the cells of a column are filled up; wider ones extend beyond it."""


def _line(cells: list[str], widths: list[int], right: list[bool], form: str) -> str:
    padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
    return f"| {' | '.join(padded)} |" if form == "markdown" else "  ".join(padded).rstrip()


def _rule(widths: list[int], right: list[bool], form: str) -> list[str]:
    """Return the line between the column names and the rows."""
    if form != "markdown":
        return ["-" * width for width in widths]
    return ["-" * (width - 1) + (":" if r else "-") for width, r in zip(widths, right, strict=True)]


_WITHOUT_QUOTES = (str, date, time_of_day)


def _cell(value: Any, form: str) -> str:
    if value is None:
        return ""
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return number(value)
    text = printable(str(value) if isinstance(value, _WITHOUT_QUOTES) else as_json(value))
    return text.translate(_MARKDOWN) if form == "markdown" else text


_MARKDOWN = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", **{mark: f"\\{mark}" for mark in "\\|`*[]"}, "!": "\\!"}
)
"""What Markdown would read as HTML, a column's end, code, emphasis, a link or an image."""
