"""Adapter folders in the place of a model: what PEFT saves (LoRA and others), and the model that they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefdata.errors import ModelError
from prefdata.models.identity import json_object

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""What PEFT saves."""

PREFIX = "base_model.model."
"""What PEFT writes before the names of a model's tensors."""

_MODEL_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model.

    Raises:
        ModelError: it holds both, and transformers would take the adapter with a model of another place.
    """
    if not (folder / CONFIG).is_file():
        return False
    if whole := [name for name in _MODEL_WEIGHTS if (folder / name).is_file()]:
        raise ModelError(
            f"{folder} holds a model ({whole[0]}) and an adapter ({CONFIG}). Move the files of one of them elsewhere."
        )
    return True


def base_name(folder: Path) -> str:
    """Return the model that an adapter belongs to: a folder where there is one, else what may be a hub name.

    A relative path is looked for from the current folder, as PEFT does, then from the adapter's and its parent.

    Raises:
        ModelError: adapter_config.json cannot be read, or names no model.
    """
    named = adapter_config(folder).get("base_model_name_or_path")
    if not isinstance(named, str) or not named.strip("\0 "):
        raise ModelError(
            f"{folder / CONFIG} names no model that it belongs to (base_model_name_or_path). Give the model, and the "
            f"adapter beside it: --model MODEL --lora {folder}."
        )
    for place in base_places(folder, named):
        if place.is_dir():
            return str(place)
    return named


def base_places(folder: Path, named: str) -> list[Path]:
    """List the folders that may be meant by the name of an adapter's model."""
    path = Path(named.replace("\0", "")).expanduser()
    return [path] if path.is_absolute() else [path, folder / path, folder.parent / path]


def adapter_config(folder: Path) -> dict[str, Any]:
    """Return what adapter_config.json holds.

    Raises:
        ModelError: it cannot be read, or is no JSON object.
    """
    return json_object(folder / CONFIG)


def adapted_config(folder: Path, config: dict[str, Any], shapes: dict[str, list[int]]) -> dict[str, Any]:
    """Return the config of a model with an adapter: that of a classifier, where the adapter brings the head of one.

    Args:
        folder: the adapter's.
        config: the model's own config.json.
        shapes: those of the adapter's tensors, by name.
    """
    if adapter_config(folder).get("task_type") != "SEQ_CLS":
        return config
    named = config.get("architectures")
    ends = ("ForCausalLM", "LMHeadModel")
    known = [str(one) for one in named] if isinstance(named, list) else []
    classifiers = [one.removesuffix(end) for one in known for end in ends if one.endswith(end)]
    if not classifiers:
        return config
    labels = next((shape[0] for name, shape in shapes.items() if name.endswith("score.weight") and shape), None)
    without = {key: value for key, value in config.items() if key not in ("id2label", "label2id")}
    made = {"architectures": [f"{one}ForSequenceClassification" for one in classifiers]}
    return {**without, **made, **({} if labels is None else {"num_labels": labels})}
