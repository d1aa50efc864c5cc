"""The words of a text, as exact match, ROUGE-L and the measures of diversity count them."""

from __future__ import annotations

import re
import unicodedata

# Scripts without blanks between words: each character counts as a word (CJK, kana, hangul syllables, Thai, Lao, Khmer).
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\u0e00-\u0eff\u1780-\u17ff\U00020000-\U0003134f]"
    r"|[^\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\u0e00-\u0eff\u1780-\u17ff\U00020000-\U0003134f]+"
)


def normalised(text: str) -> str:
    """Remove what exact match ignores: NFKC, case folded, runs of blanks as one, none at the ends."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words(text: str) -> list[str]:
    """Split a text into words, normalised as for exact match; letters and digits only. In Chinese, each character."""
    return _WORD.findall(normalised(text))
