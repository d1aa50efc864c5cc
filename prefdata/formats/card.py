"""The dataset card: a README.md that `datasets` reads and a person can check.

The YAML in front is what the hub and `datasets` go by (data files by split, features, counts); the text says what is in
the columns and how every row came to be, from the lineage of the tables behind it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import yaml

from prefdata.formats.dialects import Dialect
from prefdata.storage.report import Report
from prefdata.storage.run import Lineage

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_HOLD = {"candidates": "answers", "selections": "selection", "pairs": "preferences", "unpaired": "labels"}


@dataclass(frozen=True)
class Split:
    """One split as it was written: rows, bytes in memory, bytes of its Parquet files, and how many files."""

    rows: int
    bytes: int
    file_bytes: int
    files: int


def dataset_card(
    title: str,
    dialect: Dialect,
    schema: pa.Schema,
    splits: Mapping[str, Split],
    history: Sequence[tuple[str, Lineage]],
    report: Report,
    *,
    license: str | None = None,
) -> str:
    """The text of README.md.

    `report` counts rows of the table that was exported. `history` has the tables behind them, by name, the oldest
    first; `license` is an identifier of the hub (`apache-2.0`), "unknown" unless given, because prompts and models
    bring their own.
    """
    front = yaml.safe_dump(
        _front(title, dialect, schema, splits, license), sort_keys=False, allow_unicode=True, width=120
    )
    parts = [
        f"---\n{front}---",
        f"# {title}",
        f"{dialect.description} Made by prefdata from the table `{report.unit}`.",
        "```python\nfrom datasets import load_dataset\n\n"
        f'rows = load_dataset("path/to/{title}", split="{next(iter(splits))}")\n```',
        _counts(splits, report),
        _columns(schema),
        _history(history),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(
    title: str, dialect: Dialect, schema: pa.Schema, splits: Mapping[str, Split], license: str | None
) -> dict[str, Any]:
    rows = sum(split.rows for split in splits.values())
    return {
        "license": license or "unknown",
        "pretty_name": title,
        "size_categories": [next((name for limit, name in _SIZES if rows < limit), "n>1M")],
        "tags": ["prefdata", "synthetic", *dialect.tags],
        "dataset_info": {
            "features": [_feature(field) for field in schema],
            "splits": [
                {"name": name, "num_bytes": split.bytes, "num_examples": split.rows} for name, split in splits.items()
            ],
            "download_size": sum(split.file_bytes for split in splits.values()),
            "dataset_size": sum(split.bytes for split in splits.values()),
        },
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"data/{name}-*"} for name in splits],
            }
        ],
    }


def _feature(field: pa.Field) -> dict[str, Any]:
    """A column in the card's own notation for features."""
    if pa.types.is_list(field.type):
        return {"name": field.name, "list": _items(field.type.value_type)}
    return {"name": field.name, "dtype": _dtype(field.type)}


def _items(kind: pa.DataType) -> Any:
    if pa.types.is_list(kind):
        return {"list": _items(kind.value_type)}
    return [_feature(part) for part in kind] if pa.types.is_struct(kind) else _dtype(kind)


def _dtype(kind: pa.DataType) -> str:
    return {"double": "float64"}.get(str(kind), str(kind))


def _counts(splits: Mapping[str, Split], report: Report) -> str:
    lines = ["| split | rows | files | size |", "|---|---|---|---|"]
    lines += [f"| {name} | {s.rows:,} | {s.files} | {s.file_bytes / 1e6:,.1f} MB |" for name, s in splits.items()]
    dropped = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in report.dropped.items())
    told = f"Of {report.rows_in:,} {report.unit}, {report.rows_out:,} are here" + (f" ({dropped})." if dropped else ".")
    return "\n".join([*lines, "", told, "The splits are by prompt: no prompt is in both."])


def _columns(schema: pa.Schema) -> str:
    lines = ["## Columns", "", "| column | type | what |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {f.name} | {_kind(f.type)} | {_said(f)} |" for f in schema)])


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {_kind(kind.value_type)}"
    return "messages {role, content}" if pa.types.is_struct(kind) else _dtype(kind)


def _said(field: pa.Field) -> str:
    return str((field.metadata or {}).get(b"description", b"").decode())


def _history(history: Sequence[tuple[str, Lineage]]) -> str:
    if not history:
        return ""
    parts = ["## How it was made"]
    for number, (name, lineage) in enumerate(history, 1):
        # JSON keeps line breaks inside texts escaped, so nothing in a spec can close the block.
        spec = json.dumps(lineage.spec, indent=2, ensure_ascii=False)
        table = name.partition("/")[0]
        what = _HOLD.get(table, table)
        parts.append(
            f"{number}. `{name}`: the {what}, by `prefdata {lineage.step}` "
            f"(fingerprint `{lineage.fingerprint}`; {lineage.versions_text()})\n\n```json\n{spec}\n```"
        )
    return "\n\n".join(parts)
