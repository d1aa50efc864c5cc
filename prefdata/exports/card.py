"""The dataset card: a README.md that `datasets` reads and a person can check.

The YAML in front is what the hub and `datasets` go by (data files by split, features, counts); the text says what is in
the columns and how every row came to be, from the lineage of the tables behind it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from prefdata.errors import InputError
from prefdata.exports.shards import Split
from prefdata.storage.atomic import write_file
from prefdata.storage.report import Report
from prefdata.storage.run import Lineage

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_HOLD = {"candidates": "answers", "selections": "selection", "pairs": "preferences", "unpaired": "labels"}

History = Sequence[tuple[str, Lineage]]
"""The tables behind the rows, by name, the oldest first."""


@dataclass(frozen=True)
class Card:
    """A dataset's card.

    `folder` is where the shards lie, with the split's name for `{split}`; `license` is an identifier of the hub
    (`apache-2.0`), "unknown" unless given, because prompts and models bring their own.
    """

    title: str
    about: str
    tags: tuple[str, ...]
    folder: str = "data"
    license: str | None = None

    def write(
        self, path: Path, schema: pa.Schema, splits: Mapping[str, Split], history: History, report: Report
    ) -> None:
        """Write the card as the file `path`."""
        text = self.text(schema, splits, history, report)
        write_file(path, lambda file: file.write(text.encode()))

    def text(self, schema: pa.Schema, splits: Mapping[str, Split], history: History, report: Report) -> str:
        """Return the text of README.md; `report` counts rows of the table that was exported."""
        front = yaml.safe_dump(self._front(schema, splits, history), sort_keys=False, allow_unicode=True, width=120)
        parts = [
            f"---\n{front}---",
            f"# {self.title}",
            f"{self.about} Made by prefdata from the table `{report.unit}`.",
            "```python\nfrom datasets import load_dataset\n\n"
            f'rows = load_dataset("path/to/{self.title}", split="{next(iter(splits))}")\n```',
            _counts(splits, report),
            _columns(schema),
            _history(history),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _front(self, schema: pa.Schema, splits: Mapping[str, Split], history: History) -> dict[str, Any]:
        rows = sum(split.rows for split in splits.values())
        synthetic = ["synthetic"] if any(lineage.step == "sample" for _, lineage in history) else []
        return {
            "license": self.license or "unknown",
            "pretty_name": self.title,
            "size_categories": [size_category(rows)],
            "tags": ["prefdata", *synthetic, *self.tags],
            "dataset_info": {
                "features": [_feature(field) for field in schema],
                "splits": [
                    {"name": name, "num_bytes": split.bytes, "num_examples": split.rows}
                    for name, split in splits.items()
                ],
                "download_size": sum(split.file_bytes for split in splits.values()),
                "dataset_size": sum(split.bytes for split in splits.values()),
            },
            "configs": [
                {
                    "config_name": "default",
                    "data_files": [
                        {"split": name, "path": f"{self.folder.format(split=name)}/{name}-*"} for name in splits
                    ],
                }
            ],
        }


def size_category(rows: int) -> str:
    """Return the hub's name for so many rows: `n<1K`, `1K<n<10K`, …."""
    return next((name for limit, name in _SIZES if rows < limit), "n>1M")


def front_of(card: Path) -> dict[str, Any]:
    """Read the YAML in front of a card that export wrote.

    Raises:
        InputError: it was changed, so that what the hub needs is not there.
    """
    try:
        front = yaml.safe_load(card.read_text("utf-8").split("---\n")[1])
    except (yaml.YAMLError, IndexError):
        front = None
    if not isinstance(front, dict) or not {"license", "tags", "dataset_info", "configs"} <= front.keys():
        raise InputError(f"{card} was changed, and has no YAML in front that can be read: export it again.")
    return front


def _feature(field: pa.Field) -> dict[str, Any]:
    """Return a column in the card's own notation for features."""
    if pa.types.is_struct(field.type):
        return {"name": field.name, "struct": _items(field.type)}
    if pa.types.is_list(field.type):
        return {"name": field.name, "list": _items(field.type.value_type)}
    return {"name": field.name, "dtype": _dtype(field.type)}


def _items(kind: pa.DataType) -> Any:
    if pa.types.is_list(kind):
        return {"list": _items(kind.value_type)}
    return [_feature(part) for part in kind] if pa.types.is_struct(kind) else _dtype(kind)


def _dtype(kind: pa.DataType) -> str:
    return {"double": "float64", "extension<arrow.json>": "json"}.get(str(kind), str(kind))


def _counts(splits: Mapping[str, Split], report: Report) -> str:
    lines = ["| split | rows | files | size |", "|---|---|---|---|"]
    lines += [f"| {name} | {s.rows:,} | {s.files} | {s.file_bytes / 1e6:,.1f} MB |" for name, s in splits.items()]
    dropped = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in report.dropped.items())
    counts = f"Of {report.rows_in:,} {report.unit}, {report.rows_out:,} are here" + (
        f" ({dropped})." if dropped else "."
    )
    return "\n".join([*lines, "", counts, "The splits are by prompt: no prompt is in both."])


def _columns(schema: pa.Schema) -> str:
    lines = ["## Columns", "", "| column | type | what |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {f.name} | {_kind(f.type)} | {_said(f)} |" for f in schema)])


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {_kind(kind.value_type)}"
    if pa.types.is_struct(kind):
        return f"{{{', '.join(field.name for field in kind)}}}"
    return _dtype(kind)


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
