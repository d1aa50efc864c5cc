"""DuckDB connections for SQL from users: they read the files that they were opened for, and write nothing.

The query has been checked before (`sql_check`). That check is not trusted alone; the connection

- reads files through `ReadOnlyFiles`, which cannot write, and no others: DuckDB's own access to the disk is confined to
  a temporary folder, where it sorts what does not fit into memory, and which is removed at the end;
- loads no extension, keeps no secret, sees no variable of the program, and no setting can be changed;
- stops on Ctrl-C, whatever it is doing.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import duckdb
import pyarrow as pa

from prefdata.errors import UsageError
from prefdata.sql.files import SCHEME, ReadOnlyFiles
from prefdata.sql.interrupt import run_interruptibly

T = TypeVar("T")

MEMORY_LIMIT = "50%"
"""How much of the machine's memory a query may use unless given."""

_LIMIT = re.compile(r"\d+(\.\d+)?\s*([KMGT]i?B|%)", re.IGNORECASE)
_UNITS = {unit: 1 << (10 * power) for power, unit in enumerate(("bytes", "KiB", "MiB", "GiB", "TiB"))}

_CONFIG: dict[str, Any] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "allow_persistent_secrets": False,
    "python_enable_replacements": False,
    "enable_external_file_cache": False,
}


class Session:
    """A DuckDB connection that only reads, in a context: `with Session(readable) as session`."""

    def __init__(
        self, readable: Callable[[str], bool], memory_limit: str = MEMORY_LIMIT, spill: Path | None = None
    ) -> None:
        """Open a connection that reads the files for whose absolute path `readable` is true.

        `spill` is a folder of the caller's, made when it is needed, in place of a private one for what does not fit
        into memory.

        Raises:
            UsageError: `memory_limit` is neither a size (`4GB`) nor a share of the machine's memory (`50%`).
        """
        if not _LIMIT.fullmatch(memory_limit.strip()):
            raise UsageError(f"the memory limit {memory_limit!r} is no size: use for example 4GB, 500MB or 50%.")
        self._folder = tempfile.TemporaryDirectory(prefix="prefdata-sql-", ignore_cleanup_errors=True)
        spill_to = str(spill or f"{self._folder.name}/spill")
        self.connection = duckdb.connect(":memory:", config={**_CONFIG, "temp_directory": spill_to})
        self.connection.register_filesystem(ReadOnlyFiles(readable))
        self.connection.execute(f"set memory_limit = '{memory_limit.strip()}'")
        self.connection.execute(f"set allowed_directories = ['{SCHEME}/']")
        self.connection.execute("set enable_external_access = false")
        self.connection.execute("set lock_configuration = true")
        self._busy = False
        """Whether a query is running; after Ctrl-C, whether one could not be stopped."""

    def run(self, work: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        """Return `work(connection)`; Ctrl-C interrupts it and raises KeyboardInterrupt."""

        def work_then_rest() -> T:
            try:
                return work(self.connection)
            finally:
                self._busy = False

        self._busy = True
        return run_interruptibly(work_then_rest, self.connection.interrupt)

    def batches(self, query: Callable[[duckdb.DuckDBPyConnection], pa.RecordBatchReader]) -> Iterator[pa.RecordBatch]:
        """Yield the batches of `query(connection)` as they are computed; Ctrl-C interrupts that."""
        reader = self.run(query)
        while (batch := self.run(lambda _: next(reader, None))) is not None:
            yield batch

    def memory_limit(self) -> int:
        """Return the limit in bytes."""
        ((shown,),) = self.connection.execute("select current_setting('memory_limit')").fetchall()
        number, unit = str(shown).split()
        return int(float(number) * _UNITS[unit])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._busy:  # closing would wait for a query that Ctrl-C could not stop
            self.connection.close()
        self._folder.cleanup()
