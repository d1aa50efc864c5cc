r"""Answers in: the columns of somebody's file that hold answers which exist already.

What is read, beside a prompt in any layout:

- `chosen` and `rejected` (also `chosen_messages`, `chosen_response`): a text, one message, a list of texts, a whole
  conversation, or a whole transcript ("\n\nHuman: …\n\nAssistant: …"). Of whole ones the prompt is what they share at
  their start.
- lists of other models' answers: `responses`, `generations`, `outputs` (texts, with `models`, `response_models`, …
  beside), and these, `completions` or `answers` as objects with a response, answer or completion, and a model.
- numbered ones: `response_0` and `response_1`, `response1`, `output_1`, `response_a`, …, with `response_0_model`, …
- one: `response`, `solution`, and the `model` or `generator` that wrote it.
- the reference of the row's layout, a `completion` or an `output`; where the row names its model, or has a `label` or
  `kto_tag` that says if it is wanted, it is a response and no reference.

Scores, ranks and annotations beside the answers stay with the row, and so become the prompt's metadata; columns of
scores that are named are read as well (`beside`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, Literal

import pyarrow as pa

from prefdata import ids
from prefdata.errors import BadRow
from prefdata.formats.beside import Place, score_beside
from prefdata.formats.files import RawRow
from prefdata.formats.layouts import ANSWERS, Turns, Unusable, kind, turns_of
from prefdata.tables import CANDIDATES, rows_id

AnswerKind = Literal["chosen", "rejected", "reference", "response"]

SIDES: dict[AnswerKind, tuple[str, ...]] = {
    "chosen": ("chosen", "chosen_messages", "chosen_response"),
    "rejected": ("rejected", "rejected_messages", "rejected_response"),
}
LISTS = {"responses": "response_models", "generations": "generation_models", "outputs": "output_models"}
"""Columns that hold a list of answers, and what their models' column is called; `models` does for each."""

OBJECTS = ("completions", "answers", *LISTS)
ONE = ("response", "solution")
_PLAIN = ("completion", "output")
_TEXTS = ("response", "answer", "completion", "text", "output", "content")
_MODELS = ("model", "generator")
_NUMBERED = re.compile(r"(response|output|completion|answer|generation)_?([0-9]|[abAB])")
_TURN = re.compile(r"\n\n(Human|Assistant):")

KNOWN = (
    "chosen, rejected (texts, messages, whole conversations or transcripts); responses, generations, outputs (lists); "
    "completions, answers (lists of objects with a response and a model); response_0, response_1, …; response, "
    "solution; completion, output; a reference; messages that end with the assistant's"
)
"""The columns above on one line."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that exists already, the model that wrote it, and its scores by column, where the row says."""

    kind: AnswerKind
    text: str
    model: str | None = None
    place: Place = field(default=Place(), compare=False)
    scores: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class AnsweredRow(RawRow):
    """A row without its answers, as a layout reads it, and the answers; `unnamed` is what becomes of its reference."""

    answers: tuple[Answer, ...] = ()
    unnamed: Answer = field(default=Answer("reference", ""))

    def all(self, reference: str | None) -> list[Answer]:
        """The answers, with the reference that the layout has found."""
        last = () if reference is None else (replace(self.unnamed, text=reference),)
        return [*self.answers, *last]


def apart(rows: Iterable[RawRow], columns: Sequence[str] = ()) -> Iterator[RawRow]:
    """Each row with its answers split off, scored by some columns; one that cannot be read is a row with a problem."""
    for row in rows:
        try:
            yield row if row.problem else _answered(row, columns)
        except Unusable as error:
            yield RawRow(row.file, row.row, problem=str(error), reason=error.reason)


def _answered(row: RawRow, columns: Sequence[str]) -> AnsweredRow:
    left = {name: value for name, value in row.values.items() if value is not None}
    _read_transcript(left)
    answers = [*_sides(left), *_numbered(left), *_listed(left)]
    # A model's name beside several answers is nobody's in particular.
    model = None if answers else _model(left, *_MODELS)
    judged = any(isinstance(left.get(name), bool) for name in ("label", "kto_tag"))
    one = [name for name in (*ONE, *(_PLAIN if judged or model else ())) if name in left]
    answers += [Answer("response", _text(left.pop(name), name), model) for name in one]
    plain = next((name for name in _PLAIN if name in left), None)
    if plain and not any(name in left for name in ANSWERS):
        left["reference"] = _text(left.pop(plain), plain)
    # Scores beside other answers are theirs, and none of the reference's.
    alone = tuple(None if answers else score_beside(row.values, Place(), column) for column in columns)
    unnamed = Answer("response" if judged or model else "reference", "", model, scores=alone)
    scored = [
        replace(answer, scores=tuple(score_beside(row.values, answer.place, column) for column in columns))
        for answer in answers
    ]
    return AnsweredRow(row.file, row.row, left, answers=tuple(scored), unnamed=unnamed)


def _read_transcript(left: dict[str, Any]) -> None:
    """A prompt that is a transcript is a conversation; the "Assistant:" at its end only asks for the answer."""
    if isinstance(left.get("prompt"), str) and (turns := _transcript(left["prompt"])):
        left["prompt"] = turns if turns[-1]["content"].strip() else turns[:-1]


def _sides(left: dict[str, Any]) -> list[Answer]:
    """Chosen and rejected; where they are whole conversations, `left` gets what they share as its `messages`."""
    found = {side: name for side, names in SIDES.items() for name in names[::-1] if name in left}
    models = {side: _model(left, f"{side}_model") for side in found}
    said = [
        (side, part, _side_place(side, left[name], number))
        for side, name in found.items()
        for number, part in enumerate(_parts(left[name], name))
    ]
    for name in found.values():
        del left[name]
    wholes = [part for _, part, _ in said if not isinstance(part, str)]
    shared = _shared(wholes)
    if wholes:
        _asked_once(left, shared, wholes)
    answers = []
    for side, part, place in said:
        text = part if isinstance(part, str) else _only(part[len(shared) :], side)
        answers.append(Answer(side, text, models[side], place))
    return answers


def _side_place(side: str, value: Any, number: int) -> Place:
    names = (f"{{}}_{side}", f"{side}_{{}}")
    return Place(names, number, len(value)) if isinstance(value, list) and kind(value) == "texts" else Place(names)


def _shared(wholes: Sequence[Turns]) -> Turns:
    """What whole conversations have in common at their start, one turn of each at least left over."""
    alike = takewhile(lambda turns: all(turn == turns[0] for turn in turns), zip(*wholes, strict=False))
    shortest = min((len(whole) for whole in wholes), default=0)
    return [turns[0] for turns in alike][: max(shortest - 1, 0)]


def _asked_once(left: dict[str, Any], shared: Turns, wholes: Sequence[Turns]) -> None:
    """Put the shared turns where a layout finds them; a prompt beside them has to say the same."""
    for name in ("prompt", "messages", "conversations"):
        beside = left.pop(name, None)
        if beside is None:
            continue
        turns = None if kind(beside) == "text" else turns_of(beside)
        if turns not in (shared, *wholes) and beside not in [turn["content"] for turn in shared]:
            raise Unusable("two_prompts", f"chosen and rejected do not begin with what {name} says")
    left["messages"] = shared


def _listed(left: dict[str, Any]) -> list[Answer]:
    """Lists of answers: of texts with a list of models beside, or of objects; what else these hold stays in `left`."""
    answers: list[Answer] = []
    for name in OBJECTS:
        items = left.get(name)
        if name in LISTS and kind(items) == "texts" and isinstance(items, list):
            models = next((left[m] for m in (LISTS[name], "models") if _fits(left.get(m), items)), [None] * len(items))
            places = [Place(number=number, count=len(items)) for number in range(len(items))]
            answers += [Answer("response", *said) for said in zip(items, models, places, strict=True)]
            del left[name]
        elif isinstance(items, list) and (key := _key(items)):
            answers += [
                Answer("response", _text(item.get(key), name), item.get("model"), Place(item=item)) for item in items
            ]
            beside = [{said: value for said, value in item.items() if said != key} for item in items]
            left[name] = beside if any(beside) else None
        elif name in LISTS and isinstance(items, list):
            raise Unusable("not_text", f"{name} should be a list of texts, or of objects with one of them")
    return answers


def _fits(models: Any, answers: Sequence[Any]) -> bool:
    return isinstance(models, list) and len(models) == len(answers) and kind(models) == "texts"


def _key(items: list[Any]) -> str | None:
    """The key under which these objects have their answers."""
    if not all(isinstance(item, dict) for item in items):
        return None
    return next((key for key in _TEXTS if any(item.get(key) is not None for item in items)), None)


def _numbered(left: dict[str, Any]) -> list[Answer]:
    names = [name for name in left if _NUMBERED.fullmatch(name) and kind(left[name]) in ("text", "messages")]
    return [
        Answer("response", _text(left.pop(name), name), _model(left, f"{name}_model", f"{name}_source"), place)
        for name in names
        if (place := Place((f"{name}_{{}}", f"{{}}_{name}", f"{{}}_{name[-1]}", f"{{}}{name[-1]}")))
    ]


def _model(left: dict[str, Any], *names: str) -> str | None:
    return next((left[name] for name in names if isinstance(left.get(name), str)), None)


def _parts(value: Any, name: str) -> list[str | Turns]:
    """A side's answers: texts, and whole conversations."""
    if isinstance(value, list) and value and kind(value) == "texts":
        return list(value)
    if isinstance(value, dict):
        return [_text([value], name)]
    if kind(value) == "text":
        return [_transcript(value) or value]
    turns = _turns(value, name)
    return [_only(turns, name)] if turns[0]["role"] == "assistant" else [turns]


def _text(value: Any, name: str) -> str:
    """An answer that is a text or one message of the assistant."""
    return value if isinstance(value, str) and kind(value) == "text" else _only(_turns(value, name), name)


def _turns(value: Any, name: str) -> Turns:
    if not value or kind(value) not in ("messages", "from/value turns"):
        raise Unusable("not_text", f"{name} should be a text, a message or a conversation")
    return turns_of(value)


def _only(turns: Turns, name: str) -> str:
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        roles = ", ".join(turn["role"] for turn in turns)
        raise Unusable("answer_turns", f"{name} answers with the turns {roles}, and should with one of the assistant")
    return turns[0]["content"]


def _transcript(text: str) -> Turns | None:
    """The turns of a transcript as above, or None where the text is none such."""
    if not text.startswith("\n\nHuman:"):
        return None
    _, *parts = _TURN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": said.removeprefix(" ")}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


class Gathered:
    """The answers of a file as they come: each a candidate of its kind's sampler, in the order of appearance.

    The same answer, by the same model, of another row with the same prompt is a duplicate; within one row equal answers
    are draws of their own.

    Attributes:
        columns: whose numbers are the answers' scores.
        twice: the rows with duplicates.
        rows_without: how many rows held no answer.
        scores_not_kept: how many duplicates were scored otherwise than the answer that is kept.
    """

    def __init__(self, columns: Sequence[str] = ()) -> None:
        self.columns = tuple(columns)
        self.twice: list[BadRow] = []
        self.rows_without = 0
        self.scores_not_kept = 0
        self._rows: dict[AnswerKind, list[dict[str, Any]]] = {}
        self._scores: dict[AnswerKind, list[tuple[float | None, ...]]] = {}
        self._places: dict[tuple[str, ...], tuple[str, int, int]] = {}
        self._drawn: Counter[tuple[AnswerKind, str]] = Counter()
        self._dropped: Counter[AnswerKind] = Counter()

    def add(self, row: RawRow, prompt_id: str, answers: Sequence[Answer]) -> None:
        """Take a row's answers."""
        self.rows_without += not answers
        for answer in answers:
            model = answer.model or answer.kind
            of_kind = self._rows.setdefault(answer.kind, [])
            scores = self._scores.setdefault(answer.kind, [])
            *place, number = self._places.setdefault(
                (answer.kind, prompt_id, model, answer.text), (row.file, row.row, len(of_kind))
            )
            if place != [row.file, row.row]:
                self._dropped[answer.kind] += 1
                self.twice.append(BadRow(row.file, row.row, f"the same {answer.kind} as {place[0]}:{place[1]}"))
                scores[number] = self._agreed(scores[number], answer.scores)
                continue
            index = self._drawn[answer.kind, prompt_id]
            self._drawn[answer.kind, prompt_id] += 1
            said = {"prompt_id": prompt_id, "sample_index": index, "text": answer.text, "model": model}
            of_kind.append(said)
            scores.append(answer.scores)

    def _agreed(self, first: tuple[float | None, ...], again: tuple[float | None, ...]) -> tuple[float | None, ...]:
        """The scores of an answer that came again: the first one given in each column; others are counted."""
        pairs = list(zip(first, again, strict=True))
        self.scores_not_kept += sum(None not in pair and pair[0] != pair[1] for pair in pairs)
        return tuple(other if one is None else one for one, other in pairs)

    @property
    def kinds(self) -> list[AnswerKind]:
        """The kinds that occurred."""
        return [kind for kind in ("chosen", "rejected", "reference", "response") if kind in self._rows]

    def counts(self, kind: AnswerKind) -> tuple[int, int]:
        """How many candidates of a kind there are, and how many duplicates were left out."""
        return len(self._rows[kind]), self._dropped[kind]

    def content(self, kind: AnswerKind) -> str:
        """The id of a kind's answers, whatever the order of the prompts."""
        keyed = [{**row, "key": f"{row['prompt_id']}-{row['sample_index']:010d}"} for row in self._rows[kind]]
        return rows_id(pa.Table.from_pylist(keyed), "key")

    def table(self, kind: AnswerKind, sampler: str) -> pa.Table:
        """A kind's answers as candidates, named by the sampler's fingerprint."""
        same = {"status": "ok", "engine": "ingest", "round": 0}
        return CANDIDATES.from_rows(
            [
                {**row, **same, "candidate_id": ids.candidate_id(row["prompt_id"], sampler, row["sample_index"])}
                for row in self._rows[kind]
            ]
        )

    def scores(self, column: int, samplers: dict[AnswerKind, tuple[str, str]]) -> list[dict[str, Any]]:
        """What a column says of all answers, as rows of scores, a prompt's rows together.

        `samplers` are the names and fingerprints of the kinds' samplers.
        """
        rows = [
            {
                "candidate_id": ids.candidate_id(row["prompt_id"], samplers[kind][1], row["sample_index"]),
                "prompt_id": row["prompt_id"],
                "score": score[column],
                "reason": None if score[column] is not None else "not_given",
                "sampler": samplers[kind][0],
                "sample_index": row["sample_index"],
                "round": 0,
                "text_key": ids.text_key(row["text"]),
                "chars": ids.chars(row["text"]),
                "text_hash": None if score[column] is None else ids.text_hash(row["text"]),
            }
            for kind in self.kinds
            for row, score in zip(self._rows[kind], self._scores[kind], strict=True)
        ]
        first: dict[str, int] = {}
        for row in rows:
            first.setdefault(row["prompt_id"], len(first))
        return sorted(rows, key=lambda row: first[row["prompt_id"]])
