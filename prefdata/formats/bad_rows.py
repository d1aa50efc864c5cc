"""Handling of rows that cannot be used: report all as one error, drop them, or write them to a file."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from prefdata.errors import BadRow, BadRows
from prefdata.formats.files import RawRow
from prefdata.formats.records import BadRowError

log = logging.getLogger("prefdata.formats")

OnBadRows = Literal["error", "drop", "quarantine"]

_HELD = 10_000
"""Maximum number of bad rows that are named; the others are counted."""

HINT = "Nothing was written; fix them, or leave them out with --on-bad-rows drop."


class BadRowLog:
    """The bad rows found while reading.

    Attributes:
        policy: the setting --on-bad-rows.
        reasons: number of bad rows by reason.
    """

    def __init__(self, policy: OnBadRows = "error") -> None:
        self.policy = policy
        self.reasons: Counter[str] = Counter()
        self._rows: list[BadRow] = []
        self._aside: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return self.reasons.total()

    @property
    def rows(self) -> list[BadRow]:
        """The first bad rows."""
        return self._rows

    def add(self, row: RawRow, error: BadRowError) -> None:
        """Count a bad row."""
        self.reasons[error.reason] += 1
        if len(self._rows) < _HELD:
            self._rows.append(BadRow(row.file, row.row, str(error)))
        if self.policy == "quarantine":
            place = {"file": row.file, "row": row.row, "reason": error.reason, "problem": str(error)}
            self._aside.append({**place, "values": row.values})

    def refuse(self, *, any_left: bool) -> None:
        """Raise if there are bad rows and the policy is error, or if no other row is left.

        Raises:
            BadRows: the bad rows, with file and row.
        """
        if len(self) and (self.policy == "error" or not any_left):
            hint = HINT if any_left else "Nothing was written."
            raise BadRows(self._rows, hint=hint, count=len(self))

    def put_aside(self, path: Path) -> None:
        """Write the bad rows, with file, row and reason, to a JSONL file, which replaces an older one."""
        from prefdata.formats.layouts import plain

        if self.policy != "quarantine":
            return
        if not self._aside:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for row in self._aside:
                file.write(json.dumps(plain(row), ensure_ascii=False) + "\n")
        log.warning("%s: %d bad rows, each with its reason", path, len(self._aside))
