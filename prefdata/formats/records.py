"""Records: the content of one row of any file, as every command reads it: a prompt, responses and verdicts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Kind = Literal["chosen", "rejected", "reference", "response"]
KINDS: tuple[Kind, ...] = ("chosen", "rejected", "reference", "response")

Message = dict[str, Any]


class BadRowError(Exception):
    """Error for a row that cannot be used: `reason` in one word for the counts, and the message."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class LeftOutError(Exception):
    """A valid row that its layout leaves out, with the layout's reason."""


@dataclass(slots=True)
class Response:
    """A response of a row.

    Attributes:
        kind: chosen, rejected or reference if the row says so, else response.
        turns: its messages; the first and the last are the assistant's; usually there is one.
        model: the model that wrote it, if the row names it.
        label: whether it is good, if the row has a label.
        rank: its rank among the row's responses, the lowest best, if the row has ranks.
        attributes: other values of the response, by column (without the part that names the response).
        item: its object in the row, for scores by path.
        plain: the original text, if it follows a plain prompt.
        names: its names in verdicts: its column, its letter or number.
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
        """Its message or messages as JSON, if it is more than text."""
        if len(self.turns) == 1 and len(self.turns[0]) == 2:
            return None
        turns = [_open(turn) for turn in self.turns]
        return json.dumps(turns[0] if len(turns) == 1 else turns, ensure_ascii=False)

    @property
    def empty(self) -> bool:
        """Whether it is empty: no text, no reasoning and no call."""
        last = self.turns[-1]
        return not last["content"].strip() and not last.get("tool_calls") and not last.get("reasoning_content")

    @property
    def key(self) -> str:
        """Key that identifies its content; differences in white space do not matter."""
        return " ".join((self.message or self.text).split())


def _open(turn: Message) -> Message:
    """Parse the message's calls from JSON text."""
    return {**turn, "tool_calls": json.loads(turn["tool_calls"])} if "tool_calls" in turn else turn


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict: which of two responses of a row is better.

    Attributes:
        first, second: their indices in the row's responses.
        probability: the probability that the first is better; 0.5 is a tie.
        annotator: the annotator, if the row names one.
        name: what is compared, if a row has several verdicts (`better`, `safer`).
        strength, rationale, order: as in the contract of comparisons.
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
    """The content of a row.

    Attributes:
        file, row: its file and row number.
        messages: the prompt.
        tools: as JSON text.
        references: reference responses: (text, source).
        metadata: what was not used, by column.
        plain: the original text of the prompt, if prompt and responses are texts or a transcript.
        is_transcript: whether it was written as a transcript.
        responses, verdicts: its responses and verdicts. Sides and ranks are preferences too (`relations`).
        undecided: whether there is a verdict without a decision (null, unknown, invalid).
        weight, margin, probability: those of the row's pair, if given.
        tie: whether the row says that its chosen and rejected responses tie.
        said: other fields of its verdict: annotator, strength, rationale, order.
        pair_ids: two candidates of the run, if the row names them instead of responses.
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
        """Its file and row, for messages."""
        return f"{self.file}:{self.row}"

    def preferences(self) -> list[tuple[Verdict, list[Verdict]]]:
        """List the preference for each two responses: one verdict with the annotators' mean probability, and theirs.

        Raises:
            BadRowError: the row has no preference and no undecided verdict.
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
        """List the same as `preferences`, or nothing if the row has no preference."""
        relations = self.relations()
        if len(relations) == 1 and relations[0].first < relations[0].second:  # as in nearly all rows
            return [(relations[0], relations)]
        judged: dict[tuple[int, int], list[Verdict]] = {}
        for one in relations:
            turned = one if one.first < one.second else _turned(one)
            judged.setdefault((turned.first, turned.second), []).append(turned)
        shares = {pair: sum(one.probability for one in said) / len(said) for pair, said in judged.items()}
        return [(replace(said[0], probability=shares[pair]), said) for pair, said in judged.items()]

    def worse(self) -> set[int]:
        """Collect the indices of responses to which the row prefers another one."""
        sides = {number for number, one in enumerate(self.responses) if one.kind == "rejected"}
        preferred = (joint for joint, _ in self.judged() if joint.probability != 0.5)
        return sides | {joint.second if joint.probability > 0.5 else joint.first for joint in preferred}

    def certainty(self, verdict: Verdict) -> float:
        """Return the probability that a verdict is right; beside chosen and rejected, the row's own."""
        if not self.verdicts and self.probability is not None:
            return self.probability
        return max(verdict.probability, 1 - verdict.probability)

    def demonstrations(self) -> list[Response]:
        """List the responses to imitate: given ones that are not worse or bad; else the reference."""
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
        """List which responses are better than which: by verdicts, else by sides, else by ranks."""
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
    """Explain why two responses are not a pair: they are equal, or one of them is empty."""
    if chosen.key == rejected.key:
        return "same_text"
    return "empty" if chosen.empty or rejected.empty else None


def _turned(verdict: Verdict) -> Verdict:
    return replace(verdict, first=verdict.second, second=verdict.first, probability=1 - verdict.probability)
