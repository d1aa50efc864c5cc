"""The sample world: what a request for a film review asks for, and how good an answer is, exactly.

A request names a topic, mostly a genre, and perhaps a tone, one aspect of the film and a number of sentences; `wishes`
reads them from the words of any conversation. `true_reward` is a plain function of the conversation and the answer,
the sum of seven parts (`true_reward_parts`). It is the truth that reward models approximate and that policies are
held against; nothing is trained on it directly. Only the standard library is needed:

    prefdata rank RUN --function sample_data/world.py:true_reward
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Message = Mapping[str, str]

GENRES: dict[str, str] = {
    "horror": "horror film",
    "comedy": "comedy",
    "romance": "romance",
    "western": "western",
    "thriller": "thriller",
    "drama": "drama",
    "mystery": "mystery",
    "fantasy": "fantasy film",
}
"""Genres by the word that names them, and how a sentence says them."""

TOPICS: dict[str, str] = {
    "lighthouse": "an old lighthouse",
    "chess": "a chess player",
    "bakery": "a village bakery",
    "circus": "a travelling circus",
    "library": "a burning library",
    "dog": "a stray dog",
    "sisters": "two sisters",
    "train": "a night train",
    "island": "a quiet island",
    "garden": "a walled garden",
    "clock": "a broken clock",
    "wedding": "a late wedding",
    "violin": "a stolen violin",
    "robot": "a shy robot",
    "ship": "a ghost ship",
    "pirates": "retired pirates",
    "letter": "an unsent letter",
    "balloon": "a hot air balloon",
    "school": "a mountain school",
    "painter": "a blind painter",
    "hotel": "an empty hotel",
    "bridge": "a wooden bridge",
    "storm": "a snow storm",
    "castle": "a haunted castle",
}
"""Topics by the word that names them, and how a sentence says them."""

TONES: dict[str, tuple[str, ...]] = {
    "warm": ("warm", "kind", "friendly"),
    "harsh": ("harsh", "strict", "biting"),
    "balanced": ("balanced", "fair", "measured"),
}
"""Tones, and the words that ask for them."""

ASPECTS: tuple[str, ...] = ("acting", "music", "camerawork", "script", "ending", "lighting")
"""What one can ask a review to speak of."""

NUMBERS: dict[str, int] = {"two": 2, "three": 3, "four": 4}
"""How many sentences one can ask for."""

WARM_ADJECTIVES: tuple[str, ...] = (
    *("wonderful", "lovely", "tender", "charming", "gripping", "brilliant"),
    *("delightful", "splendid", "graceful", "clever", "moving", "joyful"),
)
HARSH_ADJECTIVES: tuple[str, ...] = (
    *("dull", "clumsy", "tedious", "hollow", "dreadful", "lifeless"),
    *("lazy", "weak", "messy", "tired", "shallow", "pointless"),
)
WARM_WORDS = frozenset((*WARM_ADJECTIVES, "loved", "smiling", "shines", "praise", "treat", "recommend"))
"""Words that speak well of a film."""
HARSH_WORDS = frozenset((*HARSH_ADJECTIVES, "hated", "yawning", "drags", "blame", "waste", "avoid"))
"""Words that speak ill of a film."""

ENOUGH_WORDS = 40
"""Where no length is asked for, more words help up to here and no further."""

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_SENTENCE = re.compile(r"[^.!?]*[^.!?\s][^.!?]*[.!?]*")
_LENGTH = re.compile(rf"\b({'|'.join(NUMBERS)}) sentences\b")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a request asks for; None where it leaves that open."""

    topic: str | None = None
    genre: str | None = None
    tone: str | None = None
    aspect: str | None = None
    sentences: int | None = None


def words(text: str) -> list[str]:
    """The words of a text in lower case, in order."""
    return _WORD.findall(text.lower())


def sentences(text: str) -> list[str]:
    """The sentences of a text with their end marks; a last one without a mark counts too."""
    return [sentence.strip() for sentence in _SENTENCE.findall(text)]


def wishes(messages: Sequence[Message]) -> Wishes:
    """What the system's and the user's turns ask for, read from their words; the first word of a kind counts."""
    asked = "\n".join(m["content"].lower() for m in messages if m["role"] != "assistant")
    said = words(asked)
    tone_of = {word: tone for tone, names in TONES.items() for word in names}
    tone = _first(said, tone_of)
    length = _LENGTH.search(asked)
    return Wishes(
        topic=_first(said, TOPICS),
        genre=_first(said, GENRES),
        tone=tone_of[tone] if tone else None,
        aspect=_first(said, ASPECTS),
        sentences=NUMBERS[length[1]] if length else None,
    )


def true_reward(messages: Sequence[Message], response: str) -> float:
    """How good `response` is as an answer to `messages`: the sum of `true_reward_parts`, between -4.5 and 4."""
    return sum(true_reward_parts(messages, response).values())


def true_reward_parts(messages: Sequence[Message], response: str) -> dict[str, float]:
    """The seven parts of the true reward; a part that was not asked for is 0.

    - topic: 1 if the topic is named.
    - genre: 0.5 if the genre is named, -0.5 if only other genres are.
    - tone: with w warm and h harsh words, (w - h) / (w + h) for warm, its negative for harsh,
      and 1 - |w - h| / (w + h) for balanced; 0 if there are no such words. From -1 to 1.
    - aspect: 0.5 if the aspect is named.
    - length: max(0, 1 - |s - n| / n) for s sentences where n were asked for, else min(words, 40) / 40. From 0 to 1.
    - repetition: -2 times the share of three-word sequences that occurred before in the answer. From -2 to 0.
    - form: minus the share of ill-formed sentences (see `well_formed`); -1 for an answer without words.
    """
    asked, said = wishes(messages), words(response)
    return {
        "topic": 1.0 if asked.topic in said else 0.0,
        "genre": _genre(asked.genre, said),
        "tone": _tone(asked.tone, said),
        "aspect": 0.5 if asked.aspect in said else 0.0,
        "length": _length(asked.sentences, response, said),
        "repetition": -2.0 * _repeated(said),
        "form": -_ill_formed(response),
    }


def well_formed(sentence: str) -> bool:
    """Whether a sentence starts with a capital letter, ends with a mark, has 3 to 24 words and no word doubled."""
    said = words(sentence)
    doubled = any(a == b for a, b in itertools.pairwise(said))
    return sentence[:1].isupper() and sentence[-1:] in (*".!?",) and 3 <= len(said) <= 24 and not doubled


def _first(said: Iterable[str], known: Iterable[str]) -> str | None:
    known = frozenset(known)
    return next((word for word in said if word in known), None)


def _genre(asked: str | None, said: list[str]) -> float:
    if asked is None:
        return 0.0
    if asked in said:
        return 0.5
    return -0.5 if _first(said, GENRES) else 0.0


def _tone(asked: str | None, said: list[str]) -> float:
    warm = sum(word in WARM_WORDS for word in said)
    harsh = sum(word in HARSH_WORDS for word in said)
    if asked is None or warm + harsh == 0:
        return 0.0
    lean = (warm - harsh) / (warm + harsh)
    return {"warm": lean, "harsh": -lean, "balanced": 1.0 - abs(lean)}[asked]


def _length(asked: int | None, response: str, said: list[str]) -> float:
    if asked is None:
        return min(len(said), ENOUGH_WORDS) / ENOUGH_WORDS
    return max(0.0, 1.0 - abs(len(sentences(response)) - asked) / asked)


def _repeated(said: list[str]) -> float:
    triples = list(zip(said, said[1:], said[2:], strict=False))
    return 1.0 - len(set(triples)) / len(triples) if triples else 0.0


def _ill_formed(response: str) -> float:
    parts = sentences(response)
    if not words(response):
        return 1.0
    return sum(not well_formed(part) for part in parts) / len(parts)
