"""Output of --dry-run: the layout of each input, and its first rows as they are read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import yaml

from prefdata.errors import InputError
from prefdata.formats.layout_maps import LayoutMap
from prefdata.formats.reading import Reader
from prefdata.formats.records import Record, Response

ROWS = 3
"""Number of records shown per input."""

_LONGEST = 400


def preview(readers: Sequence[Reader]) -> str:
    """Show the layout of each input, as the key map that --layout takes, and its first records.

    Raises:
        InputError: an input cannot be read, or no row of it can be used.
    """
    shown: list[str] = []
    for reader in readers:
        records = [record for _, record in islice(reader.records(), ROWS)]
        if not records:
            reader.bad.refuse(any_left=False)
            raise InputError(f"{', '.join(reader.inputs)}: no row can be used.")
        shown += [f"{name}: layout {found.layout}\n{_as_yaml(found)}" for name, found in reader.layouts.items()]
        shown += ["\n".join(_lines(record)) for record in records]
        shown += [f"{row}" for row in reader.bad.rows]
    return "\n".join(shown)


def _as_yaml(layout: LayoutMap) -> str:
    found = layout.model_dump(mode="json", exclude_defaults=True, exclude={"example", "about", "reads_as", "needs"})
    return "".join(f"  {line}\n" for line in yaml.safe_dump(found, sort_keys=False, allow_unicode=True).splitlines())


def _lines(record: Record) -> Iterator[str]:
    yield f"row {record.row}:"
    for message in record.messages:
        yield f"  {_message(message)}"
    if record.tools:
        yield f"  tools: {_short(record.tools)}"
    for number, response in enumerate(record.responses):
        yield f"  {response.kind} {number}{_said(response)}: {_short(response.message or response.text)}"
    for verdict in record.relations():
        better = "ties with" if verdict.probability == 0.5 else "over"
        first, second = (
            (verdict.first, verdict.second) if verdict.probability >= 0.5 else (verdict.second, verdict.first)
        )
        by = f" (by {verdict.annotator})" if verdict.annotator else ""
        yield f"  says: {first} {better} {second}{by}"
    for text, source in record.references:
        yield f"  reference ({source or 'last turn'}): {_short(text)}"
    for name in ("split", "tags", "metadata"):
        if value := getattr(record, name):
            yield f"  {name}: {_short(json.dumps(value, ensure_ascii=False) if name == 'metadata' else value)}"


def _message(message: dict[str, Any]) -> str:
    more = "".join(f" [{name}: {_short(value)}]" for name, value in message.items() if name not in ("role", "content"))
    return f"{message['role']}: {_short(message['content'])}{more}"


def _said(response: Response) -> str:
    parts = [
        *([f"by {response.model}"] if response.model else []),
        *([f"label {'good' if response.label else 'bad'}"] if response.label is not None else []),
        *([f"rank {response.rank:g}"] if response.rank is not None else []),
    ]
    return f" ({', '.join(parts)})" if parts else ""


def _short(value: Any) -> str:
    text = "".join(
        c if c.isprintable() else f"\\x{ord(c):02x}" if c not in "\n\t\r" else repr(c)[1:-1] for c in str(value)
    )
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
