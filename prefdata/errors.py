"""The errors of prefdata, written for the person at the terminal.

Every error that prefdata raises on purpose is a `PrefdataError`: one line that says what is wrong, where (file, row,
id, field) and what to do next. The command line prints that line on stderr and exits with `exit_code`: 2 for wrong
usage or bad input, 1 for a failure on the way. Anything else that escapes is a bug, and `--debug` shows its traceback.

To add one: derive from the nearest class here, keep the message to one sentence of what and one of what next.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


class PrefdataError(Exception):
    """A failure on the way that a person can act on; exit code 1."""

    exit_code = 1


class InputError(PrefdataError):
    """The input or the command is wrong: a missing file, an unknown layout, a bad value; exit code 2."""

    exit_code = 2


class UsageError(InputError):
    """A flag, a YAML key or a combination of them that does not exist or does not fit."""


class SpecConflict(InputError):
    """A table partition of this name exists and was made with another spec."""


class NotReady(InputError):
    """A step was started before the step that it reads from has finished."""


class StorageError(InputError):
    """Writing failed: the disk is full, read-only, or permission is denied. No partial file is left."""


class ModelError(InputError):
    """A model folder that cannot be used as requested (no weights, no tokenizer, another kind of model)."""


class EngineError(PrefdataError):
    """An engine failed while running."""


@dataclass(frozen=True)
class BadRow:
    """One row of an input file that cannot be used: where it is and what is wrong with it."""

    file: str
    row: int
    problem: str

    def __str__(self) -> str:
        return f"{self.file}:{self.row}: {self.problem}"


class BadRows(InputError):
    """Rows of the input that cannot be used, by file and row number (counted from 1), the first faults of them."""

    def __init__(
        self, rows: Sequence[BadRow], *, limit: int = 20, hint: str = "Nothing was written.", count: int | None = None
    ) -> None:
        """Group rows by their fault; `count` is how many there are where not all are given."""
        self.rows = tuple(rows)
        faults: dict[tuple[str, str], list[BadRow]] = {}
        for row in rows:
            faults.setdefault((row.file, row.problem), []).append(row)
        total = len(rows) if count is None else count
        shown = "".join(f"\n  {_together(same)}" for same in list(faults.values())[:limit])
        named = sum(len(same) for same in list(faults.values())[:limit])
        more = f"\n  … and {total - named:,} more" if total > named else ""
        super().__init__(f"{total:,} bad {'row' if total == 1 else 'rows'}. {hint}{shown}{more}")


_SAME_FAULT_ROWS = 5


def _together(rows: Sequence[BadRow]) -> str:
    """Rows of one fault on one line."""
    if len(rows) == 1:
        return str(rows[0])
    others = ", ".join(f"{row.row}" for row in rows[1:_SAME_FAULT_ROWS])
    rest = f", … ({len(rows):,} rows)" if len(rows) > _SAME_FAULT_ROWS else ""
    return f"{rows[0]} (also in row {others}{rest})"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest a name for a mistyped one: `' Did you mean "beta"?'`, or the list of known names where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f' Did you mean "{near[0]}"?' if near else f" Known: {', '.join(known)}."


_DISK = {
    errno.ENOSPC: "the disk is full. Free some space",
    errno.EDQUOT: "your disk quota is used up. Free some space",
    errno.EROFS: "the file system is read-only. Choose another folder",
    errno.EACCES: "permission denied. Choose another folder or fix its permissions",
    errno.EPERM: "permission denied. Choose another folder or fix its permissions",
    errno.ENOTDIR: "a part of that path is a file, not a folder. Choose another folder",
    errno.ENAMETOOLONG: "the name is too long. Choose a shorter one",
    errno.ELOOP: "its links lead in a circle. Choose another folder",
    errno.EIO: "the disk does not work. Choose another disk",
    errno.EFBIG: "the file would be larger than the system allows. Choose another disk",
}


def storage_error(error: OSError, path: Path) -> StorageError | None:
    """Return the error for a refusal by the operating system to write `path`; None for an error of another kind."""
    problem = _DISK.get(error.errno or 0)
    if problem is None:
        return None
    return StorageError(f"cannot write {path}: {problem} and run the same command again; what was finished is kept.")
