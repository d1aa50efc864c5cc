"""Rubrics (a judge's instructions and how its reply is read) and questions (scored by the probabilities of labels).

Both are YAML files; the built-in ones are in `templates/rubrics` and are chosen by name. All `{places}` are filled at
once, so that braces in a prompt or a response stay unchanged.

A judge's response counts where exactly one verdict can be read from it: a JSON object with everything the rubric asks
for, in range and of the right type. Text and code fences around it are allowed. Nothing is ever guessed: "10" is not
1, "high" is not 10, and what cannot be read is not -1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import model_validator

from prefdata.chat.data_files import read_template
from prefdata.chat.messages import as_text
from prefdata.errors import UsageError, did_you_mean
from prefdata.ids import Message
from prefdata.specs import Spec, identity_field, runtime_field

RATIONALE = "rationale"
VERDICTS = ("A", "B", "tie")

_PLACE = re.compile(r"\{([a-z_]+)\}")
_PLACES = {
    "absolute": ("conversation", "prompt", "response", "reference", "aspects", "low", "high", "format"),
    "pairwise": ("conversation", "prompt", "first", "second", "strengths", "format"),
    "pointwise-labels": ("conversation", "prompt", "response", "reference"),
    "pairwise-labels": ("conversation", "prompt", "first", "second"),
}
_ANSWERS = {
    "absolute": ("response",),
    "pairwise": ("first", "second"),
    "pointwise-labels": ("response",),
    "pairwise-labels": ("first", "second"),
}


class _Asking(Spec):
    """The common part of rubrics and questions: a text with places for a conversation and its responses."""

    kind: str
    text: str = identity_field(
        ..., "The query, with {places} for the conversation, the responses and the reference.", pattern=r"\S"
    )
    system: str | None = identity_field(None, "A system message before it.", pattern=r"\S")

    @model_validator(mode="after")
    def _places_are_known(self) -> Self:
        known, needed = _PLACES[self.kind], _ANSWERS[self.kind]
        there = _PLACE.findall(self.text)
        for place in there:
            if place not in known:
                raise ValueError(f"text has no place {{{place}}} in {self.kind}.{did_you_mean(place, known)}")
        if lacking := [place for place in needed if place not in there]:
            raise ValueError(f"text needs {{{lacking[0]}}}, where a response goes")
        if not {"prompt", "conversation"} & set(there):
            raise ValueError("text needs {conversation}, or {prompt} for the last user turn alone")
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether the judge sees the prompt's reference answer."""
        return "{reference}" in self.text

    def _shown(self, conversation: Sequence[Message], texts: Mapping[str, str | None]) -> str:
        users = [str(turn["content"]) for turn in conversation if turn["role"] == "user"]
        values = {
            "conversation": "\n\n".join(f"{turn['role']}: {as_text(turn)}" for turn in conversation),
            "prompt": users[-1] if users else "",
            **texts,
        }
        return _PLACE.sub(lambda place: str(values[place[1]]), self.text.rstrip("\n"))

    def _before(self) -> list[dict[str, str]]:
        return [] if self.system is None else [{"role": "system", "content": self.system}]


class Aspect(Spec):
    """One aspect that an absolute rubric rates."""

    step: ClassVar[str] = "aspect"

    name: str = identity_field(..., "Its key in the verdict.", pattern=r"^[a-z][a-z0-9_]*$")
    text: str = identity_field(..., "Its description for the judge.", pattern=r"\S")
    weight: float = identity_field(1.0, "Its share of the score, against the others.", gt=0, allow_inf_nan=False)


class Example(Spec):
    """One worked example: a prompt, the responses, and the verdict as the judge should give it."""

    step: ClassVar[str] = "example"
    may_be_empty: ClassVar[tuple[str, ...]] = ("prompt", "response", "first", "second", "reference")

    prompt: str = identity_field(..., "The user's message.")
    response: str | None = identity_field(None, "absolute: the response.")
    first: str | None = identity_field(None, "pairwise: the response shown first (A).")
    second: str | None = identity_field(None, "pairwise: the response shown second (B).")
    reference: str | None = identity_field(None, "absolute: the reference answer, where the text has a place for it.")
    verdict: dict[str, Any] = identity_field(..., "The verdict, as the JSON object that is asked for.")


class Rubric(_Asking):
    """The instructions of a judge, and the JSON that it replies with."""

    step: ClassVar[str] = "rubric"

    kind: Literal["absolute", "pairwise"] = identity_field(..., "One response by itself, or two against each other.")
    aspects: tuple[Aspect, ...] = identity_field((), "absolute: what the judge rates, each by a number.")
    scale: tuple[int, int] = identity_field((1, 10), "absolute: the lowest and the highest number.")
    strengths: tuple[str, ...] = identity_field(
        (), "pairwise: words for how much better, the weakest first; without any, the strength is not asked."
    )
    rationale_chars: int = identity_field(600, "The longest rationale, in characters; 0 asks for none.", ge=0)
    examples: tuple[Example, ...] = identity_field((), "Worked examples, shown before.")
    name: str | None = runtime_field(None, "For the reader only.")

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        names = [aspect.name for aspect in self.aspects]
        if self.kind == "absolute" and (not names or len(set(names)) < len(names) or RATIONALE in names):
            raise ValueError(f"aspects: an absolute rubric has some, each of its own name, none called {RATIONALE}")
        if self.scale[0] >= self.scale[1]:
            raise ValueError("scale: should be the lowest and the highest number, as in [1, 10]")
        if len(set(self.strengths)) < len(self.strengths):
            raise ValueError("strengths: a word occurs twice")
        for number, example in enumerate(self.examples, 1):
            if any(getattr(example, place) is None for place in _ANSWERS[self.kind]):
                raise ValueError(f"examples: number {number} lacks {' or '.join(_ANSWERS[self.kind])}")
            if self.needs_reference and example.reference is None:
                raise ValueError(f"examples: number {number} lacks its reference")
            if self.read(json.dumps(example.verdict)) is None:
                raise ValueError(f"examples: the verdict of number {number} is not one of this rubric's")
        return self

    def messages(self, conversation: Sequence[Message], **texts: str | None) -> tuple[dict[str, str], ...]:
        """Return the messages for the judge: the examples as turns of their own, then the case.

        Args:
            conversation: the conversation that was answered.
            texts: the texts by name: `response` (and `reference`), or `first` and `second`.
        """
        turns = self._before()
        for example in self.examples:
            shown = example.model_dump(include={"response", "first", "second", "reference"})
            asked = self._filled([{"role": "user", "content": example.prompt}], shown)
            verdict = json.dumps(example.verdict, ensure_ascii=False)
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": verdict}]
        return (*turns, {"role": "user", "content": self._filled(conversation, texts)})

    def read(self, text: str) -> dict[str, Any] | None:
        """Read the verdict in a judge's reply; None where there is none, or two that differ.

        What a reasoning model writes before `</think>` is not its response.
        """
        fitting = [found for found in _objects(text.rpartition("</think>")[2]) if self._fits(found)]
        decided = {tuple(found.get(key) for key in self._keys) for found in fitting}
        return fitting[-1] if len(decided) == 1 else None

    def verdict_schema(self) -> str:
        """Return the verdict's JSON schema, for engines that enforce one; the rationale precedes the verdict."""
        properties: dict[str, Any] = {}
        if self.rationale_chars:
            properties[RATIONALE] = {"type": "string", "maxLength": self.rationale_chars}
        if self.kind == "absolute":
            numbers = list(range(self.scale[0], self.scale[1] + 1))
            properties |= {aspect.name: {"type": "integer", "enum": numbers} for aspect in self.aspects}
        else:
            properties["verdict"] = {"type": "string", "enum": list(VERDICTS)}
            if self.strengths:
                properties["strength"] = {"type": "string", "enum": list(self.strengths)}
        required = list(properties)
        whole = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        return json.dumps(whole, ensure_ascii=False)

    @property
    def _keys(self) -> tuple[str, ...]:
        return ("verdict", "strength") if self.kind == "pairwise" else tuple(aspect.name for aspect in self.aspects)

    def _fits(self, found: Mapping[str, Any]) -> bool:
        if not isinstance(found.get(RATIONALE, ""), str):
            return False
        if self.kind == "absolute":
            low, high = self.scale
            return all(type(found.get(key)) is int and low <= found[key] <= high for key in self._keys)
        verdict, strength = found.get("verdict"), found.get("strength")
        if not isinstance(verdict, str) or verdict not in VERDICTS or not isinstance(strength, str | None):
            return False
        return not self.strengths or strength in self.strengths or (verdict == "tie" and strength is None)

    def _filled(self, conversation: Sequence[Message], texts: Mapping[str, str | None]) -> str:
        of_ours = {
            "aspects": "\n".join(f"- {aspect.name}: {aspect.text.strip()}" for aspect in self.aspects),
            "low": str(self.scale[0]),
            "high": str(self.scale[1]),
            "strengths": ", ".join(self.strengths),
            "format": self._format(),
        }
        return self._shown(conversation, {**texts, **of_ours})

    def _format(self) -> str:
        """Return the JSON object that is asked for, as the judge is shown it."""
        parts = [f'"{RATIONALE}": "why, in a few sentences"'] if self.rationale_chars else []
        if self.kind == "absolute":
            parts += [f'"{aspect.name}": {self.scale[0]} to {self.scale[1]}' for aspect in self.aspects]
        else:
            parts += ['"verdict": ' + " or ".join(f'"{verdict}"' for verdict in VERDICTS)]
            parts += ['"strength": ' + " or ".join(f'"{word}"' for word in self.strengths)] if self.strengths else []
        return "{" + ", ".join(parts) + "}"


class Question(_Asking):
    """What a model is asked whose response is not read but weighed: how probable it finds each of two labels."""

    step: ClassVar[str] = "question"

    kind: Literal["pointwise-labels", "pairwise-labels"] = identity_field(..., "One response by itself, or two.")
    labels: tuple[str, str] = identity_field(..., "The possible next tokens: good and bad, or A and B.")
    plain: bool = identity_field(False, "Continue the plain text, although the model has a chat template.")
    name: str | None = runtime_field(None, "For the reader only.")

    @model_validator(mode="after")
    def _labels_part(self) -> Self:
        first, second = self.labels
        if first.startswith(second) or second.startswith(first):
            raise ValueError("labels: neither may be a prefix of the other: their probabilities would overlap")
        if self.plain and self.system is not None:
            raise ValueError("system: plain text has no system message. Put it into text")
        return self

    def messages(self, conversation: Sequence[Message], **texts: str | None) -> tuple[dict[str, str], ...]:
        """Return the messages for the model.

        Args:
            conversation: the conversation that was answered.
            texts: the texts by name: `response` (and `reference`), or `first` and `second`.
        """
        return (*self._before(), {"role": "user", "content": self._shown(conversation, texts)})


Kind = Literal["absolute", "pairwise", "pointwise-labels", "pairwise-labels"]


def load_rubric(name: str, kind: Literal["absolute", "pairwise"] | None = None) -> Rubric:
    """Read the rubric in a file, or the built-in one of that name; of `kind`, where one is required.

    Raises:
        UsageError: there is none of that name, it is of another kind, or not as it should be.
        InputError: the file is not YAML.
    """
    return _wanted(Rubric, name, kind)


def load_question(name: str, kind: Literal["pointwise-labels", "pairwise-labels"] | None = None) -> Question:
    """Read the question in a file, or the built-in one of that name; of `kind`, where one is required.

    Raises:
        UsageError: there is none of that name, it is of another kind, or not as it should be.
        InputError: the file is not YAML.
    """
    return _wanted(Question, name, kind)


Asking = TypeVar("Asking", Rubric, Question)


def _wanted(of: type[Asking], name: str, kind: str | None) -> Asking:
    values = _values(name)
    found = values.get("kind")
    fits = (kind,) if kind else ("absolute", "pairwise") if of is Rubric else ("pointwise-labels", "pairwise-labels")
    if found in _PLACES and found not in fits:
        raise UsageError(f"{name} is of the kind {found}, and here {' or '.join(fits)} is needed.")
    return of.parse(values, where=name)


def _values(name: str) -> dict[str, Any]:
    values = read_template("rubrics", name)
    if not isinstance(values, dict):
        raise UsageError(f"{name} should hold keys and values (kind, text, …); templates/rubrics has examples to copy.")
    return {str(key): value for key, value in values.items()}


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the outermost JSON objects of a text; what is inside a broken one does not count."""
    decoder = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse, strict=False)
    at = text.find("{")
    while at != -1:
        try:
            found, end = decoder.raw_decode(text, at)
            yield found
        except json.JSONDecodeError as error:
            end = max(error.pos, at + 1)
        except (ValueError, RecursionError):
            return
        at = text.find("{", end)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
