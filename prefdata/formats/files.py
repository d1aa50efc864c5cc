"""Containers: every row of a file with its row number, for all file formats.

Readers parse JSON lines, JSON, CSV, Parquet, Arrow and text, independent of layouts. A row that is broken in the
container (a line that is not JSON, a record with a cell too many) is yielded with its `problem`, so that all of them
can be counted and reported at once; a file that cannot be read at all raises InputError.

Supported: gzip and zstd, recognised by their first bytes; a UTF-8 byte order mark (removed); CRLF (removed between
records, kept inside texts); raw control characters and NUL inside strings (kept); blank lines (skipped); a JSON list
in a file named .jsonl, and lines in one named .json. Bytes that are not UTF-8 make the row a bad one.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import from_json

from prefdata.errors import InputError
from prefdata.formats.json_lists import JsonError, elements, rows_of_object

BATCH = 1024
"""Rows of columnar files that are converted to Python objects at a time."""

COMPRESSED = (".gz", ".zst")
_GZIP, _ZSTD, _ARROW = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"ARROW1"
_ROWS_LOOKED_AT = 20
_CELL_LIMIT = 2**31 - 1

INDEX_COLUMNS = ("", "Unnamed: 0", "__index_level_0__")
"""The column of row numbers that pandas writes by default; it is not read."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row of an input file.

    `row` counts from 1; in JSONL and plain text it is the number of the line, elsewhere that of the record (a CSV's
    header is not counted). If `problem` is set, the row could not be read, `values` is empty, and `reason` is the
    problem in one word, for the counts. `replaced`: lone surrogates (half an emoji, which UTF-8 and every tokenizer
    refuse) were replaced by U+FFFD.
    """

    file: str
    row: int
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    reason: str = "broken"
    replaced: bool = False


def open_file(path: Path) -> IO[bytes]:
    """Open a file as bytes, decompressed, after its byte order mark.

    Raises:
        InputError: the file is UTF-16.
    """
    file = _decompressed(path)
    start = file.peek(3)[:3]
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        file.close()
        raise InputError(f"{path}: the file is UTF-16. Save it as UTF-8.")
    file.read(3 if start == codecs.BOM_UTF8 else 0)
    return file  # type: ignore[no-any-return]


def _decompressed(path: Path) -> Any:
    compression = _compression(path)
    if compression == "gzip":
        return gzip.GzipFile(path)
    if compression == "zstd":
        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"), 1 << 20)
    return path.open("rb")


def _compression(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(4)
    if head[:2] == _GZIP or path.suffix == ".gz":
        return "gzip"
    return "zstd" if head == _ZSTD or path.suffix == ".zst" else None


def _json(path: Path) -> Iterator[RawRow]:
    """Read JSON rows in any form: one object per line, a list, or an object that contains one."""
    with open_file(path) as file:
        kind = _json_kind(file, path)
    yield from {"lines": _json_lines, "list": _json_list, "object": _json_object}[kind](path)


def _json_kind(file: IO[bytes], path: Path) -> str:
    """Decide the form of a JSON file; if its name says lines, one valid line among the first decides."""
    lines = (line for line in file if line.strip())
    first = next(lines, b"")
    if first.lstrip()[:1] == b"[":
        return "list"
    by_name = _suffix(path) in (".jsonl", ".ndjson")
    if _is_object(first):
        return "lines" if by_name or next(lines, None) else "object"
    some = (line for line, _ in zip(lines, range(_ROWS_LOOKED_AT), strict=False))
    cut_off = first.lstrip()[:1] == b"{" and not (by_name and any(_is_object(line) for line in some))
    return "object" if cut_off else "lines"


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line, strict=False), dict)
    except (ValueError, RecursionError):
        return False


def _json_lines(path: Path) -> Iterator[RawRow]:
    with open_file(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _json_line(str(path), number, line)


def _json_line(file: str, number: int, line: bytes) -> RawRow:
    try:
        return json_row(file, number, from_json(line), is_utf8=True)
    except ValueError:  # not JSON, or a form that only the slower parser accepts
        pass
    try:
        # strict=False: raw tabs, NULs and other control characters inside strings are ordinary text.
        return json_row(file, number, json.loads(line.rstrip(b"\r\n").decode(), strict=False))
    except UnicodeDecodeError as error:
        return RawRow(file, number, problem=f"not UTF-8 at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return RawRow(file, number, problem=f"broken JSON at column {error.colno}: {error.msg}")
    except (ValueError, RecursionError) as error:
        return RawRow(file, number, problem=f"unreadable JSON: {error}")


def json_row(file: str, number: int, value: Any, *, is_utf8: bool = False) -> RawRow:
    """Make a row from a parsed JSON value, without lone surrogates."""
    if isinstance(value, dict):
        replaced = value if is_utf8 else _replace_surrogates(value)
        return RawRow(file, number, replaced, replaced=replaced is not value)
    return RawRow(file, number, problem=f"not an object but {type(value).__name__}")


def _json_list(path: Path) -> Iterator[RawRow]:
    with open_file(path) as file, _json_errors(path):
        for number, value in enumerate(elements(io.TextIOWrapper(file, encoding="utf-8", newline="")), 1):
            yield json_row(str(path), number, value)


def _json_object(path: Path) -> Iterator[RawRow]:
    with open_file(path) as file, _json_errors(path):
        rows = rows_of_object(file.read().decode())
        yield from (json_row(str(path), number, value) for number, value in enumerate(rows, 1))


def _replace_surrogates(value: Any) -> Any:
    """Replace every lone surrogate in `value` by U+FFFD; a high and a low one in sequence become their character."""
    if isinstance(value, str):
        return value if _is_utf8(value) else value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        items = [_replace_surrogates(item) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    if isinstance(value, dict):
        pairs = [(_replace_surrogates(key), _replace_surrogates(item)) for key, item in value.items()]
        same = all(new[0] is old[0] and new[1] is old[1] for new, old in zip(pairs, value.items(), strict=True))
        return value if same else dict(pairs)
    return value


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _json_errors(path: Path) -> Iterator[None]:
    """Convert errors of a whole JSON file to input errors with the file's name."""
    try:
        yield
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: broken JSON at column {error.colno}: {error.msg}.") from None
    except RecursionError:
        raise InputError(f"{path}: the JSON is nested too deeply to be read.") from None
    except JsonError as error:
        raise InputError(f"{path}{error}") from None


def _csv(path: Path, delimiter: str = ",") -> Iterator[RawRow]:
    csv.field_size_limit(_CELL_LIMIT)  # the library's own limit of 128 KiB is shorter than a long document
    # Bytes that are not UTF-8 become lone surrogates, which are reported with their row.
    with io.TextIOWrapper(open_file(path), encoding="utf-8", errors="surrogateescape", newline="") as text:
        records = _records(csv.reader(text, delimiter=delimiter, strict=True))
        header = next(records, None)
        if header is None:
            return
        if isinstance(header, list) and len(header) == 1 and delimiter == "," and ";" in header[0]:
            yield from _csv(path, ";")  # the separator of spreadsheets in locales with decimal commas
            return
        if isinstance(header, str) or len(set(header)) < len(header) or "" in header[1:]:
            raise InputError(f"{path}: the first line should name the columns, each once, but it is {header!r}.")
        for number, cells in enumerate(records, 1):
            yield _csv_row(str(path), number, header, cells)


def _records(reader: Any) -> Iterator[list[str] | str]:
    """Iterate over the records of a CSV file; a broken one yields its problem."""
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
        return RawRow(file, number, problem=f"{len(cells)} cells, but the header has {len(header)}")
    if any("\udc80" <= char <= "\udcff" for cell in cells if not cell.isascii() for char in cell):
        return RawRow(file, number, problem="not UTF-8")
    return RawRow(file, number, {name: cell or None for name, cell in zip(header, cells, strict=True)})


def _tsv(path: Path) -> Iterator[RawRow]:
    return _csv(path, "\t")


def _lines(path: Path) -> Iterator[RawRow]:
    with open_file(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield RawRow(str(path), number, {"text": line.decode().rstrip("\r\n")})
            except UnicodeDecodeError as error:
                yield RawRow(str(path), number, problem=f"not UTF-8 at byte {error.start + 1}")


def _parquet(path: Path) -> Iterator[RawRow]:
    with pq.ParquetFile(_whole(path) if _compression(path) else path) as file:
        yield from numbered(str(path), file.iter_batches(BATCH))


def _whole(path: Path) -> pa.BufferReader:
    with open_file(path) as file:
        return pa.BufferReader(file.read())


def arrow_rows(path: Path) -> Iterator[RawRow]:
    """Read an Arrow stream, as `datasets` saves them, or an Arrow (Feather) file."""
    with _whole(path) if _compression(path) else pa.memory_map(str(path)) as file:
        yield from numbered(str(path), _arrow_batches(file))


def _arrow_batches(file: Any) -> Iterator[pa.RecordBatch]:
    is_file = file.read(len(_ARROW)) == _ARROW
    file.seek(0)
    if is_file:
        opened = pa.ipc.open_file(file)
        batches: Iterable[pa.RecordBatch] = (opened.get_batch(i) for i in range(opened.num_record_batches))
    else:
        batches = pa.ipc.open_stream(file)
    for batch in batches:
        yield from (batch.slice(start, BATCH) for start in range(0, batch.num_rows, BATCH))


def _values(batch: pa.RecordBatch) -> list[dict[str, Any] | None]:
    """Convert rows to Python values; None for a row with a value that Python cannot represent."""
    try:
        return batch.to_pylist()  # type: ignore[no-any-return]
    except (OverflowError, ValueError):
        one_by_one = (batch.slice(number, 1) for number in range(batch.num_rows))
        return [None] if batch.num_rows == 1 else [row for one in one_by_one for row in _values(one)]


def numbered(file: str, batches: Iterable[pa.RecordBatch]) -> Iterator[RawRow]:
    """Convert batches to raw rows of `file`, counted from 1.

    An Arrow struct has the keys of all rows; keys that are null in a row are padding and are left out.
    """
    number = 0
    for batch in batches:
        nested = [field.name for field in batch.schema if pa.types.is_nested(field.type)]
        for row in _values(batch):
            number += 1
            if row is None:
                yield RawRow(
                    file, number, problem="it holds a date that cannot be read (before the year 1, or after 9999)"
                )
                continue
            for name in nested:
                row[name] = _without_padding(row[name])
            yield RawRow(file, number, row)


def _without_padding(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_padding(item) for key, item in value.items() if item is not None}
    return [_without_padding(item) for item in value] if isinstance(value, list) else value


READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": _json,
    ".ndjson": _json,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".arrow": arrow_rows,
    ".feather": arrow_rows,
    ".txt": _lines,
    ".md": _lines,
}
"""Reader of each extension: JSON lines, JSON, cells with a header line, Parquet, Arrow, one prompt per line."""


def _suffix(path: Path) -> str:
    name = path.name
    for extension in COMPRESSED:
        name = name.removesuffix(extension)
    return Path(name).suffix.lower()


def refuse_endless(path: Path) -> None:
    """Refuse a pipe or a device: data are read several times, and a device may never end.

    Raises:
        InputError: it is one.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path} is a pipe or a device. Give a file, or pipe the rows to standard input (-).")


def reader(path: Path) -> Callable[[Path], Iterator[RawRow]]:
    """Choose the reader of a file by its extension.

    Raises:
        InputError: the extension is unknown, or it is a pipe or a device.
    """
    refuse_endless(path)
    suffix = _suffix(path)
    if suffix not in READERS:
        known = ", ".join(READERS)
        raise InputError(f"{path}: the extension {suffix!r} is not known. Known, also with .gz or .zst: {known}.")
    return READERS[suffix]
