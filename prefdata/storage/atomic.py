"""Writing to disk so that it stays written: temporary name, fsync, rename, fsync of the folder.

A temporary name says which process writes it: `_tmp-HOST-SPACE-PID-START-RANDOM-NAME`. SPACE is the id of the numbering
of processes that PID belongs to (the machine's boot and its PID namespace), START is when the process began: so two
containers with one host name, and two processes that had one number, have different names.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import secrets
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal, TextIO

from prefdata.errors import storage_error
from prefdata.ids import digest

Kind = Literal["tmp", "new", "old"]
"""A file or folder that is being written, a folder that is being built, a folder that another one replaced."""

WEEK = 7 * 86_400.0
"""Seconds after which leftovers of a process on another machine count as abandoned: its liveness cannot be checked."""

_OWNER = re.compile(r"[A-Za-z0-9.]*-(?P<space>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)")
_TEMPORARY = re.compile(rf"_(?P<kind>tmp|new|old)-(?P<owner>{_OWNER.pattern})-[0-9a-f]{{8}}-(?P<name>.*)", re.DOTALL)


def atomic_write(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file so that `path` is either the old one or the whole new one.

    Raises:
        StorageError: the disk is full, read-only, or not ours to write; nothing is left behind.
    """
    temporary = temporary_name(path)
    with storage_errors(path):
        try:
            write_file(temporary, write)
            temporary.rename(path)
            fsync_dir(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_output(path: Path, write: Callable[[TextIO], Any]) -> None:
    """Write text into a file that a user named: an older one stays until the new one is complete.

    A link stays a link; a pipe or a device (/dev/stdout) is written directly.

    Raises:
        StorageError: as `atomic_write`.
        OSError: there is no such folder, or the path is a folder.
    """

    def encoded(file: IO[bytes]) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8")
        write(text)
        text.flush()
        text.detach()

    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            encoded(file)
    else:
        atomic_write(path.resolve(), encoded)


def write_file(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def fsync_dir(path: Path) -> None:
    """Wait until the disk has a file's content, or a folder's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot wait for names, such as SMB
            raise
    finally:
        os.close(handle)


def checksum(path: Path) -> str:
    """Compute the checksum of a file: XXH3, 64 bits, as 16 hexadecimal digits; once a process, while it is unchanged.

    It finds damage (a flip is missed with a chance of 2^-64) and not intent, and costs less than reading the file.
    """
    import xxhash

    with path.open("rb", buffering=0) as file:
        seen = stamp(file)
        if seen in _CHECKSUMS:
            return _CHECKSUMS[seen]
        value = hashlib.file_digest(file, xxhash.xxh3_64).hexdigest()
    if time.time_ns() - max(seen[3:]) > _TICK:  # else it may change again without another time
        _CHECKSUMS[seen] = value
    return value


def stamp(file: IO[Any]) -> tuple[int, ...]:
    """Return what changes when an open file does: device, inode, size in bytes, and its times in nanoseconds."""
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


_CHECKSUMS: dict[tuple[int, ...], str] = {}
_TICK = 1_000_000_000
"""Nanoseconds within which two changes of a file may have one time, whatever the file system."""


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into a StorageError; other errors pass."""
    try:
        yield
    except OSError as error:
        message = storage_error(error, path)
        if message is None:
            raise
        raise message from error


def temporary_name(path: Path, kind: Kind = "tmp") -> Path:
    """Return a name beside `path` that no other process uses, on whatever machine."""
    return path.with_name(f"_{kind}-{this_process()}-{secrets.token_hex(4)}-{_short(path.name)}")


def temporaries(path: Path, *kinds: Kind) -> list[Path]:
    """List the temporary files and folders of these kinds that were made for exactly `path`."""
    found = ((name, _TEMPORARY.fullmatch(name)) for name in names_in(path.parent))
    return [path.with_name(n) for n, m in found if m and m["kind"] in kinds and m["name"] == _short(path.name)]


def names_in(path: Path) -> list[str]:
    """List the names in a folder, sorted; none where there is no folder."""
    try:
        return sorted(entry.name for entry in path.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_temporary(name: str) -> bool:
    """Return whether a name is a temporary one."""
    return _TEMPORARY.fullmatch(name) is not None


def is_abandoned(path: Path) -> bool:
    """Return whether a temporary file or folder is left over: its process is dead.

    Whether a process of another machine lives cannot be known: what it wrote is left alone for a week.
    """
    match = _TEMPORARY.fullmatch(path.name)
    alive = owner_is_alive(match["owner"]) if match else True
    return _age(path) > WEEK if alive is None else not alive


def replaced_name(name: str) -> str | None:
    """Return the name of what was replaced, from its temporary name; None for other names."""
    match = _TEMPORARY.fullmatch(name)
    return match["name"] if match and match["kind"] == "old" else None


def this_process() -> str:
    """Return the name of this process among those of all machines: HOST-SPACE-PID-START."""
    return f"{_host()}-{os.getpid()}-{_start(os.getpid()) or 0}"


def owner_is_alive(owner: str) -> bool | None:
    """Return whether the process of that name runs; None where it belongs to another machine or container."""
    match = _OWNER.fullmatch(owner)
    if match is None or match["space"] != _host().rpartition("-")[2]:
        return None
    try:
        os.kill(int(match["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    start = _start(int(match["pid"]))
    return start is None or int(match["start"]) in (0, start)


def _short(name: str) -> str:
    return name if len(name) <= 110 else digest(name)  # file systems take 255 characters


@cache
def _host() -> str:
    """Return the machine's name and the id of its process namespace: each container numbers its own processes."""
    name = re.sub(r"[^A-Za-z0-9]+", ".", socket.gethostname())[:32]
    try:
        numbering = [Path("/proc/sys/kernel/random/boot_id").read_text(), Path("/proc/self/ns/pid").stat().st_ino]
    except OSError:  # a Linux that hides it may be one of several containers: then nobody else's numbers are known
        numbering = [name, secrets.token_hex() if sys.platform == "linux" else uuid.getnode()]
    return f"{name}-{digest(numbering)[:8]}"


def _start(pid: int) -> int | None:
    """When a process began, in ticks since boot; -1 where it ended and waits for its parent, None where unknown."""
    try:
        if Path("/proc/self").readlink().name != str(os.getpid()):  # of another namespace: its numbers are not ours
            return None
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return -1 if state in "ZX" else int(numbers[18])


def _age(path: Path) -> float:
    """Seconds since anything in a file or folder was written."""
    with suppress(OSError):
        return time.time() - max(each.stat().st_mtime for each in (path, *path.rglob("*")))
    return 0.0
