"""One folder in the place of another: at every moment the old one or the new one is there."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from prefdata.errors import InputError
from prefdata.storage.atomic import fsync_dir, is_abandoned, temporaries, temporary_name
from prefdata.storage.lineage import SPEC_FILE

WAIT = 2.0
"""Seconds for which a folder may be missing while it is being replaced, where names cannot be exchanged."""


def swap(new: Path, path: Path) -> Path | None:
    """Put the folder `new` in the place of `path`; returns where the folder that was there is now, None without one.

    One step where the system and the file system can exchange names: at every moment there is the old or the new.
    Elsewhere two renames, with nothing at `path` between them; what was there is beside it by then, of the kind `old`.
    """
    if not os.path.lexists(path):
        try:
            new.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process has just put one there
                raise
        else:
            fsync_dir(path.parent)
            return None
    old = temporary_name(path, "old")
    built = new.stat().st_ino
    new.rename(old)  # a kill right after the exchange leaves what was there under the name of something replaced
    try:
        exchanged = exchange(old, path)
    finally:
        if old.stat().st_ino == built:  # refused, not possible, or interrupted
            old.rename(new)
    if not exchanged:
        path.rename(old)
        try:
            new.rename(path)
        except BaseException:  # Ctrl-C as well
            if not os.path.lexists(path):
                old.rename(path)
            raise
    fsync_dir(path.parent)
    return old


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False, with nothing done, where the system or the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if hasattr(libc, "renameat2"):  # Linux: RENAME_EXCHANGE is 2, AT_FDCWD -100
        failed = libc.renameat2(-100, names[0], -100, names[1], ctypes.c_uint(2))
    elif sys.platform == "darwin":  # RENAME_SWAP is 2
        failed = libc.renamex_np(*names, ctypes.c_uint(2))
    else:
        return False
    if failed and ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(one), None, str(other))
    return not failed


def settle(path: Path) -> None:
    """Where a folder is just being replaced by two renames, wait; where a kill fell between them, put it back."""
    until = time.monotonic() + WAIT
    while not os.path.lexists(path) and (old := [p for p in temporaries(path, "old") if (p / SPEC_FILE).exists()]):
        if is_abandoned(old[0]) or time.monotonic() > until:
            with suppress(OSError):  # another process was faster, or may and we may not
                old[0].rename(path)
            return
        time.sleep(0.01)


def refuse_place(path: Path) -> None:
    """Refuse what cannot be, or should not be, replaced by a folder of the same name.

    Raises:
        InputError: a file, a symbolic link, a mount point, or a folder that holds the current one.
    """
    if path.is_symlink():
        raise InputError(f"{path} is a symbolic link. Name the folder that it points to, {path.readlink()}.")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file. Name a folder.")
    here, where = Path(os.path.realpath(".")), path.resolve()
    if path.name == ".." or where in (here, *here.parents):
        raise InputError(f"{path} is the folder that you are in, or holds it. Name a folder of its own.")
    if where.is_mount():
        raise InputError(f"{path} is a mount point, and cannot be replaced. Name a folder inside it.")
