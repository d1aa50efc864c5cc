"""Files in: every row of one file with its place, whatever the container.

A reader knows containers (JSONL, CSV, Parquet, …) and nothing of prompts. A row that the container itself has broken
(a line that is not JSON, a record with a cell too many) is handed on with its `problem`, so that all of them can be
counted and told at once; a file that cannot be read at all raises InputError.

What is ordinary here: a UTF-8 byte order mark (removed), CRLF (between records removed, inside texts kept), raw control
characters and NUL inside strings (kept), blank lines (skipped). Bytes that are not UTF-8 make the row a bad one.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefdata.errors import InputError

JSON_KEYS = ("data", "rows", "records", "examples", "instances", "items", "prompts", "questions")
"""Keys under which a JSON file that is one object may hold its list of rows."""

BATCH = 1024
"""Rows of columnar files that become Python objects at a time."""

_CELL_LIMIT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row of an input file.

    `row` counts from 1; in JSONL and plain text it is the number of the line, elsewhere that of the record (a CSV's
    header is not counted). Where `problem` is set the row could not be read, `values` is empty, and `reason` is the
    problem in one word, to be counted.
    """

    file: str
    row: int
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    reason: str = "broken"


def _open(path: Path) -> IO[bytes]:
    """The file's bytes, decompressed, after its byte order mark.

    Raises:
        InputError: the file is UTF-16.
    """
    file: Any = gzip.GzipFile(path) if path.name.endswith(".gz") else path.open("rb")
    head = file.read(len(codecs.BOM_UTF8))
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        file.close()
        raise InputError(f"{path}: the file is UTF-16. Save it as UTF-8.")
    file.seek(len(head) if head == codecs.BOM_UTF8 else 0)
    return file  # type: ignore[no-any-return]


def _jsonl(path: Path) -> Iterator[RawRow]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _json_line(str(path), number, line)


def _json_line(file: str, number: int, line: bytes) -> RawRow:
    try:
        # strict=False: raw tabs, NULs and other control characters inside strings are text like any other.
        return _json_row(file, number, json.loads(line.rstrip(b"\r\n").decode(), strict=False))
    except UnicodeDecodeError as error:
        return RawRow(file, number, problem=f"not UTF-8 at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return RawRow(file, number, problem=f"broken JSON at column {error.colno}: {error.msg}")
    except (ValueError, RecursionError) as error:
        return RawRow(file, number, problem=f"unreadable JSON: {error}")


def _json_row(file: str, number: int, value: Any) -> RawRow:
    if isinstance(value, dict):
        return RawRow(file, number, value)
    return RawRow(file, number, problem=f"not an object but {type(value).__name__}")


def _json(path: Path) -> Iterator[RawRow]:
    with _open(path) as file:
        text = file.read().decode()
    if not text.strip():
        return
    try:
        whole = json.loads(text, strict=False)
    except json.JSONDecodeError as error:
        # One object a line under the name .json is common, and cannot be anything else.
        if error.msg == "Extra data" and "\n" not in text[: error.pos].strip():
            yield from _jsonl(path)
            return
        raise InputError(f"{path}:{error.lineno}: broken JSON at column {error.colno}: {error.msg}.") from None
    except RecursionError:
        raise InputError(f"{path}: the JSON is nested too deeply to be read.") from None
    for number, value in enumerate(_rows_within(path, whole), 1):
        yield _json_row(str(path), number, value)


def _rows_within(path: Path, whole: Any) -> list[Any]:
    if isinstance(whole, list):
        return whole
    lists = [key for key in JSON_KEYS if isinstance(whole, dict) and isinstance(whole.get(key), list)]
    if len(lists) == 1:
        rows: list[Any] = whole[lists[0]]
        return rows
    raise InputError(
        f"{path}: a JSON file should be a list of objects, or an object with one list of them under one of the keys "
        f"{', '.join(JSON_KEYS)}. Save the rows as such a list, or as JSONL."
    )


def _csv(path: Path, delimiter: str = ",") -> Iterator[RawRow]:
    csv.field_size_limit(_CELL_LIMIT)  # the library's own limit of 128 KiB is shorter than a long document
    # Bytes that are not UTF-8 come through as lone surrogates, to be told with their row.
    with io.TextIOWrapper(_open(path), encoding="utf-8", errors="surrogateescape", newline="") as text:
        records = _records(csv.reader(text, delimiter=delimiter, strict=True))
        header = next(records, None)
        if header is None:
            return
        if isinstance(header, str) or len(set(header)) < len(header) or "" in header:
            raise InputError(f"{path}: the first line should name the columns, each once; it reads {header!r}.")
        for number, cells in enumerate(records, 1):
            yield _csv_row(str(path), number, header, cells)


def _records(reader: Any) -> Iterator[list[str] | str]:
    """The records of a CSV file; what is wrong with one, where it is broken."""
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"broken CSV at line {reader.line_num}: {error}"
        else:
            if cells:
                yield cells


def _csv_row(file: str, number: int, header: list[str], cells: list[str] | str) -> RawRow:
    if isinstance(cells, str):
        return RawRow(file, number, problem=cells)
    if len(cells) != len(header):
        return RawRow(file, number, problem=f"{len(cells)} cells, and the header has {len(header)}")
    if any("\udc80" <= char <= "\udcff" for cell in cells if not cell.isascii() for char in cell):
        return RawRow(file, number, problem="not UTF-8")
    return RawRow(file, number, {name: cell or None for name, cell in zip(header, cells, strict=True)})


def _tsv(path: Path) -> Iterator[RawRow]:
    return _csv(path, "\t")


def _lines(path: Path) -> Iterator[RawRow]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield RawRow(str(path), number, {"text": line.decode().rstrip("\r\n")})
            except UnicodeDecodeError as error:
                yield RawRow(str(path), number, problem=f"not UTF-8 at byte {error.start + 1}")


def _parquet(path: Path) -> Iterator[RawRow]:
    with pq.ParquetFile(path) as file:
        yield from numbered(str(path), (batch.to_pylist() for batch in file.iter_batches(BATCH)))


def arrow_rows(path: Path) -> Iterator[RawRow]:
    """The rows of an Arrow stream, as `datasets` saves them."""
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        batches = (batch.slice(at, BATCH) for batch in stream for at in range(0, batch.num_rows, BATCH))
        yield from numbered(str(path), (batch.to_pylist() for batch in batches))


def numbered(file: str, batches: Iterable[list[dict[str, Any]]]) -> Iterator[RawRow]:
    """Batches of rows as raw rows of `file`, counted from 1."""
    rows = (row for batch in batches for row in batch)
    return (RawRow(file, number, row) for number, row in enumerate(rows, 1))


READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".txt": _lines,
    ".md": _lines,
}
"""How each extension is read: JSON lines, JSON, cells with a header line, Parquet, one prompt a line."""


def reader(path: Path) -> Callable[[Path], Iterator[RawRow]]:
    """How a file is read, by its extension.

    Raises:
        InputError: the extension is not known.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in READERS:
        known = ", ".join(READERS)
        raise InputError(f"{path}: the extension {suffix!r} is not known. Known, also with .gz: {known}.")
    return READERS[suffix]
