"""LLaMA-Factory's dataset_info.json: the names of a file's columns, as a key map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefdata.formats.layout_maps import LayoutMap, PromptMap, ResponseMap

NAME = "dataset_info.json"

_ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
_SHAREGPT = {"messages": "conversations"}
_SIDES = {"chosen": "chosen", "rejected": "rejected"}


def layout_beside(file: str) -> LayoutMap | None:
    """Find a file's layout in the dataset_info.json of its folder; None if there is none."""
    path = Path(file)
    info = path.parent / NAME
    if not info.is_file() or path.name == NAME:
        return None
    try:
        entries = json.loads(info.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return None
    found = entries.items() if isinstance(entries, dict) else ()
    named = [(name, one) for name, one in found if isinstance(one, dict) and one.get("file_name") == path.name]
    return layout_of(*named[0]) if len(named) == 1 else None


def layout_of(name: str, entry: dict[str, Any]) -> LayoutMap:
    """Convert one entry to a key map."""
    sharegpt = entry.get("formatting", "alpaca") == "sharegpt"
    given = entry.get("columns") or {}
    columns = (given or _SHAREGPT) if sharegpt else (given or _ALPACA)
    if entry.get("ranking"):
        columns = {**_SIDES, **columns}
    labelled = columns.get("kto_tag")
    sides = [kind for kind in ("chosen", "rejected") if kind in columns]
    answered = sides or "response" in columns
    prompt = PromptMap(
        turns=columns.get("messages"),
        text=columns.get("prompt"),
        then=columns.get("query"),
        history=columns.get("history"),
        system=columns.get("system"),
        last_turn="prompt" if answered else "response" if labelled else "reference",
    )
    kind: Any = "response" if labelled else "reference"
    responses = [ResponseMap(column=columns[side], kind=side) for side in sides]
    if not sides and "response" in columns:
        responses = [ResponseMap(column=columns["response"], kind=kind)]
    return LayoutMap(
        layout=f"{NAME}:{name}", prompt=prompt, responses=tuple(responses), label=labelled, tools=columns.get("tools")
    )
