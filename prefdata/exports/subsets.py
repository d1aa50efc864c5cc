"""Several exports in one repository: a folder for each subset, and one card for `datasets.load_dataset(DIR, SUBSET)`.

Each subset is an export of its own, with its own card. The folder's card is made from those, at each export.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from prefdata.errors import InputError
from prefdata.exports.card import front_of, size_category
from prefdata.storage.atomic import atomic_write
from prefdata.storage.run import Artifact

CARD = "README.md"

_MARK = "<!-- Made by prefdata from the cards of the subsets; {} -->\n"


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot hold subsets.

    Raises:
        InputError: it is an export itself, or somebody else's card is there.
    """
    if Artifact(folder).state != "absent":
        raise InputError(f"{folder} is an export without subsets: choose another folder, or leave out --subset.")
    card = folder / CARD
    if card.exists() and not _is_ours(card.read_text("utf-8")):
        raise InputError(f"{card} was not written by prefdata, or was changed since: rename it to keep it.")


def write_card(folder: Path) -> None:
    """Write the card of all subsets that are there."""
    fronts = {name: front_of(folder / name / CARD) for name in subsets(folder)}
    text = _text(folder.name, fronts)
    atomic_write(folder / CARD, lambda file: file.write((text + _mark(text)).encode()))


def subsets(folder: Path) -> list[str]:
    """Return the names of the subsets that are there and finished."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and _is_export(path))


def written_files(folder: Path) -> list[str]:
    """Return what export wrote into a folder, by names relative to it: those of all subsets, or of the one export."""
    return list(_files(folder))


def _files(folder: Path) -> Iterator[str]:
    if success := Artifact(folder).success():
        yield from success.files or {}
        return
    yield CARD
    for name in subsets(folder):
        yield from (f"{name}/{file}" for file in _files(folder / name))


def _is_export(path: Path) -> bool:
    success = Artifact(path).success()
    return success is not None and success.report.step == "export"


def _text(title: str, fronts: dict[str, dict[str, Any]]) -> str:
    licenses = {front["license"] for front in fronts.values()}
    rows = {name: _rows(one) for name, one in fronts.items()}
    front = {
        "license": licenses.pop() if len(licenses) == 1 else "unknown",
        "pretty_name": title,
        "size_categories": [size_category(sum(rows.values()))],
        "tags": list(dict.fromkeys(tag for one in fronts.values() for tag in one["tags"])),
        "dataset_info": [{"config_name": name, **one["dataset_info"]} for name, one in fronts.items()],
        "configs": [_config(name, one["configs"][0]) for name, one in fronts.items()],
    }
    lines = [f"| [{name}]({name}/{CARD}) | {rows[name]:,} | {_columns(one)} |" for name, one in fronts.items()]
    table = "\n".join(["| subset | rows | columns |", "|---|---|---|", *lines])
    first = next(iter(fronts))
    shown = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=120)
    example = f'from datasets import load_dataset\n\nrows = load_dataset("path/to/{title}", "{first}")'
    return f"---\n{shown}---\n\n# {title}\n\n{table}\n\n```python\n{example}\n```\n\n"


def _config(name: str, config: dict[str, Any]) -> dict[str, Any]:
    files = [{**one, "path": f"{name}/{one['path']}"} for one in config["data_files"]]
    return {"config_name": name, "data_files": files}


def _rows(front: dict[str, Any]) -> int:
    return sum(split["num_examples"] for split in front["dataset_info"]["splits"])


def _columns(front: dict[str, Any]) -> str:
    return ", ".join(feature["name"] for feature in front["dataset_info"]["features"])


def _mark(text: str) -> str:
    return _MARK.format(hashlib.sha256(text.encode()).hexdigest()[:16])


def _is_ours(card: str) -> bool:
    text, _, last = card.rpartition("<!--")
    return f"<!--{last}" == _mark(text)
