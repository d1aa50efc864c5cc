"""Documents are in the field's words, and their lines fit a screen; code, output and names in backticks are exempt."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_OURS = re.compile(
    r"\b(anyhow|reckon\w*|hang(s|ing)? on|by lot|anew|mend(s|ed|ing)?|whom|whoever|as (it|they) lies?|goes? on|went on|"
    r"(lies?|lay) (in|on|near|together|there|beside)|said|told|laws?|coins?|cut[ -]off|what there is)\b",
    re.IGNORECASE,
)
"""Each has a plain word: depends on, at random, again, fix, is stored in, distribution, truncated, continues."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documents_use_the_words_of_the_field(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"`[^`]*`", "", text)
    assert [match.group() for match in NOT_OURS.finditer(" ".join(prose.split()))] == []
    assert [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")] == []
