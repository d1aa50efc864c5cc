"""Parsing of records into training items: a prompt with the responses to learn from.

Preferences: a prompt, a chosen and a rejected response, with weight, margin and the probability of a right label.
Demonstrations: a prompt and a response to imitate. All layouts are those of `prefdata.formats`. A prompt and responses
that are texts (TRL's standard layouts) are trained as plain text, conversations through the model's chat template;
transcripts through it where the model has one.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from prefdata.chat.messages import for_template
from prefdata.errors import BadRow, BadRows, InputError
from prefdata.formats.bad_rows import OnBadRows
from prefdata.formats.files import RawRow
from prefdata.formats.paths import columns_of
from prefdata.formats.reading import Reader, ReadOptions
from prefdata.formats.records import BadRowError, Record, Response, no_pair
from prefdata.specs.ingest import IngestKind
from prefdata.train.labelled import known, labelled, rated, safety

Kind = Literal["demonstrations", "preferences", "unpaired", "groups", "rated"]
Message = dict[str, Any]
Turns = list[Message]


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it was read: its file and row number, its split and its values."""

    file: str
    row: int
    split: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt and its responses (one for a demonstration; chosen and rejected for a preference).

    All parts are texts, or all are conversations, whose messages have the form that chat templates read. With
    `every_turn` the assistant's turns of the prompt are trained too, where the chat template marks them.
    """

    prompt: str | Turns
    answers: tuple[str | Turns, ...]
    weight: float
    margin: float | None
    tools: list[Any] | None
    row: Row
    every_turn: bool
    probability: float = 1.0
    label: bool | None = None
    ratings: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True)
class Needs:
    """What the training command needs from the data.

    Attributes:
        kind: preferences, demonstrations, single labelled responses, groups of rated ones, or single rated ones.
        margin: whether each pair needs a margin.
        probability: whether each pair needs the probability that its label is right.
        template: whether the model has a chat template; without one a transcript is trained as plain text.
        ratings: the columns with ratings, for groups and rated responses; default: detected from the row.
        safety: whether preferences have labels of safe and unsafe sides.
        wanted: the command and the data that it needs, for messages.
    """

    kind: Kind
    margin: bool = False
    probability: bool = False
    template: bool = True
    ratings: tuple[str, ...] = ()
    safety: bool = False
    wanted: str = ""

    @property
    def want(self) -> IngestKind:
        """Return the kind of data to ask the reader for."""
        return _WANTS[self.kind]


_WANTS: dict[Kind, IngestKind] = {
    "preferences": "pairs",
    "demonstrations": "demonstrations",
    "unpaired": "unpaired",
    "groups": "candidates",
    "rated": "candidates",
}

_LABELLED: tuple[Kind, ...] = ("unpaired", "demonstrations")
"""What a label of the response decides: which side it is on, and whether it is imitated."""


@dataclass
class ItemStream:
    """Items read from data, one at a time; the counts of the other rows are complete at the end.

    Attributes:
        skipped: counts of valid rows that yield no item, by reason.
        left_out: counts of responses left out of groups and of rated responses, by reason.
        rated_by: the columns that ratings were found in.
    """

    reader: Reader
    needs: Needs
    name: str
    skipped: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    rated_by: set[str] = field(default_factory=set)

    def __iter__(self) -> Iterator[Item]:
        """Read the items, in the order of the rows.

        Raises:
            InputError: there are no rows, their layout is unknown, or a column that a setting needs is missing.
            BadRows: all rows that cannot be used, unless they are left out.
        """
        try:
            yield from self._read()
        except InputError as error:
            if not self.needs.wanted or isinstance(error, BadRows):
                raise
            raise InputError(f"{str(error).rstrip('.')}; {self.needs.wanted}.") from None

    def _read(self) -> Iterator[Item]:
        made = 0
        for row, record in self.reader.records():
            try:
                found = list(self._items(row, record))
            except BadRowError as error:
                self.reader.bad.add(row, error)
                continue
            made += len(found)
            yield from found
        self.reader.bad.refuse(any_left=made > 0 or not len(self.reader.bad))
        if not made:
            what = f"{self.name} has no {self.needs.kind} to train on: {self._why()}."
            raise InputError(f"{what} Check the file, or the step that made it.")

    def figures(self) -> dict[str, Any]:
        """Return the report's figures about reading: the layouts, and what was not used."""
        reader = self.reader
        figures: dict[str, Any] = {"layout": ", ".join(dict.fromkeys(one.layout for one in reader.layouts.values()))}
        if reader.surrogates:
            figures["lone_surrogates"] = reader.surrogates
        figures |= {name.replace(" ", "_"): count for name, count in (reader.notes + self.left_out).items()}
        used = self._used()
        if unused := [name for name in (*reader.kept, *reader.not_kept) if name not in used]:
            figures["not_used"] = ", ".join(unused)
        return figures

    def _used(self) -> set[str]:
        """Return the columns that items are made of, and that `ingest` would keep as metadata or leave out."""
        maps = self.reader.layouts.values()
        labels = {name for one in maps for name in one.label} if self.needs.kind in _LABELLED else set()
        return {name for one in maps for name in one.weight} | labels | self.rated_by

    def _why(self) -> str:
        if self.skipped:
            reasons = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in self.skipped.items())
            return f"all rows are left out ({reasons})"
        return "its rows have none" if self.reader.rows else "it is empty"

    def _items(self, row: RawRow, record: Record) -> Iterator[Item]:
        if self.needs.kind == "demonstrations":
            return self._demonstrations(row, record)
        if self.needs.kind == "unpaired":
            return self._unpaired(row, record)
        return self._preferences(row, record) if self.needs.kind == "preferences" else self._rated(row, record)

    def _unpaired(self, row: RawRow, record: Record) -> Iterator[Item]:
        found = labelled(record)
        if not found:
            self.skipped["tie" if record.tie else "no_label"] += 1
        for response, label in found:
            if response.empty:
                self.skipped["empty"] += 1
                continue
            yield replace(self._item(row, record, [response]), label=label)

    def _rated(self, row: RawRow, record: Record) -> Iterator[Item]:
        kept, groups = [], self.needs.kind == "groups"
        columns, found = rated(row.values, record, self.needs.ratings, sides=groups)
        self.rated_by.update(one for column in columns for one in columns_of(column.removeprefix("-")))
        for response, ratings in found:
            reason = "empty_responses" if response.empty else None if known(ratings) else "responses_without_score"
            if reason:
                self.left_out[reason] += 1
            else:
                kept.append((response, ratings))
        if not kept:
            self.skipped["no_score"] += 1
            return
        for part in [kept] if groups else [[one] for one in kept]:
            item = self._item(row, record, [response for response, _ in part])
            yield replace(item, ratings=tuple(ratings for _, ratings in part))

    def _preferences(self, row: RawRow, record: Record) -> Iterator[Item]:
        self._refuse_absent(row)
        preferences = record.preferences()
        if not preferences:
            self.skipped["no_verdict"] += 1
        for verdict, _ in preferences:
            if verdict.probability == 0.5:
                self.skipped["tie"] += 1
                continue
            sides = (verdict.first, verdict.second) if verdict.probability > 0.5 else (verdict.second, verdict.first)
            pair = [record.responses[side] for side in sides]
            if reason := no_pair(*pair):
                self.skipped[reason] += 1
                continue
            item = self._item(row, record, pair, probability=record.certainty(verdict))
            yield replace(item, ratings=safety(row.values, pair)) if self.needs.safety else item

    def _demonstrations(self, row: RawRow, record: Record) -> Iterator[Item]:
        responses = record.demonstrations()
        if not responses and record.responses:
            self.skipped["labelled_bad"] += 1
            return
        if not responses:
            raise BadRowError("no_response", "the row has no response to imitate")
        for response in responses:
            if response.empty:
                self.skipped["empty"] += 1
                continue
            every_turn, weight = _turn_weights(record, response)
            yield self._item(row, record, [response], every_turn=every_turn, weight=weight)

    def _refuse_absent(self, row: RawRow) -> None:
        """Refuse data without a column that a setting needs.

        Raises:
            InputError: the first row lacks the column.
        """
        asked_by = {"margin": "--use-margin", "probability": "--soft-labels"}
        for column, flag in asked_by.items():
            if getattr(self.needs, column) and self.reader.rows <= 1 and column not in row.values:
                raise InputError(
                    f"{self.name} has no column {column}, which {flag} needs. An export without "
                    "--strict-columns has it, and so does every run."
                )

    def _item(
        self, row: RawRow, record: Record, responses: Sequence[Response], *, probability: float = 1.0,
        every_turn: bool = False, weight: float = 1.0,
    ) -> Item:  # fmt: skip
        weight = record.weight if record.weight is not None else weight
        if weight < 0:
            raise BadRowError("weight", f"weight is {weight}, but should be a number of at least 0")
        if self.needs.margin and record.margin is None:
            raise BadRowError("margin", "margin is missing, but use_margin needs it")
        if self.needs.probability and record.probability is None and not record.verdicts:
            raise BadRowError("probability", "probability is missing or not a number, but soft_labels needs it")
        if self.needs.probability and not 0 <= probability <= 1:
            raise BadRowError("probability", f"probability is {probability}, but should be from 0 to 1")
        place = Row(row.file, row.row, record.split or "train", row.values)
        tools = None if record.tools is None else json.loads(record.tools)
        sure = probability if self.needs.probability else 1.0
        prompt, answers = self._parts(record, responses)
        return Item(prompt, answers, weight, record.margin, tools, place, every_turn, sure)

    def _parts(self, record: Record, responses: Sequence[Response]) -> tuple[str | Turns, tuple[str | Turns, ...]]:
        plain = record.plain is not None and (not record.is_transcript or not self.needs.template)
        if plain and all(response.plain is not None for response in responses):
            return record.plain or "", tuple(str(response.plain) for response in responses)
        messages = [for_template(message) for message in record.messages]
        turns = [[for_template(turn) for turn in response.turns] for response in responses]
        if record.messages[-1].get("prefill"):  # a prefill is the beginning of each response
            begun = messages.pop()["content"]
            turns = [[{**first, "content": begun + first["content"]}, *rest] for first, *rest in turns]
        return messages, tuple(turns)


def contradicting(items: Sequence[Item]) -> set[int]:
    """Find the items whose preference is contradicted by another item of the same prompt; returns their indices."""
    places: dict[bytes, list[tuple[bool, int]]] = {}
    for place, item in enumerate(items):
        sides = [json.dumps(side) for side in item.answers]
        asked = json.dumps([item.prompt, item.tools, *sorted(sides)])
        key = hashlib.blake2b(asked.encode(), digest_size=16).digest()
        places.setdefault(key, []).append((sides == sorted(sides), place))
    return {place for found in places.values() if len({way for way, _ in found}) > 1 for _, place in found}


def _turn_weights(record: Record, response: Response) -> tuple[bool, float]:
    """Return whether all the assistant's turns are trained, and the weight of the last.

    Raises:
        BadRowError: only some turns are trained, or their weights differ; training supports neither.
    """
    weights = [message.get("weight") for message in record.messages if message["role"] == "assistant"]
    last = response.turns[-1].get("weight")
    own = 1.0 if last is None else last
    given = {1.0 if weight is None else weight for weight in weights}
    if not given or given == {own}:
        return "messages" in response.names, own
    if given == {0.0}:
        return False, own
    raise BadRowError(
        "turn_weights", "its turns have different loss weights; training supports all turns, or the last one only"
    )


def parse(
    rows: Iterable[RawRow | Row | BadRow],
    kind: Kind,
    name: str,
    *,
    need_margin: bool = False,
    need_probability: bool = False,
    skipped: Counter[str] | None = None,
    on_bad_rows: OnBadRows = "error",
    template: bool = True,
) -> list[Item]:
    """Parse the rows into items, in their order; rows that yield none are counted in `skipped`.

    Raises:
        InputError: there are no rows, or their layout is unknown.
        BadRows: all rows that cannot be used.
    """
    needs = Needs(kind, need_margin, need_probability, template)
    options = ReadOptions(on_bad_rows=on_bad_rows, want=needs.want)
    stream = ItemStream(_reader_of(rows, name, options), needs, name)
    items = list(stream)
    if skipped is not None:
        skipped.update(stream.skipped + stream.reader.dropped)
    return items


def _reader_of(rows: Iterable[RawRow | Row | BadRow], name: str, options: ReadOptions) -> Reader:
    """Make a reader of rows that are in memory."""
    listed = [_raw(row) for row in rows]
    return Reader([name], options, read=lambda _: iter(listed))


def _raw(row: RawRow | Row | BadRow) -> RawRow:
    if isinstance(row, RawRow):
        return row
    if isinstance(row, BadRow):
        return RawRow(row.file, row.row, problem=row.problem)
    return RawRow(row.file, row.row, {**row.values, "split": row.split})
