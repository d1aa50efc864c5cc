"""Check that a rendered conversation still holds the response.

Templates drop text: those of reasoning models remove what precedes `</think>`. They add and remove whitespace
(`| trim`), which is harmless. Anything else would be trained, scored or judged in place of the response.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from prefdata.chat.template import ResponseChanged

SHOWN = 60
"""Characters of a lost text that a message shows."""

CHANCE = 8
"""A shorter prefix or suffix may occur in a text by coincidence."""


def require_responses(text: str, begin: int, responses: Iterable[str], name: str) -> None:
    """Require that the rendered text holds the responses, in their order, from the character `begin` on.

    Whitespace may differ.

    Raises:
        ResponseChanged: one is not there; with the part of it that is missing.
    """
    for response in responses:
        wanted = response.strip()
        at = text.find(wanted, begin)
        if at >= 0:
            begin = at + len(wanted)
        elif _squeezed(wanted) not in _squeezed(text[begin:]):
            raise ResponseChanged(
                f"the chat template of {name} leaves out a part of the response: "
                f"{_shown(_lost(wanted, text[begin:]))}. Choose another template with --chat-template."
            )


def require_prompt(prompt: str, text: str, name: str) -> None:
    """Require that a rendered conversation begins with the prompt as it is rendered for sampling.

    Raises:
        ResponseChanged: it does not: the response would be trained or scored after another text than it is sampled.
    """
    wanted = prompt.rstrip()
    if text.startswith(wanted):
        return
    same = shared_start(wanted, text)
    raise ResponseChanged(
        f"the chat template of {name} opens a response with {_shown(wanted[same:])} when it is sampled, and not in "
        "the whole conversation. Choose another template with --chat-template."
    )


def shared_start(one: str, other: str) -> int:
    """How many characters two texts have in common at their start."""
    return bisect_right(range(len(one)), 0, key=lambda length: not other.startswith(one[: length + 1]))


def _lost(wanted: str, text: str) -> str:
    """Return the part of `wanted` between the longest prefix and the longest suffix of it that occur in `text`."""
    lengths = range(1, len(wanted) + 1)
    head = bisect_right(lengths, 0, key=lambda length: wanted[:length] not in text)
    tail = bisect_right(lengths, 0, key=lambda length: wanted[-length:] not in text)
    start, end = head if head >= CHANCE else 0, len(wanted) - (tail if tail >= CHANCE else 0)
    while _within_word(wanted, start):
        start -= 1
    while _within_word(wanted, end):
        end += 1
    return wanted[start:end].strip() or wanted


def _within_word(text: str, place: int) -> bool:
    return 0 < place < len(text) and not text[place - 1].isspace() and not text[place].isspace()


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} … {text[-SHOWN // 2 :]}")
