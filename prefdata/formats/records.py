"""Records: what one row of any file holds, as every command reads it: a prompt, responses, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Kind = Literal["chosen", "rejected", "reference", "response"]
KINDS: tuple[Kind, ...] = ("chosen", "rejected", "reference", "response")

Message = dict[str, Any]


class BadRowError(Exception):
    """A row that cannot be used: `reason` in one word, to be counted, and in a sentence, to be read."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class LeftOutError(Exception):
    """A row that its layout leaves out, with the layout's reason; nothing is wrong with it."""


@dataclass(slots=True)
class Response:
    """A response that a row holds.

    Attributes:
        kind: chosen, rejected or reference where the row says so, else response.
        turns: its messages; the first and the last are the assistant's, and as a rule there is one.
        model: who wrote it, where the row says.
        label: whether it is wanted on its own, where the row says.
        rank: its place among the row's responses, the lowest best, where the row says.
        attributes: what else the row says of it, by column (without the part that names the response).
        item: the object of the row that it was in, for scores by path.
        plain: the text as it was written, where a plain prompt goes before it.
        names: what verdicts may call it: its column, its letter or number.
    """

    kind: Kind
    turns: Sequence[Message]
    model: str | None = None
    label: bool | None = None
    rank: float | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    item: Mapping[str, Any] | None = None
    plain: str | None = None
    names: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The content of its last message."""
        return str(self.turns[-1]["content"])

    @property
    def message(self) -> str | None:
        """Its message as JSON, or its messages, where it is more than text."""
        if len(self.turns) == 1 and len(self.turns[0]) == 2:
            return None
        turns = [_open(turn) for turn in self.turns]
        return json.dumps(turns[0] if len(turns) == 1 else turns, ensure_ascii=False)

    @property
    def empty(self) -> bool:
        """Whether it says nothing: no word, no reasoning and no call."""
        last = self.turns[-1]
        return not last["content"].strip() and not last.get("tool_calls") and not last.get("reasoning_content")

    @property
    def key(self) -> str:
        """What tells it apart from other responses, white space aside."""
        return " ".join((self.message or self.text).split())


def _open(turn: Message) -> Message:
    """A message whose calls are values, and not the text of some."""
    return {**turn, "tool_calls": json.loads(turn["tool_calls"])} if "tool_calls" in turn else turn


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which of two responses of a row is better.

    Attributes:
        first, second: their numbers in the row's responses.
        probability: that the first is better; 0.5 is a tie.
        annotator: who says so, where the row says.
        name: what is judged, where a row judges several things (`better`, `safer`).
        strength, rationale, order: as the contract of comparisons has them.
    """

    first: int
    second: int
    probability: float
    annotator: str | None = None
    name: str | None = None
    strength: str | None = None
    rationale: str | None = None
    order: str | None = None


@dataclass(slots=True)
class Record:
    """What a row holds.

    Attributes:
        file, row: where it is.
        messages: the prompt.
        tools: as JSON text.
        references: reference responses: (text, where from).
        metadata: what was not used, by column.
        plain: the prompt as the text that it was written as, where prompt and responses are texts or a transcript.
        is_transcript: whether it was written as a transcript.
        responses, verdicts: see there. Sides and ranks say what is better as well (`relations`).
        undecided: whether there is a verdict, and it says nothing (null, unknown, invalid).
        weight, margin, probability: of the pair that the row is, where the row says.
        tie: whether the row says that its chosen and rejected responses tie.
        said: what else the row says of its verdict: annotator, strength, rationale, order.
        pair_ids: two candidates of the run, where the row names them instead of holding responses.
    """

    file: str
    row: int
    messages: list[Message] = field(default_factory=list)
    tools: str | None = None
    references: list[tuple[str, str | None]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    split: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    plain: str | None = None
    is_transcript: bool = False
    responses: list[Response] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    undecided: bool = False
    weight: float | None = None
    margin: float | None = None
    probability: float | None = None
    tie: bool = False
    said: dict[str, str] = field(default_factory=dict)
    pair_ids: tuple[str, str] | None = None

    @property
    def place(self) -> str:
        """Where it is, in messages."""
        return f"{self.file}:{self.row}"

    def preferences(self) -> list[tuple[Verdict, list[Verdict]]]:
        """What the row says of each two responses: one verdict, whose probability is the annotators' mean, and theirs.

        Raises:
            BadRowError: it says nothing, and no verdict of it is undecided.
        """
        judged = self.judged()
        if not judged and not self.undecided:
            kinds = {one.kind for one in self.responses}
            missing = [side for side in ("chosen", "rejected") if side not in kinds]
            if len(missing) == 1:
                raise BadRowError("one_side", f"{missing[0]} is missing, or null")
            raise BadRowError("no_preference", "it does not say which of two responses is better")
        return judged

    def judged(self) -> list[tuple[Verdict, list[Verdict]]]:
        """As `preferences`, and none where the row says nothing."""
        judged: dict[tuple[int, int], list[Verdict]] = {}
        for one in self.relations():
            turned = one if one.first < one.second else _turned(one)
            judged.setdefault((turned.first, turned.second), []).append(turned)
        shares = {pair: sum(one.probability for one in said) / len(said) for pair, said in judged.items()}
        return [(replace(said[0], probability=shares[pair]), said) for pair, said in judged.items()]

    def worse(self) -> set[int]:
        """The numbers of the responses to which the row prefers another one."""
        sides = {number for number, one in enumerate(self.responses) if one.kind == "rejected"}
        preferred = (joint for joint, _ in self.judged() if joint.probability != 0.5)
        return sides | {joint.second if joint.probability > 0.5 else joint.first for joint in preferred}

    def certainty(self, verdict: Verdict) -> float:
        """The probability that the better one of a verdict is better: the row's own beside chosen and rejected."""
        if not self.verdicts and self.probability is not None:
            return self.probability
        return max(verdict.probability, 1 - verdict.probability)

    def demonstrations(self) -> list[Response]:
        """The responses to imitate: those that are given, but for worse and bad ones; else the reference."""
        worse = self.worse()
        good = [one for n, one in enumerate(self.responses) if n not in worse and one.label is not False]
        given = [one for one in good if one.kind != "reference"] or good
        if given or self.responses or not self.references:
            return given
        return [
            Response(
                "reference", ({"role": "assistant", "content": self.references[0][0]},), plain=self.references[0][0]
            )
        ]

    def relations(self) -> list[Verdict]:
        """Which responses are better than which, as the row says: by verdicts, else by sides, else by ranks."""
        if self.verdicts:
            return self.verdicts
        sides = [[i for i, one in enumerate(self.responses) if one.kind == kind] for kind in ("chosen", "rejected")]
        if all(sides):
            better = 0.5 if self.tie else 1.0
            return [Verdict(i, j, better, **self.said) for i in sides[0] for j in sides[1]]
        ranked = [(one.rank, i) for i, one in enumerate(self.responses) if one.rank is not None]
        return [
            Verdict(i, j, 1.0 if a < b else 0.0 if b < a else 0.5)
            for n, (a, i) in enumerate(ranked)
            for b, j in ranked[n + 1 :]
        ]


def no_pair(chosen: Response, rejected: Response) -> str | None:
    """Why two responses are no pair: nothing can be preferred to itself, and preferring silence teaches nothing."""
    if chosen.key == rejected.key:
        return "same_text"
    return "empty" if chosen.empty or rejected.empty else None


def _turned(verdict: Verdict) -> Verdict:
    return replace(verdict, first=verdict.second, second=verdict.first, probability=1 - verdict.probability)
