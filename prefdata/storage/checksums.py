"""What a folder holds, file by file: what prefdata wrote and `_SUCCESS` lists, what was changed, what is foreign."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from prefdata.storage.atomic import checksum, fsync_dir, is_temporary
from prefdata.storage.lineage import SPEC_FILE, SUCCESS_FILE, FileRecord

Files = Mapping[str, FileRecord]
"""Files by their names relative to the folder, with slashes."""

IsOwn = Callable[[str], bool]
"""Whether a name at the top of a folder is ours although it is not listed: what belongs to work that is not done."""


def record(folder: Path) -> dict[str, FileRecord]:
    """Describe every file of a folder that holds nothing but what prefdata wrote; waits until the disk has them."""
    ours = (SPEC_FILE, SUCCESS_FILE)
    paths = [path for path in sorted(folder.rglob("*")) if path.name not in ours and not is_temporary(path.name)]
    for path in paths:
        fsync_dir(path)
    return {
        path.relative_to(folder).as_posix(): FileRecord(xxh3=checksum(path), bytes=path.stat().st_size)
        for path in paths
        if path.is_file()
    }


def missing(folder: Path, files: Files) -> list[str]:
    """List the files that are gone."""
    return [name for name in files if not os.path.lexists(folder / name)]


def changed(folder: Path, files: Files) -> list[str]:
    """List the files that hold something else now, by damage or by intent; not those that are gone."""
    return [name for name, file in files.items() if os.path.lexists(folder / name) and _differs(folder / name, file)]


def _differs(path: Path, file: FileRecord) -> bool:
    found = path.lstat()
    return not stat.S_ISREG(found.st_mode) or found.st_size != file.bytes or checksum(path) != file.xxh3


def foreign(folder: Path, files: Files, is_own: IsOwn, inside: str = "") -> Iterator[str]:
    """Find what prefdata did not write: files, and folders that hold nothing else."""
    for path in sorted((folder / inside).iterdir()) if (folder / inside).is_dir() else ():
        name = f"{inside}{path.name}"
        if name in files or (not inside and is_own(name)):
            continue
        if path.is_dir() and not path.is_symlink() and any(file.startswith(f"{name}/") for file in files):
            yield from foreign(folder, files, is_own, f"{name}/")
        else:
            yield name


def move_foreign(folder: Path, to: Path, files: Files, is_own: IsOwn) -> None:
    """Move what prefdata did not write to another folder; what has no place there stays where it is."""
    for name in list(foreign(folder, files, is_own)):
        if not os.path.lexists(to / name):
            with suppress(OSError):
                (to / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).rename(to / name)


def remove_own(folder: Path, files: Files, is_own: IsOwn) -> None:
    """Remove what prefdata wrote and nobody changed since, and the folder unless something else is in it."""
    edited = {*changed(folder, files)}
    (folder / SPEC_FILE).unlink(missing_ok=True)  # first: nobody puts back what is half removed (`swaps.settle`)
    for name in files.keys() - edited:
        (folder / name).unlink(missing_ok=True)
    for path in [path for path in folder.iterdir() if is_own(path.name) and path.name != SUCCESS_FILE]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    parents = {parent for name in files for parent in Path(name).parents} - {Path()}
    for parent in sorted(parents, reverse=True):
        with suppress(OSError):  # not empty
            (folder / parent).rmdir()
    (folder / SUCCESS_FILE).unlink(missing_ok=True)  # last: it lists what is to be removed
    with suppress(OSError):
        folder.rmdir()
