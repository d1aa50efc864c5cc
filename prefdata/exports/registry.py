"""Dialects out: the columns that each family of trainers reads, as data (`dialects/*.yaml`).

A dialect has a layout for each kind of rows that its trainers read: pairs, unpaired labels, demonstrations, prompts,
groups. A layout's columns are templates (`templates`), its messages are written in one way (`notation`), and files that
a trainer wants beside the data are written from `beside`. The columns that a trainer does not know are safe to leave
in, unless the dialect says `extra: false`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field

from prefdata.exports.notation import Notation
from prefdata.exports.templates import Template
from prefdata.specs.export import ExportKind, FileFormat
from prefdata.storage.schemas import TABLES

READS: dict[ExportKind, tuple[str, ...]] = {
    "pairs": ("pairs",),
    "unpaired": ("unpaired",),
    "demonstrations": ("selections", "demonstrations"),
    "groups": ("groups",),
    "prompts": ("prompts",),
    "candidates": ("candidates",),
    "scores": ("scores",),
}
"""The tables that each kind of rows is made from, the usual one first."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(_Entry):
    """A column: the template of its values, what it holds, and whether it is there only where some row has a value."""

    is_: Template = Field(alias="is")
    about: str = ""
    optional: bool = False


class Layout(_Entry):
    """The rows of one kind in a dialect; `without` names extra columns that would be read as something else."""

    about: str
    tags: tuple[str, ...]
    columns: dict[str, Column]
    messages: dict[str, Any] = {}
    beside: dict[str, Any] = {}
    without: tuple[str, ...] = ()


class Dialect(_Entry):
    """One way to hand rows to a trainer.

    Attributes:
        also: other names of the dialect, each with its kind of rows.
        files: the containers that its loader reads, the usual one first.
        folder: where the shards lie; `{split}` is the split's name.
        extra: whether columns that a trainer does not need may be there.
        messages: how messages are written; a layout may say otherwise.
    """

    name: str = Field(alias="dialect")
    about: str
    also: dict[str, ExportKind] = {}
    files: tuple[FileFormat, ...] = get_args(FileFormat)
    folder: str = "data"
    extra: bool = True
    messages: dict[str, Any] = {}
    layouts: dict[ExportKind, Layout]

    def notation(self, kind: ExportKind) -> Notation:
        """How messages are written."""
        return Notation(**{**self.messages, **self.layouts[kind].messages})

    def columns(self, kind: ExportKind, table: str, *, strict: bool) -> dict[str, Column]:
        """Return the columns of rows that are made from `table`; `strict` leaves out those that no trainer needs."""
        layout = self.layouts[kind]
        if strict or not self.extra:
            return layout.columns
        taken, held = {*layout.columns, *layout.without}, [one.is_ for one in layout.columns.values()]
        there = {
            name: one
            for name, one in extra_columns()[kind].items()
            if not isinstance(one.is_, str) or one.is_ in TABLES[table].schema.names
        }
        return layout.columns | {n: one for n, one in there.items() if n not in taken and one.is_ not in held}


def _read(name: str) -> Any:
    text = (resources.files("prefdata.exports") / "dialects" / name).read_text(encoding="utf-8")
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


@cache
def extra_columns() -> Mapping[ExportKind, dict[str, Column]]:
    """Return the columns that a person wants, by kind of rows."""
    read = _read("extra.yaml")
    return {kind: {name: Column(**one) for name, one in columns.items()} for kind, columns in read.items()}


@cache
def dialects() -> Mapping[str, Dialect]:
    """Every dialect, by name."""
    folder = resources.files("prefdata.exports") / "dialects"
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".yaml"))
    found = [Dialect(**_read(name)) for name in names if name != "extra.yaml"]
    return {one.name: one for one in found}


@cache
def named(name: str) -> tuple[Dialect, ExportKind | None]:
    """Return the dialect of that name, and the kind of rows where the name is one of its other names."""
    if name in dialects():
        return dialects()[name], None
    return next((one, one.also[name]) for one in dialects().values() if name in one.also)
