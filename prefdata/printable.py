"""Escape untrusted text (of a model, a server, a file) for a terminal or a log.

Escaped as in Python are control characters (escape sequences begin with one), the marks that change the direction
of text, invisible characters that may hide text, line and paragraph separators, and halves of surrogate pairs. Joiners,
accents, emoji and every script stay as they are.
"""

from __future__ import annotations

import json
import re

_HIDDEN = (
    r"\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f"
)
_OBEYED = re.compile(rf"[\x00-\x1f{_HIDDEN}]+")
_BUT_NEWLINES = re.compile(rf"[\x00-\x09\x0b-\x1f{_HIDDEN}]+")
_IN_JSON = re.compile(rf"[{_HIDDEN}]+")


def printable(text: str) -> str:
    r"""Return the text on one line, with control characters escaped: `\n`, `\x1b`, `\u202e`."""
    return text if text.isascii() and text.isprintable() else _OBEYED.sub(_shown, text)


def printable_lines(text: str) -> str:
    """Return the text as `printable` does, line by line: its line breaks stay."""
    return text if text.isascii() and text.isprintable() else _BUT_NEWLINES.sub(_shown, text)


def printable_json(text: str) -> str:
    """Return JSON with the same values, in which such characters are JSON's own escapes."""
    return text if text.isascii() and text.isprintable() else _IN_JSON.sub(_escaped, text)


def _shown(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]
