"""Detection: the key map of a file, from its first rows and the vocabulary of maps/general.yaml.

The result is an ordinary layout (`--dry-run` prints it): the columns of the prompt, of the responses, and of verdicts.
An ambiguous file is an error that names both readings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prefdata.errors import InputError
from prefdata.formats.columns import RARE, Columns, Rows
from prefdata.formats.detect_prompt import last_turn, prompt_of
from prefdata.formats.detect_responses import label_of, model_of, responses_of
from prefdata.formats.detect_verdicts import verdicts_of
from prefdata.formats.layout_maps import (
    PROMPT_PATHS,
    LayoutMap,
    PromptMap,
    ResponseMap,
    VerdictMap,
    built_in,
    paths_of,
)
from prefdata.formats.names import plain_name
from prefdata.formats.paths import dig, resolved
from prefdata.formats.transcripts import transcript

Fields = dict[str, tuple[str, ...]]

_BY_ID = {"first_id", "second_id"}


def detect(rows: Rows, where: str, given: LayoutMap | None = None, ignore: Iterable[str] = ()) -> LayoutMap:
    """Find the layout of a file, from its first rows.

    Args:
        rows: the first rows.
        where: the file's name, for messages.
        given: a named layout; the parts that it leaves open are detected.
        ignore: columns that are not read.

    Raises:
        InputError: no layout fits, or several do; the message lists them and the columns.
    """
    given = given or _recognised(rows, where)
    if given is not None and given.refuse:
        raise InputError(f"{where}: {given.about or given.layout}: {given.refuse}")
    given = _with_names(given or LayoutMap(layout=""), list(dict.fromkeys(name for row in rows for name in row)))
    columns = Columns(rows, (*ignore, *given.ignore))
    found = _completed(given, columns, where)
    _check(found, given, columns, where)
    return found


def _recognised(rows: Rows, where: str) -> LayoutMap | None:
    """Recognise a built-in layout by its columns; of several, the one whose columns include those of the others."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    fitting = [one for one in built_in().values() if one.needs and _fits(one, rows, names)]
    best = [one for one in fitting if all({*one.needs} >= {*other.needs} for other in fitting)]
    if fitting and not best:
        either = " or ".join(one.layout for one in fitting)
        raise InputError(f"{where}: could be read as {either}. Choose one with --layout NAME.")
    return best[0] if best else None


def _fits(layout: LayoutMap, rows: Rows, names: Sequence[str]) -> bool:
    def there(path: str) -> float:
        either = [resolved(one, names) for one in path.split("|")]
        return sum(any(dig(row, one) is not None for one in either) for row in rows) / len(rows)

    if any(there(path) < 0.5 for path in layout.needs):
        return False
    return not any(there(path) >= RARE for path in layout.without)


def _completed(given: LayoutMap, columns: Columns, where: str) -> LayoutMap:
    """Complete a layout: its own parts, and the parts that are found."""
    columns.drop(paths_of(given))
    responses = given.responses if given.responses is not None else responses_of(columns, where)
    verdicts = given.verdicts if given.verdicts is not None else verdicts_of(columns, responses)
    fields = _fields(given, columns, responses, verdicts)
    labelled = bool(fields.get("label"))
    prompt = given.prompt or prompt_of(columns, responses, where, labelled=labelled)
    if given.prompt is not None and "last_turn" not in given.prompt.model_fields_set:
        prompt = prompt.model_copy(update={"last_turn": last_turn(responses, labelled=labelled)})
    update = {"prompt": prompt, "responses": responses, "verdicts": verdicts, **fields}
    found = given.model_copy(update=update)
    return found.model_copy(update={"layout": found.layout or _name(found, columns)})


_KINDS = {"tags": ("text", "texts"), "weight": ("number",), "split": ("text",)}
_OF_PAIRS = ("margin", "probability")
_OF_SIDES = {"tie": ("text", "boolean")}
_OF_VERDICTS = ("annotator", "strength", "rationale", "order")


def _fields(
    given: LayoutMap, columns: Columns, responses: Sequence[ResponseMap], verdicts: Sequence[VerdictMap]
) -> Fields:
    """Find the columns of the other fields whose values fit; given ones are kept."""
    found: Fields = {}
    beside = [one for one in responses if one.column and one.kind != "reference"]
    if len(responses) <= 1 and not any(one.each for one in responses) and (label := label_of(columns)):
        found["label"] = (label,)  # it is one of the response's attributes too
    if len(beside) <= 1 and not any(one.kind == "rejected" for one in responses) and (model := model_of(columns)):
        found["model"] = (columns.take(model).path,)
    kinds = dict(_KINDS)
    two = len(beside) == 2
    if two or columns.every.keys() >= _BY_ID:
        kinds |= dict.fromkeys(_OF_PAIRS, ("number",))
    if any(one.kind == "rejected" for one in responses):
        kinds |= _OF_SIDES
    if two or verdicts:
        kinds |= dict.fromkeys(_OF_VERDICTS, ("text", "number"))
    for slot, allowed in kinds.items():
        if path := columns.first(slot, *allowed):
            found[slot] = (columns.take(path).path,)
    found["tools"] = tuple(columns.take(path).path for path in [*columns.named("tools")])
    references = [
        *columns.named("reference", lambda column: column.holds("text", "number", "texts", "objects", "list")),
        *columns.named("references", lambda column: column.holds("texts", "text", "objects")),
    ]
    columns.drop(references)
    found["references"] = tuple(dict.fromkeys(references))
    return found | {name: getattr(given, name) for name in found if getattr(given, name)}


def _check(found: LayoutMap, given: LayoutMap, columns: Columns, where: str) -> None:
    """Refuse a layout without a prompt, or with half a pair.

    Raises:
        InputError: it lacks a prompt or a side; the message lists the columns.
    """
    prompt = found.prompt
    assert prompt is not None
    asked = [path for field in PROMPT_PATHS[:4] for path in getattr(prompt, field)]
    if given.prompt is not None and asked and not any(columns.values_at(path) for path in asked):
        raise InputError(f"{where}: nothing to read as {found.layout}.\n{columns}")
    if not (asked or prompt.shared or columns.every.keys() >= _BY_ID):
        raise InputError(
            f"{where}: no column holds a prompt. Rename one to prompt, define a layout with --layout FILE.yaml, "
            f"or join the file with the prompts (--join FILE --on COLUMN).\n{columns}\n"
            f"Layouts known: {', '.join(built_in())}."
        )
    sides = {one.kind for one in found.responses or () if one.kind in ("chosen", "rejected")}
    read = {path for field in PROMPT_PATHS for path in getattr(prompt, field)}
    rest = [path for path, one in columns.left.items() if one.holds("text") and not one.is_numeric and path not in read]
    if len(sides) == 1 and prompt.last_turn != "chosen" and rest:
        (side,) = sides
        other = "rejected" if side == "chosen" else "chosen"
        raise InputError(
            f"{where}: there is a {side} response but no {other} one, and {', '.join(rest)} is not read: rename it to "
            f"{other}, or leave it out with --ignore {rest[0]}.\n{columns}"
        )


def _with_names(layout: LayoutMap, names: Sequence[str]) -> LayoutMap:
    """Spell a layout's paths like the file's columns."""

    def rewritten(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(rewritten(one) for one in value)
        if isinstance(value, str):
            return resolved(value, names)
        if isinstance(value, PromptMap | ResponseMap | VerdictMap):
            fields = {*PROMPT_PATHS, "column", "each"} & value.model_fields_set
            return value.model_copy(update={name: rewritten(getattr(value, name)) for name in fields})
        return value

    fields = layout.model_fields_set - {"layout", "about", "needs", "without", "refuse", "drop", "example", "reads_as"}
    return layout.model_copy(update={name: rewritten(getattr(layout, name)) for name in fields})


def _name(layout: LayoutMap, columns: Columns) -> str:
    """Name a detected layout by the form of its prompt."""
    prompt = layout.prompt
    assert prompt is not None
    if prompt.shared and not prompt.turns:
        texts = [text for one in layout.responses or () for path in one.column for text in columns.every[path].texts]
        return "transcript" if any(transcript(text) for text in texts) else "implicit-prompt"
    if prompt.turns:
        name = plain_name(prompt.turns[0].rpartition(".")[2])
        if name in ("context", "contextmessages"):
            return "context_messages"
        if name == "prompt":
            return "conversation"
        lists = [value for value in columns.every[prompt.turns[0]].values if isinstance(value, list) and value]
        return "sharegpt" if any("from" in one[0] for one in lists if isinstance(one[0], Mapping)) else "messages"
    if prompt.alternate or not prompt.text:
        return "messages" if prompt.alternate else "candidate-ids"
    name = plain_name(prompt.text[0].rpartition(".")[2])
    known = {"instruction": "instruction", "text": "text", "question": "question", "problem": "question"}
    return known.get(name, "prompt")
