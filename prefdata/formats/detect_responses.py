"""Detection of the columns of responses: two sides, numbered columns, lists, or one column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prefdata.errors import InputError
from prefdata.formats import casts
from prefdata.formats.columns import RESPONSE_KINDS, Column, Columns, Family
from prefdata.formats.layout_maps import ResponseMap
from prefdata.formats.messages import are_turns, conversation_within, parsed, turns_of
from prefdata.formats.names import known_names, plain_name, vocabulary, words
from prefdata.formats.records import BadRowError, Kind
from prefdata.formats.response_layouts import OBJECT_TEXTS
from prefdata.formats.transcripts import transcript

_SIDE_KINDS = (*RESPONSE_KINDS, "texts", "conversations")
_MODEL_NAMES = ("model", "source", "generator", "model_name", "model_id", "llm")

SCORE_WORDS = {"score", "scores", "rating", "ratings", "reward", "rewards", "elo", "grade", "grades"}
"""Words in names of columns of numbers of which the highest is best."""

HOW_TO_SAY = "Leave columns out with --ignore NAME, or define a layout with --layout FILE.yaml."


def responses_of(columns: Columns, where: str) -> tuple[ResponseMap, ...]:
    """Find the responses and take their columns.

    Raises:
        InputError: the columns could be read in two ways.
    """
    fitting = [one for one in columns.families if one.is_responses]
    common_numbered = any(not one.is_rare for one in fitting)
    sides_rare = all(
        columns.left[path].is_rare
        for side in ("chosen", "rejected")
        for path in columns.named(side, lambda column: _is_side(column, beside_numbered=common_numbered))
    )
    common = not sides_rare or common_numbered
    slots = ("lists", "single", "plain", *(["answered"] if label_of(columns) or model_of(columns) else []))
    common |= any(not columns.left[path].is_rare for slot in slots for path in columns.named(slot))
    common |= _has_conversations(columns)
    # Columns that few rows have are read only if there are no others.
    numbered = _numbered(columns, [one for one in fitting if not one.is_rare or not common], where)
    sides = [] if sides_rare and common else _sides(columns, beside_numbered=bool(numbered))
    found = [*sides, *numbered, *_lists(columns, rare=not common)]
    return (*found, *_single(columns, several=bool(found), rare=not common))


def _sides(columns: Columns, *, beside_numbered: bool) -> list[ResponseMap]:
    found: dict[Kind, Column] = {}
    sides: tuple[Kind, Kind] = ("chosen", "rejected")
    for side in sides:
        if path := next(columns.named(side, lambda column: _is_side(column, beside_numbered=beside_numbered)), None):
            found[side] = columns.take(path)
    rare = found.get("chosen")
    if "rejected" in found and (rare is None or (rare.is_rare and not found["rejected"].is_rare)):
        # The chosen response is then the only one, or a whole conversation.
        whole = found["rejected"].holds("turns") and any(is_whole(value) for value in found["rejected"].values)
        if path := columns.first("turns", "turns") if whole else columns.first("single", *RESPONSE_KINDS):
            found["chosen"] = columns.take(path)
        elif rare is not None and _has_conversations(columns):
            del found["chosen"]  # it ends the conversation
    return [_side(columns, side, column) for side, column in found.items()]


def _is_side(column: Column, *, beside_numbered: bool) -> bool:
    # With numbered responses, a short text names one of them.
    return column.holds(*_SIDE_KINDS) and not (beside_numbered and column.holds("text") and column.is_short)


def _side(columns: Columns, side: Kind, column: Column) -> ResponseMap:
    """Map a side, with the columns whose names contain its word."""
    own = words(column.name)
    word = next((one for one in own if one not in (*vocabulary("numbered"), "messages", "message")), own[0])
    attributes = {
        "_".join(part for part in parts if part != word): path
        for path, other in columns.left.items()
        if word in (parts := words(other.name)) and len(parts) > 1 and parts != own
    }
    columns.drop(attributes.values())
    return _entry(column, attributes, kind=side)


def _entry(column: Column, attributes: Mapping[str, str], **more: Any) -> ResponseMap:
    models = [path for name, path in attributes.items() if name in _MODEL_NAMES]
    others = {name: path for name, path in attributes.items() if path not in models}
    return ResponseMap(column=(column.path,), model=tuple(models), attributes=others, **more)


def is_whole(value: Any) -> bool:
    """Tell whether a response is a whole conversation, which begins with the prompt."""
    if isinstance(value, str):
        if written := transcript(value):
            return bool(written.turns[-1]["role"] == "assistant")
        try:
            value = parsed(value, "")
        except BadRowError:
            return False
    turns = conversation_within(value) or value
    if not are_turns(turns):
        return False
    try:
        return bool(turns_of(turns[:1])[0]["role"] != "assistant")
    except BadRowError:
        return False


def _numbered(columns: Columns, families: Iterable[Family], where: str) -> list[ResponseMap]:
    """Map responses whose columns differ in a number or a letter, with the columns of each."""
    fitting = sorted(families, key=lambda one: one.order)
    if not fitting:
        return []
    best = fitting[0]
    same = [one for one in fitting[1:] if one.order[0] == best.order[0] and one.indices == best.indices]
    if same:
        titles = [" and ".join(column.path for column in one.columns) for one in (best, same[0])]
        raise InputError(f"{where}: could be read by {titles[0]} or by {titles[1]}. {HOW_TO_SAY}")
    beside: dict[str, dict[str, str]] = {index: {} for index in best.indices}
    people = [one.rest for one in columns.families if one.is_people]
    for rest, by_index in columns.by_index:
        # An attribute of only one response keeps its full name.
        own = {*by_index} <= {*best.indices} and (len(by_index) > 1 or {*best.rest} <= {*rest})
        if own and rest != best.rest and rest not in people:
            name = "_".join(one for one in rest if one not in best.rest) or "_".join(rest)
            for index, column in by_index.items():
                beside[index].setdefault(name, column.path)
    for name in [path for path in columns.left if _is_list_of_scores(columns.left[path], len(best.indices))]:
        for place, index in enumerate(best.indices):
            beside[index][name] = f"{name}.{place}"
        columns.drop([name])
    columns.drop(path for own in beside.values() for path in own.values())
    columns.drop(column.path for column in best.columns)
    return [
        _entry(column, beside[index], names=(index,)) for index, column in zip(best.indices, best.columns, strict=True)
    ]


def _is_list_of_scores(column: Column, count: int) -> bool:
    """Tell whether a column has a list of numbers, one for each response."""
    if not column.holds("list") or not {*words(column.path)} & SCORE_WORDS or {*column.lengths.values()} != {count}:
        return False
    return all(casts.number_of(one) is not None for value in column.values for one in value)


def _lists(columns: Columns, *, rare: bool) -> list[ResponseMap]:
    def fits(column: Column) -> bool:
        if column.is_rare and not rare:
            return False
        if column.holds("texts", "conversations"):
            return plain_name(column.name) not in ("answers", "choices")  # those are accepted answers, and options
        return column.holds("objects", "turns") and _have_texts(column)

    paths = [*columns.named("lists", fits)]
    found = [_list(columns, columns.take(path)) for path in paths if path in columns.left]
    ranked = next(columns.named("plain", lambda one: one.holds("texts") and (rare or not one.is_rare)), None)
    if ranked is not None and not found:
        several = any(count > 1 for count in columns.left[ranked].lengths.values())
        found.append(ResponseMap(each=(columns.take(ranked).path,), best_first=several))
    return found


def _items(column: Column) -> list[Mapping[str, Any]]:
    lists = (value for value in column.values if isinstance(value, list))
    return [item for value in lists for item in value if isinstance(item, Mapping)]


def _have_texts(column: Column) -> bool:
    return any(key in item for item in _items(column) for key in OBJECT_TEXTS)


def _list(columns: Columns, column: Column) -> ResponseMap:
    """Map a list of responses, with the lists of the same length, and the keys of its objects."""
    beside = {path: other for path, other in columns.left.items() if _is_beside(other, column)}
    keys = list(dict.fromkeys(key for item in _items(column) for key in item))

    def named(slot: str, *more: str) -> list[str]:
        known = (*vocabulary(slot), *more)
        return [name for name in (*keys, *beside) if plain_name(name) in known]

    model, rank, label = named("model", "source", *vocabulary("models")), named("rank"), named("label", "labels")
    columns.drop(beside)
    taken = {*model, *rank, *label}
    return ResponseMap(
        each=(column.path,),
        model=tuple(model),
        rank=tuple(rank),
        label=tuple(label),
        attributes={path: path for path in beside if path not in taken},
    )


def _is_beside(other: Column, column: Column) -> bool:
    """Tell whether a column holds lists with one element for each response of `column`."""
    if not other.holds("texts", "list", "objects") or not other.is_as_long_as(column):
        return False
    if plain_name(other.name) in known_names("turns", "request", "tags", "references", "tools"):
        return False
    # Lists of one element each may be unrelated.
    telling = known_names("of_response", "models", "rank")
    return max(column.lengths.values()) > 1 or bool({plain_name(other.name), *words(other.name)} & telling)


def _single(columns: Columns, *, several: bool, rare: bool) -> list[ResponseMap]:
    """Map the only response of a row; completion, output and answer are references without a label or model column."""

    def fits(column: Column) -> bool:
        return column.holds(*RESPONSE_KINDS) and (rare or not column.is_rare)

    found = []
    if path := next(columns.named("single", fits), None):
        found.append(ResponseMap(column=(columns.take(path).path,)))
    if path := next(columns.named("plain", fits), None):
        column = columns.take(path)
        owned = not several and not found and bool(label_of(columns) or model_of(columns))
        references = columns.named("reference", lambda other: other.holds("text", "number") and not other.is_rare)
        referenced = next(references, None) is not None
        found.append(ResponseMap(column=(column.path,), kind="response" if owned or referenced else "reference"))
    if not found and not several and (label_of(columns) or model_of(columns)):
        found += [ResponseMap(column=(columns.take(path).path,)) for path in columns.named("answered", fits)]
    return found


def _has_conversations(columns: Columns) -> bool:
    """Tell whether most rows have a column of conversations, which may end with a response."""
    paths = (path for slot in ("turns", "last_resort") for path in columns.named(slot))
    return any(columns.left[path].is_conversation and not columns.left[path].is_rare for path in paths)


def label_of(columns: Columns) -> str | None:
    """Find the column that labels a response as wanted or not."""
    return next(columns.named("label", _is_label), None)


def _is_label(column: Column) -> bool:
    """Tell whether nearly all values are labels; the others are then bad rows."""
    labels = sum(casts.label_of(value) is not None for value in column.values)
    return bool(column.values) and labels > 0.75 * len(column.values) and not column.is_rare


def model_of(columns: Columns) -> str | None:
    """Find the column that names the model of a row's response."""
    return columns.first("model", "text")
