"""The weight files of a model folder: all there, whole, and the same ones for every engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefdata.errors import ModelError

_INDEX = "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that the model consists of, all there and whole.

    Raises:
        ModelError: there are none, one is missing, one is cut short, or it depends on the engine which are read.
    """
    _refuse_two_models(folder)
    if (folder / _INDEX).is_file():
        names = _shards(folder / _INDEX)
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            what = (
                f"lacks {len(missing)} of the {len(names)} weight files of its index (first: {missing[0]})"
                if names
                else "has an empty index"
            )
            raise ModelError(f"{folder} {what}. Fetch the model again.")
        files = [folder / name for name in names]
    else:
        files = [folder / "model.safetensors"]
        if not files[0].is_file():
            raise _no_weights(folder)
    for file in files:
        read_header(file)
    return files


def _refuse_two_models(folder: Path) -> None:
    """Refuse a folder of which transformers and vLLM would read different weights: an id can name one model only.

    Raises:
        ModelError: it is such a folder.
    """
    if (folder / "model.safetensors").is_file() and (folder / _INDEX).is_file():
        raise ModelError(
            f"{folder} holds weights twice, in model.safetensors and in the shards of {_INDEX}, and engines differ in "
            "which they read. Remove the ones that are out of date."
        )
    if "transformers_weights" in read_config(folder):
        raise ModelError(
            f"{folder}/config.json names other weights (transformers_weights), which only transformers would read. "
            "Load the model and save it again."
        )


def _shards(index: Path) -> list[str]:
    """Return the names of the weight files of an index.

    Raises:
        ModelError: the index is broken, or names something else than files beside it.
    """
    shards = read_json(index).get("weight_map")
    names = list(shards.values()) if isinstance(shards, dict) else []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{index} names {str(name)[:100]!r}, which is no safetensors file beside it. Fetch it again."
            )
    return sorted(set(names))


def _no_weights(folder: Path) -> ModelError:
    if any(folder.glob("pytorch_model*.bin")):
        return ModelError(
            f"{folder} holds pickled weights (.bin), which are code and are not loaded. Save it as safetensors first."
        )
    return ModelError(f"{folder} holds no weights (model.safetensors, or shards with {_INDEX}). Fetch the model again.")


def read_header(file: Path) -> dict[str, Any]:
    """Return the header's entries of a safetensors file that is whole.

    Raises:
        ModelError: it is cut short, or its header is not one.
    """
    # A safetensors file: 8 bytes with the header's length, the header (JSON), the tensors up to the last offset.
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if length < size else {}
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        ends = [entry["data_offsets"][1] for entry in entries.values()]
        whole = 8 + length + max(ends, default=0) == size
    except (ValueError, AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ModelError(f"{file} is not a whole safetensors file ({size:,} bytes). Fetch the model again.")
    return entries


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of config.json.

    Raises:
        ModelError: the file is missing or broken.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} holds no config.json, so it is not a model folder. Give the folder that holds it.")
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a model folder.

    Raises:
        ModelError: the file cannot be read, or holds no object.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {error}. Fetch or save the model again.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object. Fetch or save the model again.")
    return value
