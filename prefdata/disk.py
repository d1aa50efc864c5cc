"""Writing to disk so that it stays written: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from prefdata.errors import storage_error


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file so that `path` is either the old one or the whole new one.

    Raises:
        StorageError: the disk is full, read-only, or not ours to write; nothing is left behind.
    """
    temporary = path.with_name(f"_tmp-{os.getpid()}-{path.name}")
    with refused(path):
        try:
            write_file(temporary, write)
            temporary.rename(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_file(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the disk has the folder's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def refused(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into a StorageError; other errors pass."""
    try:
        yield
    except OSError as error:
        said = storage_error(error, path)
        if said is None:
            raise
        raise said from error


def written_by_the_living(name: str) -> bool:
    """Whether another process that still runs wrote the temporary file or folder of this name."""
    found = re.match(r"_(?:tmp|new|old)-(\d+)", name)
    if not found or int(found[1]) == os.getpid():
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
