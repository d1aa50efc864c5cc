"""Documents and code are in the field's words, and documents' lines fit a screen.

Output and names in backticks are exempt; of the code, docstrings, comments and texts of several words are read.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = [path for folder in ("prefdata", "cli") for path in sorted((ROOT / folder).rglob("*.py"))]
NOT_OURS = re.compile(
    r"\b(anyhow|reckon\w*|hang(s|ing)? on|by lot|anew|mend(s|ed|ing)?|whom|whoever|as (it|they) lies?|goes? on|went on|"
    r"(lies?|lay) (in|on|near|together|there|beside)|said|told|laws?|coins?|cut[ -]off|what there is)\b",
    re.IGNORECASE,
)
"""Each has a plain word: depends on, at random, again, fix, is stored in, distribution, truncated, continues."""


def not_ours(text: str) -> list[str]:
    """The words that have a plain one; in backticks, as keys and as parameters of a docstring they are names."""
    names_left_out = re.sub(r"""`[^`]*`|"\w+":|^ +[\w, ]+: """, "", text, flags=re.MULTILINE)
    return [match.group() for match in NOT_OURS.finditer(" ".join(names_left_out.split()))]


def prose(source: str) -> Iterator[tuple[int, str]]:
    """The docstrings, comments and texts of several words in Python code, with their lines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documents_use_the_words_of_the_field(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert not_ours(text) == []
    assert [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")] == []


def test_code_uses_the_words_of_the_field() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{line}": words
        for path in CODE
        for line, text in prose(path.read_text("utf-8"))
        if (words := not_ours(text))
    }
    assert len(CODE) > 100
    assert found == {}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('def f():\n    """Mend what hangs\n    on it."""', ["Mend", "hangs on"]),  # also over the end of a line
        ('x = f"{said} was told"', ["told"]),  # not the variable
        ("x = 1  # drawn by lot", ["by lot"]),
        ('raise ValueError("choose anew")', ["anew"]),
        ('x = {"said": 1}', []),  # a key
        (
            'def f(said):\n    """Read.\n\n    Args:\n        said: is said.\n    """',
            ["said"],
        ),  # not the parameter
        ('"""The key `said` of {"said": "…"}."""', []),
    ],
)
def test_words_are_found_where_people_read_them(source: str, words: list[str]) -> None:
    assert [word for _, text in prose(source) for word in not_ours(text)] == words
