"""A file system for DuckDB that can only read, and only the files that it was opened for.

DuckDB's settings allow a folder for reading and for writing together. Through this file system a query that should not
have passed the check finds nothing that writes: there is no code for it.
"""

from __future__ import annotations

import glob
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from fsspec import AbstractFileSystem

SCHEME = "run://"


def file_url(path: object) -> str:
    """Return the name under which DuckDB reads the file at an absolute path."""
    return f"{SCHEME}{path}"


class ReadOnlyFiles(AbstractFileSystem):  # type: ignore[misc]
    """The files for whose absolute path `readable` is true, under `run://PATH`; writing raises PermissionError."""

    protocol = SCHEME.removesuffix("://")
    cachable = False

    def __init__(self, readable: Callable[[str], bool]) -> None:
        super().__init__()
        self._readable = readable

    def open(self, path: str, mode: str = "rb", **_: Any) -> _File:
        """Open a file for reading.

        Raises:
            PermissionError: for any other mode, or a file that is none of those.
        """
        if mode != "rb":
            raise PermissionError(f"{path} can only be read")
        return _File(self._local(path))

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Size in bytes and kind of a file."""
        local = self._local(path)
        found = os.stat(local)  # noqa: PTH116
        kind = "directory" if os.path.isdir(local) else "file"  # noqa: PTH112
        return {"name": path, "size": found.st_size, "type": kind}

    def modified(self, path: str) -> datetime:
        """When the file was last changed."""
        return datetime.fromtimestamp(os.stat(self._local(path)).st_mtime, UTC)  # noqa: PTH116

    def glob(self, path: str, **_: Any) -> list[str]:
        """Return the files that match a pattern, sorted; a file of exactly that name takes precedence."""
        pattern = os.path.normpath(path.removeprefix(SCHEME))
        found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH110, PTH207
        return [file_url(one) for one in found if self._readable(one)]

    def _local(self, path: str) -> str:
        local = os.path.normpath(path.removeprefix(SCHEME))
        if not self._readable(local):
            raise PermissionError(f"{local} is not a file that may be read")
        return local


class _File:
    """An open file that several threads read at once.

    DuckDB reads a range by `seek` and then `read`, and other threads may come in between: the place belongs to the
    thread that set it.
    """

    closed = False

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._next = 0
        self._thread = threading.local()

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        """Set where this thread reads next."""
        if whence != os.SEEK_SET:
            raise OSError("only absolute places are sought")
        self._thread.place = self._next = place
        return place

    def tell(self) -> int:
        """Where a thread that did not seek reads next."""
        return self._next

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes, or to the end; fewer only at the end of the file."""
        sought, self._thread.place = getattr(self._thread, "place", None), None
        place = self._next if sought is None else sought
        left = os.fstat(self._descriptor).st_size - place if size < 0 else size
        pieces: list[bytes] = []
        while left > 0 and (piece := os.pread(self._descriptor, left, place)):
            pieces.append(piece)
            place, left = place + len(piece), left - len(piece)
        self._next = place
        return b"".join(pieces) if len(pieces) != 1 else pieces[0]

    def close(self) -> None:
        """Close the file; DuckDB forgets some, and they close when they are collected."""
        if not self.closed:
            self.closed = True
            os.close(self._descriptor)

    __del__ = close
