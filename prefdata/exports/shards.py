"""Shards: rows in files of about equal size, in the containers that trainers read."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefdata.specs.export import FileFormat

COMPRESSION = "zstd"

_SAMPLED = 1000

Write = Callable[[pa.Table], Any]


@dataclass(frozen=True)
class Split:
    """One split as it was written: rows, bytes in memory, bytes of its files, and how many files."""

    rows: int
    bytes: int
    file_bytes: int
    files: int


def shard_name(folder: str, split: str, part: int, parts: int, form: FileFormat = "parquet") -> str:
    """Return the file of a shard, counted from 0: `data/train-00000-of-00004.parquet`."""
    return f"{folder.format(split=split)}/{split}-{part:05d}-of-{parts:05d}.{form}"


def rows_per_shard(sample: pa.Table, total: int, shard_bytes: int, form: FileFormat) -> int:
    """So many rows that `total` of them are the fewest shards of equal length that should stay below `shard_bytes`.

    The size is estimated by encoding some thousand rows of `sample`, evenly spaced.
    """
    some = sample.take(list(range(0, sample.num_rows, max(1, sample.num_rows // _SAMPLED))))
    encoded = io.BytesIO()
    with ExitStack() as stack:
        open_writer(encoded, some.schema, form, stack)(some)
        stack.close()
    shards: int = max(1, math.ceil(float(encoded.tell()) / max(1, some.num_rows) * total / shard_bytes))
    return max(1, math.ceil(total / shards))


@dataclass
class ShardWriter:
    """Writes a split's rows, as they come, to files of so many rows each."""

    path: Path
    folder: str
    split: str
    form: FileFormat
    schema: pa.Schema
    rows: int
    _written: list[Path] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)
    _write: Write | None = None
    _left: int = 0
    _rows: int = 0
    _bytes: int = 0

    def write(self, rows: pa.Table) -> None:
        """Take rows."""
        self._rows += rows.num_rows
        self._bytes += rows.nbytes
        while rows.num_rows:
            if self._left == 0:
                self._open()
            assert self._write is not None
            self._write(rows.slice(0, self._left))
            taken = min(self._left, rows.num_rows)
            self._left -= taken
            rows = rows.slice(taken)

    def finish(self) -> Split:
        """Close the last file, and give all of them their names."""
        self._stack.close()
        names = [
            self.path / shard_name(self.folder, self.split, number, len(self._written), self.form)
            for number in range(len(self._written))
        ]
        for file, name in zip(self._written, names, strict=True):
            file.rename(name)
        return Split(self._rows, self._bytes, sum(name.stat().st_size for name in names), len(names))

    def close(self) -> None:
        """Close the file that is open."""
        self._stack.close()

    def _open(self) -> None:
        self._stack.close()
        name = shard_name(self.folder, self.split, len(self._written), 0, self.form)
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        self._written.append(file)
        opened = self._stack.enter_context(file.open("wb"))
        self._stack.callback(_settle, opened)
        self._write = open_writer(opened, self.schema, self.form, self._stack)
        self._left = self.rows


def _settle(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def open_writer(file: Any, schema: pa.Schema, form: FileFormat, stack: ExitStack) -> Write:
    """Return a function that appends rows to an open file; closing `stack` ends the file's content."""
    if form == "parquet":
        parquet = stack.enter_context(pq.ParquetWriter(file, schema, compression=COMPRESSION))
        return lambda rows: parquet.write_table(rows)
    if form == "arrow":
        stream = stack.enter_context(pa.ipc.new_stream(file, schema))
        return lambda rows: stream.write_table(rows)
    if form == "jsonl.gz":
        file = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0))
    elif form == "jsonl.zst":
        file = stack.enter_context(pa.CompressedOutputStream(pa.PythonFile(_StaysOpen(file), mode="w"), "zstd"))
    return lambda rows: file.write(json_lines(rows))


class _StaysOpen:
    """A file that Arrow does not close: it has to be on the disk first."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self.write = file.write

    def flush(self) -> None:
        """Leave it to the file's owner."""

    def close(self) -> None:
        """Leave it to the file's owner."""


def json_lines(rows: pa.Table) -> bytes:
    """Rows as JSON, one a line: calls of tools as values, and no key of a message that the message does not have."""
    nested = [name for name in rows.column_names if pa.types.is_nested(rows.schema.field(name).type)]
    lines = []
    for row in rows.to_pylist():
        for name in nested:
            row[name] = _plain(row[name])
        lines.append(json.dumps(row, ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _plain(item) for key, item in value.items() if item is not None or key in ("reward",)}
        if isinstance(calls := kept.get("tool_calls"), str):
            kept["tool_calls"] = json.loads(calls)
        return kept
    return [_plain(item) for item in value] if isinstance(value, list) else value
