"""Layouts as data: the columns of a row's prompt, responses and verdicts.

A layout is a YAML file of the keys below; the built-in ones are such files (`maps/`). Values are paths into a row
(`annotations.helpfulness.Rating`; dots are nested keys, a number an index of a list, * all elements) or texts with
paths in braces (`response_{better_response_id}`), which name a column by another's value. A layout never runs
code, so that one from an untrusted source is safe.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from prefdata.errors import InputError, UsageError, did_you_mean
from prefdata.formats.map_files import map_names, read_map, read_map_file
from prefdata.formats.records import Kind


def _listed(value: Any) -> Any:
    """Wrap a single value in a list; None and an empty text become an empty list."""
    if value is None or value == "":
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)


Paths = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""Columns to try in this order: the first that is not empty is read."""

Cast = Literal[
    "words",
    "one-two",
    "zero-one",
    "one-zero",
    "index",
    "negative-first",
    "positive-first",
    "probability",
    "scores",
    "one-hot",
    "numbers",
]
LastTurn = Literal["reference", "response", "chosen", "prompt"]


class _Map(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PromptMap(_Map):
    """Columns of the prompt.

    `turns` hold a conversation, `text` a request or a transcript. With `shared` the prompt is the common start of the
    whole conversations in the chosen and rejected columns.
    """

    turns: Paths = Field((), description="Conversations: lists of turns, also as JSON text, and transcripts.")
    text: Paths = Field((), description="The text of the request.")
    alternate: Paths = Field((), description="A list of texts, the user's and the assistant's in turn.")
    texts: Paths = Field((), description="A list of the user's texts: the responses are lists of as many.")
    then: Paths = Field((), description="Texts that follow the request, each after a blank line.")
    system: Paths = Field((), description="The system message.")
    history: Paths = Field((), description="Earlier rounds: a list of [request, response].")
    shared: bool = Field(False, description="Whole conversations in chosen and rejected hold the prompt.")
    first_turn: bool = Field(False, description="Of a list of texts the first; the others are kept as later_turns.")
    last_turn: LastTurn = Field(
        "reference",
        description="What a last turn of the assistant is: a reference, the response, or part of the prompt.",
    )


PROMPT_PATHS = ("turns", "text", "alternate", "texts", "then", "system", "history")
"""The fields of a prompt's map that are paths."""


class ResponseMap(_Map):
    """Column of a response, or with `each` of a list of them."""

    column: Paths = Field((), description="A text, a message, a conversation; for a side also a list of texts.")
    each: Paths = Field((), description="A list of texts, or of objects with a `text`.")
    text: Paths = Field((), description="With `each`: the key of an object's response.")
    kind: Kind = Field("response", description="chosen, rejected, reference or response.")
    model: Paths = Field((), description="Who wrote it; with `each` a key of the object, or a list beside.")
    label: Paths = Field((), description="Whether it is wanted on its own.")
    rank: Paths = Field((), description="Its rank, the lowest best.")
    best_first: bool = Field(False, description="With `each`: the list is in order, the best first.")
    attributes: dict[str, str] = Field(
        {}, description="Name: its other ratings and facts, for --score and as its metadata."
    )
    names: Paths = Field((), description="What verdicts call it, besides its column and that column's last word.")

    @property
    def paths(self) -> list[str]:
        """List every path that it reads."""
        return [*self.column, *self.each, *self.model, *self.label, *self.rank, *self.attributes.values()]

    @model_validator(mode="after")
    def _one_place(self) -> ResponseMap:
        if bool(self.column) == bool(self.each):
            raise ValueError("a response has either column or each")
        return self


class VerdictMap(_Map):
    """Column of a verdict: which response is better."""

    column: Paths = Field((), description="The verdict; a list is one of several annotators.")
    better: str | None = Field(None, description="The better response's column, with paths in braces.")
    cast: Cast = Field("words", description="How the verdict is read; `numbers` asks for --one-means.")
    values: dict[str, Literal["first", "second", "tie", "none"]] = Field({}, description="Verdicts by their own words.")
    annotator: str | None = Field(None, description="The annotator where no column is: a text, with paths in braces.")
    name: str | None = Field(None, description="What is judged, where rows judge several things: for --verdict.")


class Drop(_Map):
    """Rows that are left out, and why."""

    column: str
    values: Annotated[tuple[Any, ...], BeforeValidator(_listed)]
    reason: str


class LayoutMap(_Map):
    """A layout.

    Attributes:
        layout: its name.
        about: what it is, in a line.
        needs: columns by which it is recognised, all of them; a layout without `needs` is read only by name.
        without: columns that it must not have.
        refuse: why rows like these are not read.
        prompt, responses, verdicts: as above. Parts that are not given are found by the general vocabulary.
    """

    layout: str
    about: str = ""
    needs: Paths = ()
    without: Paths = ()
    refuse: str | None = None
    prompt: PromptMap | None = None
    responses: tuple[ResponseMap, ...] | None = None
    verdicts: tuple[VerdictMap, ...] | None = None
    references: Paths = ()
    tags: Paths = ()
    split: Paths = ()
    tools: Paths = ()
    label: Paths = ()
    model: Paths = ()
    weight: Paths = ()
    margin: Paths = ()
    probability: Paths = ()
    tie: Paths = ()
    annotator: Paths = ()
    strength: Paths = ()
    rationale: Paths = ()
    order: Paths = ()
    ignore: Paths = ()
    drop: tuple[Drop, ...] = ()
    example: Annotated[tuple[dict[str, Any], ...], BeforeValidator(_listed)] = ()
    reads_as: str | None = None

    @property
    def is_general(self) -> bool:
        """Whether it has only a name, and is read by the general vocabulary."""
        return self.prompt is None and self.responses is None and self.verdicts is None


OF_PROMPTS = ("references", "tags", "split", "tools")
OF_VERDICTS = ("annotator", "strength", "rationale", "order")
FIELDS = (*OF_PROMPTS, "label", "model", "weight", "margin", "probability", "tie", *OF_VERDICTS)
"""The fields of a layout that are paths."""


def paths_of(layout: LayoutMap) -> list[str]:
    """List every path that a layout takes for itself; a label stays one of the response's attributes."""
    return [
        *prompt_paths(layout),
        *response_paths(layout),
        *verdict_paths(layout),
        *(path for field in FIELDS if field not in ("label", *OF_PROMPTS) for path in getattr(layout, field)),
    ]


def prompt_paths(layout: LayoutMap) -> list[str]:
    """List the paths of the prompt, and of its references."""
    prompt = layout.prompt or PromptMap()
    found = [path for field in PROMPT_PATHS for path in getattr(prompt, field)]
    found += [path for field in OF_PROMPTS for path in getattr(layout, field)]
    return found + [path for one in layout.responses or () if one.kind == "reference" for path in one.paths]


def response_paths(layout: LayoutMap) -> list[str]:
    """List the paths of the responses."""
    return [path for one in layout.responses or () if one.kind != "reference" for path in one.paths]


def verdict_paths(layout: LayoutMap) -> list[str]:
    """List the paths of the verdicts."""
    texts = [text for one in layout.verdicts or () for text in (one.better, one.annotator) if text and "{" in text]
    return [*(path for one in layout.verdicts or () for path in one.column), *texts]


def parse_map(value: Any, name: str) -> LayoutMap:
    """Check a map.

    Raises:
        InputError: it has unknown keys or wrong values; all are named, with their paths.
    """
    if not isinstance(value, dict):
        raise InputError(f"{name}: a layout is a mapping of prompt, responses, verdicts, …; see docs/formats.md.")
    try:
        return LayoutMap(**{"layout": Path(name).stem, **value})
    except ValidationError as error:
        raise InputError(f"{name}: {'; '.join(_problem(one) for one in error.errors())}.") from None


def _problem(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f'unknown key "{place}"'
    return f"{place}: {error['msg'].removeprefix('Value error, ')}"


@cache
def built_in() -> dict[str, LayoutMap]:
    """Load the built-in layouts, by name."""
    maps = (parse_map(read_map(name), name) for name in map_names())
    return {one.layout: one for one in maps}


def named_map(name: str) -> LayoutMap:
    """Find a layout by name, by file, or as a mapping in braces.

    Raises:
        UsageError: no layout has that name.
        InputError: the file cannot be read, or is not a layout.
    """
    if name.endswith((".yaml", ".yml")) or name.lstrip().startswith("{"):
        return parse_map(read_map_file(name), "layout" if name.lstrip().startswith("{") else name)
    if name not in built_in():
        raise UsageError(f"--layout: unknown layout {name!r}.{did_you_mean(name, built_in())}")
    return built_in()[name]
