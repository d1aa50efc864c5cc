"""Rows that wait until all of a file is read: in memory, and in a file without a name once they are many."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from prefdata.storage.atomic import storage_errors

HELD = 64 << 20
"""Bytes that wait in memory."""

ROWS = 4096
"""Rows of a batch."""


class Spool:
    """Batches of rows in the order in which they were put in; reading may begin when the last one was."""

    def __init__(self, schema: pa.Schema, folder: Path) -> None:
        """Rows of a schema; `folder` is on the disk that takes them if they are many."""
        self.schema, self.rows = schema, 0
        self._folder = folder
        self._batches: list[pa.RecordBatch] = []
        self._bytes = 0
        self._file: IO[bytes] | None = None
        self._writer: Any = None
        self._columns: list[list[Any]] = [[] for _ in schema]

    def add(self, *values: Any) -> None:
        """Put in one row, a value for each column."""
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)
        self.rows += 1
        if len(self._columns[0]) >= ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._columns[0]:
            return
        arrays = [pa.array(column, field.type) for column, field in zip(self._columns, self.schema, strict=True)]
        self._columns = [[] for _ in self.schema]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        self._batches.append(batch)
        self._bytes += batch.nbytes
        if self._bytes > HELD:
            self._spill()

    def _spill(self) -> None:
        with storage_errors(self._folder):
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=_existing(self._folder))  # noqa: SIM115 (closed by close)
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                self._writer = pa.ipc.new_stream(self._file, self.schema, options=options)
            for batch in self._batches:
                self._writer.write_batch(batch)
        self._batches, self._bytes = [], 0

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, some at a time."""
        self._flush()
        if self._file is not None:
            self._spill()
            self._file.flush()
            self._file.seek(0)
            with pa.ipc.open_stream(pa.PythonFile(self._file, "r")) as stream:
                yield from stream
            self._file.seek(0, 2)
        yield from self._batches

    def close(self) -> None:
        """Give the memory and the file back."""
        self._batches, self._columns = [], []
        if self._file is not None:
            self._file.close()


def _existing(folder: Path) -> Path:
    """Return the folder, or its nearest existing parent."""
    return next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
