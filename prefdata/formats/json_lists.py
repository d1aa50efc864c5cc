"""Rows in JSON files other than JSON lines: a list, read in pieces, or an object that contains the rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Protocol, TextIO

_PIECE = 1 << 20
_SPACE = " \t\r\n"
_LONGEST_TOKEN = 16
"""Within so many characters of the end of a piece, an incomplete value (`-Infinity`) may look broken."""


class JsonError(ValueError):
    """Valid JSON without rows; the message begins with a position and follows the file's name."""


def elements(text: TextIO) -> Iterator[Any]:
    """Read the elements of a JSON list one at a time, so that memory holds one element and not the list.

    Raises:
        JSONDecodeError: the list is broken, at this line and column of the file.
        JsonError: something follows the list.
    """
    scan = _Scan(text)
    scan.take("[")
    if scan.next() == "]":
        scan.take("]")
    else:
        while True:
            yield scan.value()
            if scan.next() == "]":
                scan.take("]")
                break
            scan.take(",")
    if scan.next():
        raise JsonError(f":{scan.line}: there is more text after the list. Save the rows as one list, or as JSONL.")


class _Readable(Protocol):
    def read(self, size: int, /) -> str: ...


class _Scan:
    """A position in a JSON text that is read in pieces."""

    def __init__(self, text: _Readable) -> None:
        self._text, self._held, self._at, self._ended = text, "", 0, False
        self._column, self.line = 1, 1  # of the position `_at`
        self._decoder = json.JSONDecoder(strict=False)

    def next(self) -> str:
        """Return the next character that is not white space; empty at the end."""
        while True:
            start = self._at
            while self._at < len(self._held) and self._held[self._at] in _SPACE:
                self._at += 1
            self._count(start, self._at)
            if self._at < len(self._held) or not self._more(_PIECE):
                return self._held[self._at : self._at + 1]

    def take(self, character: str) -> None:
        if self.next() != character:
            raise self._error(f"Expecting {character!r}", 0)
        self._at += 1
        self._column += 1

    def value(self) -> Any:
        """Read the value that begins here."""
        self.next()
        piece = _PIECE
        while True:
            try:
                value, end = self._decoder.raw_decode(self._held, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos > len(self._held) - _LONGEST_TOKEN or error.msg.startswith("Unterminated")
                after = error.pos - self._at
                # Doubling the text each time takes at most twice the total time.
                if not cut or not self._more(piece):
                    raise self._error(error.msg, after) from None
                piece *= 2
                continue
            if end == len(self._held) and self._more(piece):
                continue  # the number may continue
            self._count(self._at, end)
            self._at = end
            return value

    def _more(self, size: int) -> bool:
        piece = "" if self._ended else self._text.read(size)
        self._ended = not piece
        self._held = self._held[self._at :] + piece
        self._at = 0
        return bool(piece)

    def _count(self, start: int, end: int) -> None:
        lines = self._held.count("\n", start, end)
        self.line += lines
        self._column = end - self._held.rfind("\n", start, end) if lines else self._column + end - start

    def _error(self, message: str, after: int) -> json.JSONDecodeError:
        self._count(self._at, self._at + after)
        error = json.JSONDecodeError(message, "", 0)
        error.lineno, error.colno = self.line, self._column
        return error


def rows_of_object(text: str) -> list[Any]:
    """Find the rows of a JSON file that is one object, or several after one another.

    The rows are the only list of objects in it, or one list per column, or one object per row or per column (as pandas
    writes them).

    Raises:
        JSONDecodeError: the JSON is broken.
        JsonError: it has no rows, or several lists of objects.
    """
    scan = _Scan(_Whole(text))
    values = []
    while scan.next():
        values.append(scan.value())
    return values if len(values) > 1 else _rows_within(values[0])


class _Whole:
    """A file-like object that returns a text at once."""

    def __init__(self, text: str) -> None:
        self._text = text

    def read(self, size: int, /) -> str:
        """Return the whole text, once."""
        text, self._text = self._text, ""
        return text


def _rows_within(whole: dict[str, Any]) -> list[Any]:
    lists = {name: value for name, value in whole.items() if isinstance(value, list) and value}
    rows = [value for value in lists.values() if all(isinstance(item, dict) for item in value)]
    if len(rows) == 1 and len(lists) == 1:
        return rows[0]
    if len(lists) == len(whole) > 1 and len({len(value) for value in lists.values()}) == 1:
        return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]
    if whole and all(isinstance(value, dict) and value for value in whole.values()):
        return _by_name(whole)
    raise JsonError(
        ": a JSON file should be a list of objects, or an object with one list of them. Save the rows as such a list, "
        "or as JSONL."
    )


def _by_name(whole: dict[str, dict[str, Any]]) -> list[Any]:
    """Return one object per row, or per column if the inner names are numbers and the outer ones are not."""
    inner = [name for value in whole.values() for name in value]
    if all(name.isdigit() for name in inner) and not all(name.isdigit() for name in whole):
        numbers = dict.fromkeys(inner)
        return [{name: column.get(number) for name, column in whole.items()} for number in numbers]
    return list(whole.values())
