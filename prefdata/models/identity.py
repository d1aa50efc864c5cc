"""The identity of a model folder: the hash of all that decides its numbers. Path, names and dates do not count.

Three parts, each with an id of its own: the weights, the configs, and what turns text into token ids and back. JSON
counts as values: the order of keys, white space and `1.0` for `1` do not change it. Of a config every key counts,
also one that is unknown here, but for those of `UNUSED`.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prefdata.errors import ModelError
from prefdata.ids import ID_DIGITS, digest

UNUSED = frozenset({
    "_attn_implementation_autoset", "_commit_hash", "_name_or_path", "base_model_name_or_path",
    "gradient_checkpointing", "inference_mode", "is_local", "local_files_only", "name_or_path", "output_attentions",
    "output_hidden_states", "output_scores", "peft_version", "return_dict", "return_dict_in_generate", "torchscript",
    "transformers_version", "unsloth_version", "use_cache",
})  # fmt: skip
"""Keys of configs, at any depth, that no number depends on: where a model was saved, by what, and what a call returns.

`dtype` is not among them: vLLM's `auto` computes in it, and `train` saves in it.
"""

_CONFIGS = ("*config.json", "config.*.json", "modules.json", "*_Pooling/config.json")
"""Configs that transformers or vLLM read: `config.json`, one for a later transformers (`config.5.0.0.json`), those of
quantisation, sentence-transformers'."""

_TEXT_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.json")
"""Of what turns text into token ids, the files that count as values; those of `_TEXT_FILES` count as bytes."""

_TEXT_FILES = (
    "tokenizer.json", "tokenizer.*.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "tekken.json",
    "*.model", "*.tiktoken", "chat_template.jinja", "additional_chat_templates/*.jinja",
)  # fmt: skip

_OBJECTS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
"""Configs that are JSON objects; a broken one would be left out in silence, with the end tokens that it names."""

_READ = (*_CONFIGS, *_TEXT_CONFIGS, *_TEXT_FILES, "*.json", "*.safetensors", "*.jinja")
"""All that is read of a folder, by us or by the libraries."""

_WHOLE_BYTES = 1 << 30
_BLOCK_BYTES = 1 << 20
_SAMPLED_BLOCKS = 512


def weights_id(files: Iterable[Path]) -> str:
    """Return the id of weight files: 20 hexadecimal digits of the SHA-256 of their names, sizes and contents.

    Weights above 1 GiB are hashed in evenly spaced blocks of 1 MiB, and the id says so with the prefix `sampled-`.
    """
    files = list(files)
    total = sum(file.stat().st_size for file in files)
    sha = hashlib.sha256()
    for file in files:
        sha.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        blocks = None if total <= _WHOLE_BYTES else max(8, _SAMPLED_BLOCKS * file.stat().st_size // total)
        for block in _blocks(file, blocks):
            sha.update(block)
    return ("sampled-" if total > _WHOLE_BYTES else "") + sha.hexdigest()[:ID_DIGITS]


def config_id(folder: Path) -> str:
    """Return the id of a model's configs: how its weights are computed with."""
    apart = {"tokenizer_config.json", "generation_config.json"}  # see `text_id`
    files = {name: path for name, path in _found(folder, _CONFIGS).items() if name not in apart}
    return digest({name: _value(path) for name, path in files.items()})


def text_id(folder: Path) -> str:
    """Return the id of what turns text into token ids and back: tokenizer, chat templates, end tokens.

    Of generation_config.json only the end tokens count: its other settings are not used.
    """
    values = {name: _value(path) for name, path in _found(folder, _TEXT_CONFIGS).items()}
    values |= _corrected_regex(folder, values.get("tokenizer_config.json"))
    contents = {name: _bytes_id(path) for name, path in _found(folder, _TEXT_FILES).items()}
    return digest({**values, **contents, "ends": _generation_ends(folder)})


def adapter_id(folder: Path) -> str:
    """Return the id of a LoRA adapter: its weights and its config.

    Raises:
        ModelError: one of the two is missing.
    """
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    for file in (config, weights):
        if not file.is_file():
            raise ModelError(f"{folder} is not a LoRA adapter: it holds no {file.name}. Give the folder that holds it.")
    return f"{weights_id([weights])}.{digest(_value(config))}"


def effective(value: Any) -> Any:
    """Reduce a JSON value to what counts: without `UNUSED` keys, and equal for equal settings.

    `torch_dtype` is `dtype` by its older name, whole floats are integers, and numbers that JSON cannot represent
    (Infinity, in some configs) are text.
    """
    if isinstance(value, dict):
        kept = {key: effective(one) for key, one in value.items() if key not in UNUSED}
        old = kept.pop("torch_dtype", None)
        return kept if old is None else {"dtype": old, **kept}
    if isinstance(value, list):
        return [effective(one) for one in value]
    if isinstance(value, float):
        return int(value) if value.is_integer() else value if abs(value) < float("inf") else str(value)
    return value


def check_files(folder: Path) -> None:
    """Check that what is read of a model's folder are files that can be read, and that end.

    A reader of a pipe waits for ever, and no interrupt reaches it.

    Raises:
        ModelError: one is a folder, a pipe, a device, a link to nothing or to itself, or may not be read.
    """
    try:
        entries = [path for pattern in _READ for path in folder.glob(pattern) if not path.name.startswith(".")]
    except OSError as error:
        raise ModelError(f"cannot read {folder}: {error.strerror}. Change its permissions.") from None
    for path in sorted(set(entries)):
        try:
            kind = "" if stat.S_ISREG(path.stat().st_mode) else "a folder" if path.is_dir() else "a pipe or a device"
            kind = kind or ("" if os.access(path, os.R_OK) else "a file that may not be read")
        except OSError as error:
            kind = f"a link that leads nowhere ({error.strerror})"
        if kind:
            raise ModelError(f"{path} is {kind}, and should be a file of the model. Fetch or save the model again.")
    for name in _OBJECTS:
        if (folder / name).is_file():
            json_object(folder / name)


def json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        ModelError: it cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair could not be saved again
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {error}. Fetch or save the model again.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object. Fetch or save the model again.")
    return value


def _value(path: Path) -> Any:
    """Return the effective content of a JSON file; the hash of its bytes where it is not JSON."""
    try:
        return effective(_json(path))
    except (ValueError, RecursionError):
        return _bytes_id(path)


def _json(path: Path) -> Any:
    return json.loads(_bytes(path))


def _bytes_id(path: Path) -> str:
    return hashlib.sha256(_bytes(path)).hexdigest()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}. Change its permissions, or save it again.") from None


def _corrected_regex(folder: Path, tokenizer_config: Any) -> dict[str, Any]:
    """Of config.json what decides whether transformers replaces a Mistral tokenizer's regular expression."""
    wanted = isinstance(tokenizer_config, dict) and tokenizer_config.get("fix_mistral_regex")
    if not wanted or not (folder / "config.json").is_file():
        return {}
    config = _json(folder / "config.json")
    names = ("model_type", "transformers_version")
    return {name: config.get(name) for name in names} if isinstance(config, dict) else {}


def _generation_ends(folder: Path) -> list[int]:
    path = folder / "generation_config.json"
    config = _value(path) if path.is_file() else None
    ends = config.get("eos_token_id") if isinstance(config, dict) else None
    return sorted({end for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, int)})


def _found(folder: Path, patterns: Iterable[str]) -> dict[str, Path]:
    """Find the files that match, by their names inside the folder; hidden ones do not belong to the model."""
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): path for path in paths if not path.name.startswith(".")}


def _blocks(file: Path, count: int | None) -> Iterator[bytes]:
    """Yield the file in blocks of 1 MiB: all of them, or `count` evenly spaced ones with the first and the last."""
    last = (file.stat().st_size - 1) // _BLOCK_BYTES
    every = range(last + 1) if count is None else sorted({round(i * last / (count - 1)) for i in range(count)})
    with file.open("rb") as stream:
        for number in every:
            stream.seek(number * _BLOCK_BYTES)
            yield stream.read(_BLOCK_BYTES)
