"""Detection of the columns of the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prefdata.errors import InputError
from prefdata.formats.columns import Column, Columns, kind_of
from prefdata.formats.detect_responses import is_whole
from prefdata.formats.layout_maps import LastTurn, PromptMap, ResponseMap
from prefdata.formats.names import plain_name
from prefdata.formats.transcripts import transcript

_STRONG = ("prompt", "instruction", "question", "query")
"""Names of the request that always win."""


def prompt_of(columns: Columns, responses: Sequence[ResponseMap], where: str, *, labelled: bool) -> PromptMap:
    """Find the prompt of a file whose responses were found.

    Raises:
        InputError: two columns hold different prompts.
    """
    turns = list(dict.fromkeys(columns.named("turns", lambda column: column.is_conversation)))
    request = [path for path in columns.named("request", _is_request) if path not in turns or _is_both(columns, path)]
    shared = _hold_prompt(columns, responses)
    alternate = list(columns.named("alternate", lambda column: column.holds("texts")))
    # Columns that few rows have are read only if there are no others.
    turns, request, alternate = _common(columns, turns, request, alternate, shared=shared)
    if all(columns.left[path].is_rare for path in (*turns, *request, *alternate)) and not shared:
        found = _alone(columns)
        turns, request = found if any(found) else (turns, request)
    if not (turns or request or shared or alternate):
        shared = {"chosen", "rejected"} <= {one.kind for one in responses}  # the words that both begin with
    request = _one_request(columns, request, where)
    history = columns.first("history", "list", "conversations", "turns")
    if history in turns and len(turns) + len(request) > 1:
        turns.remove(history)
    followed = bool(request) and not turns
    then = columns.named("addition", lambda column: column.is_text)
    return PromptMap(
        turns=tuple(turns),
        text=tuple(request),
        alternate=tuple(alternate[:1]) if not (turns or request or shared) else (),
        then=tuple(path for path in then if followed and path not in request),
        system=tuple(columns.named("system", lambda column: column.holds("text", "turn", "object"))),
        history=(history,) if followed and history is not None else (),
        shared=shared,
        last_turn=last_turn(responses, labelled=labelled),
    )


def _common(columns: Columns, *found: list[str], shared: bool) -> Iterator[list[str]]:
    """Leave out the columns that few rows have, unless there are no others."""
    rare = not shared and all(columns.left[path].is_rare for paths in found for path in paths)
    return ([path for path in paths if rare or not columns.left[path].is_rare] for paths in found)


def _is_request(column: Column) -> bool:
    return column.is_text or (column.is_conversation and bool(column.kinds["text"]))


def _is_both(columns: Columns, path: str) -> bool:
    """Tell whether a column of conversations also has rows with plain texts."""
    return any(not transcript(text) and kind_of(text) == "text" for text in columns.left[path].texts)


def last_turn(responses: Sequence[ResponseMap], *, labelled: bool) -> LastTurn:
    """Decide what a last turn of the assistant is: a reference only if no column says otherwise."""
    kinds = {one.kind for one in responses}
    if kinds == {"rejected"}:
        return "chosen"
    if labelled:
        return "prompt" if responses else "response"
    return "prompt" if kinds & {"chosen", "rejected"} else "reference"


def _hold_prompt(columns: Columns, responses: Sequence[ResponseMap]) -> bool:
    """Tell whether responses are whole conversations: most of them, since one may quote a transcript."""
    paths = [path for one in responses if one.kind != "reference" for path in one.column if path in columns.every]
    whole = [is_whole(value) for path in paths for value in columns.every[path].values if value is not None]
    return 2 * sum(whole) > len(whole)


def _alone(columns: Columns) -> tuple[list[str], list[str]]:
    """Find the conversation or text that is the prompt if no column has a better name."""

    def fits(column: Column) -> bool:
        return column.is_text or column.is_conversation

    found = [*columns.named("request_alone", fits), *columns.named("last_resort", fits)]
    found = sorted(found, key=lambda path: columns.left[path].is_rare)[:1]
    turns = [path for path in found if columns.left[path].is_conversation]
    return turns, [path for path in found if path not in turns]


def _one_request(columns: Columns, paths: list[str], where: str) -> list[str]:
    """Choose the columns of the request: strong names win over weak ones, and strong ones have to agree."""
    strong = [path for path in paths if plain_name(path.rpartition(".")[2]) in _STRONG]
    kept = strong or paths[:1]
    for other in kept[1:]:
        pairs = zip(columns.every[kept[0]].values, columns.every[other].values, strict=False)
        if any(str(one).strip() != str(two).strip() for one, two in pairs):
            raise InputError(
                f"{where}: the prompt could be {kept[0]} or {other}, which differ. Leave one out with "
                f"--ignore {other}, or define a layout with --layout FILE.yaml.\n{columns}"
            )
    return kept
