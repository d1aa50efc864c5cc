"""Files that a trainer wants beside the data, as data.

`{name}`, `{path}` and `{split}` stand for the export's own, the name of a column in braces for the column: where the
export does not have it, what names it is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import yaml

from prefdata.storage.atomic import write_file


def write_beside(files: Mapping[str, Any], path: Path, to: Path, splits: Sequence[str], columns: Sequence[str]) -> None:
    """Write the files of a layout into `path`, as they are for the folder `to`; a key with {split} is one for each."""
    names = {**{column: column for column in columns}, "name": to.name, "path": str(to)}
    for name, content in files.items():
        filled = _filled(content, names, splits)
        if name.endswith(".json"):
            text = json.dumps(filled, indent=2, ensure_ascii=False) + "\n"
        else:
            text = yaml.safe_dump(filled, sort_keys=False, allow_unicode=True)
        write_file(path / name, partial(_put, text.encode()))


def _put(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def _filled(value: Any, names: Mapping[str, str], splits: Sequence[str]) -> Any:
    if isinstance(value, str):
        for name, text in names.items():
            value = value.replace(f"{{{name}}}", text)
        return value
    if isinstance(value, list):
        return [_filled(item, names, splits) for item in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key, item in value.items():
        for split in splits if "{split}" in key else [None]:
            of_split = names if split is None else {**names, "split": split}
            value = _filled(item, of_split, splits)
            if not (isinstance(value, str) and _UNKNOWN.fullmatch(value)):
                found[_filled(key, of_split, splits)] = value
    return found


_UNKNOWN = re.compile(r"\{\w+\}")
