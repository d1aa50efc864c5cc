"""Compiled layouts: a key map that converts the raw rows of a file to records."""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prefdata.formats import casts
from prefdata.formats.files import INDEX_COLUMNS, RawRow
from prefdata.formats.layout_maps import (
    FIELDS,
    OF_VERDICTS,
    LayoutMap,
    PromptMap,
    paths_of,
    prompt_paths,
    response_paths,
    verdict_paths,
)
from prefdata.formats.messages import are_turns, check
from prefdata.formats.names import known_names, plain_name
from prefdata.formats.paths import columns_of, getter
from prefdata.formats.prompt_layouts import Prompt, PromptReader, tools_of
from prefdata.formats.readers import SPLIT_NAMES, split_of
from prefdata.formats.records import BadRowError, Kind, LeftOutError, Record, Response, Verdict
from prefdata.formats.response_layouts import ResponseReader, VerdictReader, Whole, checked
from prefdata.formats.transcripts import without_end
from prefdata.ids import prompt_id
from prefdata.specs.ingest import JUDGED, IngestKind

Values = Mapping[str, Any]


_KEPT: dict[str, tuple[IngestKind, ...]] = {
    "model": ("candidates", "pairs", "unpaired", "comparisons", "demonstrations"),
    "weight": ("pairs", "unpaired", "demonstrations"),
    "margin": ("pairs",),
    "tie": JUDGED,
    "probability": ("pairs", "comparisons"),
    **dict.fromkeys(OF_VERDICTS, ("pairs", "comparisons")),
}
"""The kinds of data for which the fields outside the prompt are kept."""

DECIDE_THE_PROMPT = {
    "messages", "conversations", "conversation", "chat", "dialogue", "prompt", "instruction", "question", "query",
    "system", "systemprompt", "systemmessage",
}  # fmt: skip
"""Columns that are part of the prompt: a row with one that the layout does not read is a bad row."""


class Layout:
    """A key map that reads rows.

    Attributes:
        map: the key map.
        used: the columns that it reads.
        notes: counts of content that was not kept, by name.
        kept: columns that became metadata, with the number of rows.
        not_kept: columns that are read but not needed for `want`, with the number of rows.
    """

    def __init__(self, layout: LayoutMap, ignore: Iterable[str] = (), want: IngestKind = "pairs") -> None:
        """Compile a map; columns to `ignore` are not read, and not kept as metadata."""
        self.map = layout
        self.notes: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.not_kept: Counter[str] = Counter()
        self._ignored = {*ignore, *layout.ignore, *INDEX_COLUMNS}
        self._prompt = PromptReader(layout.prompt or PromptMap())
        turns = bool(self._prompt.map.texts) and not self._prompt.map.first_turn
        self._responses = [ResponseReader(entry, turns=turns) for entry in layout.responses or ()]
        judged = want in JUDGED
        self._verdicts = [VerdictReader(entry) for entry in layout.verdicts or ()] if judged else []
        self._fields = {field: [(name, getter(name)) for name in getattr(layout, field)] for field in FIELDS}
        self._drop = [(getter(rule.column), rule) for rule in layout.drop]
        paths = paths_of(layout)
        self.used = _columns(paths)
        self._inner = {
            column: {path.partition(".")[2] for path in paths if path.startswith(f"{column}.")}
            for column in self.used
            if column not in paths
        }
        self._useless = sorted(_columns(_useless(layout, want)) - _columns(prompt_paths(layout)))
        self._unread = known_names("pictures") - {plain_name(one) for one in self._ignored}
        self._watched: dict[str, str | None] = {}
        self._model_names = {name for name, _ in self._fields["model"]}
        self._fits = {name: fits for field, fits in _OPTIONAL.items() for name, _ in self._fields[field]}
        self._says_more = any(self._fields[field] for field in OF_VERDICTS)

    def record(self, row: RawRow) -> Record:
        """Read a row into a record.

        Raises:
            BadRowError: the row cannot be used.
            LeftOutError: the layout leaves the row out.
        """
        if row.problem:
            raise BadRowError(row.reason, row.problem)
        values = row.values
        if self._ignored:
            values = {name: value for name, value in values.items() if name not in self._ignored}
        self._refuse(values)
        record = Record(row.file, row.row)
        if values.get("first_id") is not None or values.get("second_id") is not None:
            return self._by_ids(record, values)
        found = [one for reader in self._responses for one in reader.read(values, self.notes)]
        wholes = [whole for _, whole in found if whole is not None]
        prompt = self._prompt.read(values, wholes, self.notes, [response for response, _ in found])
        for response, whole in found:
            if whole is not None:
                _give_turns(response, whole, prompt)
        if self._prompt.map.texts and not self._prompt.map.first_turn:
            _interleave(found, prompt)
        record.responses = [response for response, _ in found]
        if prompt.is_transcript:
            for response in record.responses:
                response.turns = [{**turn, "content": without_end(turn["content"])} for turn in response.turns]
        self._last_turn(record, prompt)
        record.messages, record.plain, record.is_transcript = prompt.turns, prompt.plain, prompt.is_transcript
        if any(response.plain is None for response in record.responses):
            record.plain = None
        self._read_fields(record, values, prompt)
        check(record.messages)
        return record

    def _refuse(self, values: Values) -> None:
        for get, rule in self._drop:
            if get(values) in rule.values:
                raise LeftOutError(rule.reason)
        for name, value in values.items():
            if name not in self._watched:
                self._watched[name] = self._watch(name)
            watched = self._watched[name]
            if watched is None:
                continue
            if watched == "pictures" and value not in (None, [], "", {}):
                raise BadRowError("pictures", f"it has {name}, but only text is read")
            if watched == "prompt" and _says_something(value):
                raise BadRowError(
                    "unread_prompt",
                    f"{name} is part of the prompt, but the layout {self.map.layout} does not read it: leave it out "
                    f"with --ignore {name}, or choose another --layout",
                )

    def _watch(self, name: str) -> str | None:
        """Explain why a column may make its row unusable: it holds pictures, or part of the prompt that is not read."""
        if plain_name(name) in self._unread:
            return "pictures"
        return "prompt" if plain_name(name) in DECIDE_THE_PROMPT and name not in self.used else None

    def _by_ids(self, record: Record, values: Values) -> Record:
        ids = (str(values.get("first_id")), str(values.get("second_id")))
        record.pair_ids = ids
        record.responses = [
            Response("response", ({"role": "assistant", "content": ""},), names=(name,)) for name in ids
        ]
        for response, name in zip(record.responses, ("first_id", "second_id"), strict=True):
            response.names = (name,)
        record.verdicts = self._judged(record, values)
        return record

    def _last_turn(self, record: Record, prompt: Prompt) -> None:
        """Use a last turn of the assistant as a reference, the response, the chosen one, or a prefill."""
        turns = prompt.turns
        if not turns or turns[-1]["role"] != "assistant":
            return
        role = self._prompt.map.last_turn
        if turns[-1].get("prefill") or (role == "prompt" and not prompt.complete):
            prompt.turns = [*turns[:-1], {**turns[-1], "prefill": True}]
            prompt.plain = None
        elif role == "prompt":
            if not any(list(one.turns) == turns[-len(one.turns) :] for one in record.responses):
                raise BadRowError(
                    "answered",
                    "the conversation ends with the assistant's turn, which is not one of the row's responses",
                )
            prompt.turns = turns[:-1]
        else:
            start = len(turns)
            while start and turns[start - 1]["role"] == "assistant":
                start -= 1
            prompt.turns, last = turns[:start], turns[start:]
            kind: Kind = "chosen" if role == "chosen" else "reference" if role == "reference" else "response"
            record.responses.append(Response(kind, checked(last, "the last turn"), names=("messages",)))
            prompt.plain = None

    def _read_fields(self, record: Record, values: Values, prompt: Prompt) -> None:
        record.tools = tools_of(self._field("tools", values)) or tools_of(prompt.tools)
        record.tags = _tags(self._field("tags", values))
        record.split = _split(self._field("split", values))
        record.weight = self._number("weight", values)
        record.margin = self._number("margin", values)
        given = self._field("probability", values)
        record.probability = None if given is None else casts.number_of(given)
        record.references = self._references(record, values)
        record.tie = casts.tie(self._field("tie", values)) is True
        self._attribute(record, values)
        record.verdicts = self._judged(record, values)
        record.undecided = bool(self._verdicts) and not record.verdicts
        record.metadata = self._metadata(record, values)
        if self._prompt.map.first_turn and prompt.later:
            record.metadata["later_turns"] = list(prompt.later)
            self.kept["later_turns"] += 1

    def _field(self, field: str, values: Values) -> Any:
        for _, get in self._fields[field]:
            if (value := get(values)) is not None:
                return value
        return None

    def _number(self, field: str, values: Values) -> float | None:
        for name, get in self._fields[field]:
            if (value := get(values)) is not None:
                return casts.finite(value, name, field)
        return None

    def _references(self, record: Record, values: Values) -> list[tuple[str, str | None]]:
        found: list[tuple[str, str | None]] = [
            (one.text, one.model) for one in record.responses if one.kind == "reference" and one.text
        ]
        for name, get in self._fields["references"]:
            for text, source in _reference_texts(get(values)) or ():
                if text.strip() and (source or all(text != known for known, _ in found)):
                    found.append((text, source or name))
        return list(dict.fromkeys(found))

    def _attribute(self, record: Record, values: Values) -> None:
        """Assign a row's model to its responses, unless it has sides, and its label to the only response."""
        own = [one for one in record.responses if one.kind != "rejected"]
        model = self._field("model", values)
        if isinstance(model, str) and len(own) == len(record.responses):
            for one in own:
                one.model = one.model or model
        if len(record.responses) == len(own) == 1:
            for name, get in self._fields["label"]:
                if (value := get(values)) is not None and own[0].label is None:
                    own[0].label = casts.label(value, name)

    def _judged(self, record: Record, values: Values) -> list[Verdict]:
        more: dict[str, str] = {}
        if self._says_more:
            found = {field: self._field(field, values) for field in OF_VERDICTS}
            if isinstance(found["order"], bool):  # whether the two were shown in reverse order
                found["order"] = "second-first" if found["order"] else "first-second"
            more = {field: str(value) for field, value in found.items() if value is not None}
        if more.get("order", "first-second") not in ("first-second", "second-first"):
            raise BadRowError("order", f"order is {more['order']!r}; known: first-second, second-first")
        record.said = more
        two = len(record.responses) == 2 and all(one.kind == "response" for one in record.responses)
        judged = [one for reader in self._verdicts for one in reader.read(values, record.responses, more)]
        if two and (given := self._field("probability", values)) is not None:
            sure = casts.probability(given, "probability")
            first = [one.probability if one.first == 0 else 1 - one.probability for one in judged]
            if any((one - 0.5) * (sure - 0.5) < 0 for one in first):
                raise BadRowError("probability", f"the verdict is not what the first one's probability, {sure}, says")
            return [Verdict(0, 1, sure, **more)]
        return judged

    def _says_something_else(self, name: str, value: Any, record: Record) -> bool:
        if name in self._model_names and not record.responses:
            return True
        return name in self._fits and not self._fits[name](value)

    def _metadata(self, record: Record, values: Values) -> dict[str, Any]:
        """Collect what was not used; the keys of a `metadata` object move up one level."""
        left = {}
        for name, value in values.items():
            if value is None:
                continue
            if name not in self.used or self._says_something_else(name, value, record):
                left[name] = value
            elif name in self._inner and isinstance(value, Mapping):
                inner = {key: v for key, v in value.items() if key not in self._inner[name] and v is not None}
                left |= {name: inner} if inner else {}
        for name in left:
            self.kept[name] += 1
        for name in self._useless:
            self.not_kept[name] += values.get(name) is not None
        # A table of a run: its id is derived from the messages.
        if "prompt_id" in left and left["prompt_id"] == prompt_id(record.messages, record.tools):
            del left["prompt_id"]
        given = casts.as_json(left.get("metadata"))
        if isinstance(given, dict) and not (given.keys() & left.keys()):
            left = {**given, **{name: value for name, value in left.items() if name != "metadata"}}
        return {name: plain(value) for name, value in left.items()}


def _columns(paths: Iterable[str]) -> set[str]:
    return {column for path in paths for column in columns_of(path)}


def _useless(layout: LayoutMap, want: IngestKind) -> list[str]:
    """List the paths that are not needed for `want`."""
    found = [path for field, wants in _KEPT.items() if want not in wants for path in getattr(layout, field)]
    if want not in JUDGED:
        found += verdict_paths(layout)
    return found + (response_paths(layout) if want == "prompts" else [])


def _reference_texts(value: Any) -> list[tuple[str, str | None]] | None:
    """List the references in a value, each with its source: a text, a number, an object with a text, or a list.

    None for other values.
    """
    listed = casts.as_json(value)
    found: list[tuple[str, str | None]] = []
    for one in listed if isinstance(listed, list) else [value]:
        if isinstance(one, Mapping) and isinstance(one.get("text"), str):
            found.append((one["text"], one.get("source")))
        elif isinstance(one, str | int | float) and not isinstance(one, bool):
            found.append((one if isinstance(one, str) else json.dumps(one), None))
        else:
            return None
    return found


def _give_turns(response: Response, whole: Whole, prompt: Prompt) -> None:
    """Set a response to the rest of its whole conversation."""
    count = len(prompt.turns)
    if whole.turns[:count] != prompt.turns:
        raise BadRowError("two_prompts", "chosen and rejected do not begin with the same prompt")
    response.turns = checked(whole.turns[count:], response.kind)
    if whole.source is not None and count < len(whole.source.ends):
        response.plain = whole.source.text[whole.source.ends[count] :]


def _is_tags(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


_OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "references": lambda value: _reference_texts(value) is not None,
    "tags": _is_tags,
    "probability": lambda value: casts.number_of(value) is not None,
    "tie": lambda value: casts.tie(value) is not None,
}
"""Fields whose columns may hold other values, which then become metadata."""


def _interleave(found: Sequence[tuple[Response, Whole | None]], prompt: Prompt) -> None:
    """Insert the user's later turns between the texts of responses that are lists, one text per user turn."""
    for response, _ in found:
        asked = [{"role": "user", "content": text} for text in prompt.later]
        if len(response.turns) != len(asked) + 1:
            many = f"{len(response.turns)} turns, and the prompt {len(asked) + 1}"
            raise BadRowError("later_turns", f"{response.names[0]} has {many}")
        both = zip(asked, response.turns[1:], strict=True)
        response.turns, response.plain = [response.turns[0], *(turn for two in both for turn in two)], None


def _says_something(value: Any) -> bool:
    return (isinstance(value, str) and bool(value.strip())) or are_turns(value)


def _tags(value: Any) -> list[str]:
    listed = ([value] if isinstance(value, str) else value) if _is_tags(value) else []
    return list(dict.fromkeys(listed))


def _split(value: Any) -> str | None:
    if value is None or value == "":
        return None
    split = split_of(value) if isinstance(value, str) else None
    if split is None:
        raise BadRowError("split", f"split is {value!r}; known: {SPLIT_NAMES}; or leave it out with --ignore split")
    return split


def plain(value: Any) -> Any:
    """Convert `value` to JSON types: NaN and infinities to null, bytes to base64, other types to text."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
