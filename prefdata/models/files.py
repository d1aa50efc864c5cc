"""Find a model: a folder or a hub name becomes local files of the right kind, with a revision.

Every fault of a model folder is found here, before an engine starts: no weights, a missing or broken
shard, no tokenizer, another kind of model. Nothing here imports torch or transformers.
"""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefdata.errors import ModelError, did_you_mean
from prefdata.models.adapters import adapted_config, base_name, base_places, is_adapter
from prefdata.models.hub import hub_config, hub_error
from prefdata.models.identity import adapter_id, check_files, config_id, json_object, text_id, weights_id

Kind = Literal["causal-lm", "reward-model", "comparer", "reward-start"]
"""The use of a model; `comparer` is either of the first two, to compare responses, and `reward-start` what a
reward model can be trained from, with one label."""

_FITS: dict[Kind, tuple[str, ...]] = {
    "causal-lm": ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"),
    "reward-model": ("ForSequenceClassification",),
    "comparer": ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForSequenceClassification"),
    "reward-start": ("ForCausalLM", "LMHeadModel", "ForSequenceClassification"),
}
_WANTED: dict[Kind, str] = {
    "causal-lm": "A causal language model (an architecture such as LlamaForCausalLM or Qwen2ForCausalLM)",
    "reward-model": "A reward model or a classifier (an architecture such as LlamaForSequenceClassification)",
    "comparer": "A causal language model, or a classifier that reads two responses,",
    "reward-start": "a causal language model or a reward model",
}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_TEXT_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", *_HUB_TEXT_FILES]
_LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")
_POSITIONS_BEHIND_PADDING = frozenset({
    "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet",
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "n_embd", "d_model")
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class ModelFiles:
    """A model that was found: its name as given, its revision, its folder (None for a hub name) and its config.json.

    The revision is the hub's commit hash, or for a folder `WEIGHTS.CONFIG`: the ids of its weights and of its configs
    (`model_identity`), or `CONFIG` alone where no weights were asked for. Of an adapter `path` is its folder, `base`
    the model that it belongs to, `config` what the two are together, and the revision `BASE+ADAPTER`.
    """

    name: str
    revision: str
    path: Path | None
    config: dict[str, Any]
    base: ModelFiles | None = None

    @property
    def architecture(self) -> str:
        """The first name in config.json's `architectures`."""
        return str(self.config["architectures"][0])

    @property
    def context_length(self) -> int | None:
        """The positions that the model was made for, or None where its config.json sets no bound."""
        text = self.config.get("text_config")
        for config in (self.config, text if isinstance(text, dict) else {}):
            for key in _LENGTHS:
                if isinstance(config.get(key), int):
                    return int(config[key]) - _reserved_positions(config)
        return None

    @property
    def vocabulary(self) -> int | None:
        """How many tokens the embedding has, or None where config.json is silent."""
        text = self.config.get("text_config")
        sizes = [one.get("vocab_size") for one in (self.config, text) if isinstance(one, dict)]
        return next((size for size in sizes if isinstance(size, int)), None)

    @property
    def text_revision(self) -> str:
        """The id of the tokenizer's files; for a hub name that is the commit."""
        if self.base is not None:
            own = [] if self._own_text is None else [text_id(self._own_text)]
            return "+".join([self.base.text_revision, *own])
        return self.revision if self.path is None else text_id(self.path)

    @property
    def adapter(self) -> Path | None:
        """The folder of the adapter that belongs to the weights, where there is one."""
        return None if self.base is None else self.path

    @property
    def _own_text(self) -> Path | None:
        """The adapter's folder, where a tokenizer was saved with it."""
        return next((self.path for name in _TOKENIZERS if self.path and (self.path / name).is_file()), None)

    def text_folder(self) -> Path:
        """Return the local folder of the tokenizer and its templates; of a hub model they alone are downloaded.

        Raises:
            ModelError: the download failed.
        """
        if self.base is not None:
            return self._own_text or self.base.text_folder()
        if self.path is not None:
            return self.path
        import huggingface_hub

        wanted: dict[str, Any] = {"revision": self.revision, "allow_patterns": _HUB_TEXT_FILES}
        with suppress(huggingface_hub.errors.LocalEntryNotFoundError):
            folder = Path(huggingface_hub.snapshot_download(self.name, local_files_only=True, **wanted))
            if (folder / "tokenizer_config.json").is_file():
                return folder
        try:
            return Path(huggingface_hub.snapshot_download(self.name, **wanted))
        except Exception as error:
            raise hub_error(self.name, error) from error

    def weights(self) -> list[Path]:
        """Return the safetensors files that the model is made of: those that its revision names.

        Raises:
            ModelError: as `folder`.
        """
        return _weight_files(self.folder())

    def folder(self) -> Path:
        """Return the local folder of the files, of an adapter those of its model; a hub model is downloaded first.

        It is downloaded at this revision, and of the weights only safetensors.

        Raises:
            ModelError: the download failed, or what was downloaded is not complete.
        """
        if self.base is not None:
            return self.base.folder()
        if self.path is not None:
            return self.path
        import huggingface_hub

        try:
            folder = huggingface_hub.snapshot_download(self.name, revision=self.revision, allow_patterns=_HUB_FILES)
        except Exception as error:
            raise hub_error(self.name, error) from error
        _weight_files(Path(folder))
        return Path(folder)


def _reserved_positions(config: dict[str, Any]) -> int:
    """Positions that no token can have: RoBERTa and similar models count from the one behind the padding token's id."""
    pad = config.get("pad_token_id", 1)
    return pad + 1 if config.get("model_type") in _POSITIONS_BEHIND_PADDING and isinstance(pad, int) else 0


def identify(model: str, kind: Kind, *, tokenizer: bool = True, weights: bool = True) -> ModelFiles:
    """Find `model`, a local folder or a hub name, and check that it can serve as `kind`.

    Args:
        model: a folder, or a hub name (`org/name`) where no such folder exists.
        kind: what the model is to be used as.
        tokenizer: whether a tokenizer must be there too.
        weights: whether weights must be there too; without, the revision is that of the configs.

    Raises:
        ModelError: there is no such model, a file is missing or broken, or it is another kind of model.
    """
    folder = _folder(model)
    if folder.is_dir():
        check_files(folder)
    if folder.is_dir() and is_adapter(folder):
        return _identify_adapter(model, folder, kind, tokenizer=tokenizer, weights=weights)
    if folder.is_dir():
        config = _read_config(folder)
        _check_kind(model, kind, config)
        files = _weight_files(folder) if weights else []
        if tokenizer:
            _check_tokenizer(folder)
        parts = [*([weights_id(files)] if weights else []), config_id(folder)]
        return ModelFiles(model, ".".join(parts), folder.resolve(), config)
    if folder.exists():
        raise ModelError(f"{model} is a file, and a model is a folder. Give the folder that holds its config.json.")
    if not _HUB_NAME.fullmatch(model) or ("/" in model and folder.parent.is_dir()):
        raise ModelError(f"there is no folder {model}.{_near(folder)} Check the path, or give a hub name (org/name).")
    revision, config = hub_config(model)
    _check_kind(model, kind, config)
    return ModelFiles(model, revision, None, config)


def _folder(model: str) -> Path:
    """Return the path that a model's name is, if it is one.

    Raises:
        ModelError: no path has that name.
    """
    folder = Path(model).expanduser()
    try:
        folder.stat()
    except FileNotFoundError:
        return folder
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ModelError(f"there is no folder {model[:200]!r}: {why}. Check the path.") from None
    return folder


def _identify_adapter(model: str, folder: Path, kind: Kind, *, tokenizer: bool, weights: bool) -> ModelFiles:
    """Find an adapter's model, and check that the two can serve as `kind`."""
    adapter = adapter_id(folder)
    shapes = {name: entry["shape"] for name, entry in _check_whole(folder / "adapter_model.safetensors").items()}
    named = base_name(folder)
    if (path := Path(named)).is_dir() and is_adapter(path):
        raise ModelError(f"{model} is an adapter of {named}, which is an adapter too. Merge that one into its model.")
    try:
        base = identify(named, "comparer", tokenizer=False, weights=weights)
    except ModelError as error:
        places = ", ".join(str(place.absolute()) for place in base_places(folder, named))
        sought = "" if path.is_dir() else f" Looked for {places} and the hub's {named}."
        raise ModelError(
            f"{model} is an adapter of {named}, which cannot be used: {error}{sought} Or give its model as --model, "
            f"and --lora {model} in sample; in the others merge it first."
        ) from None
    config = adapted_config(folder, base.config, shapes)
    _check_kind(model, kind, config)
    found = ModelFiles(model, f"{base.revision}+{adapter}", folder.resolve(), config, base)
    if tokenizer and base.path is not None and found._own_text is None:
        _check_tokenizer(base.path)
    return found


def _near(folder: Path) -> str:
    try:
        known = [str(folder.parent / p.name) for p in folder.parent.iterdir() if p.is_dir()]
    except OSError:
        return ""
    hint = did_you_mean(str(folder), known)
    return hint if "Did you mean" in hint else ""


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} holds no config.json, so it is not a model folder. Give the folder that holds it.")
    return json_object(path)


def _check_kind(name: str, kind: Kind, config: dict[str, Any]) -> None:
    named = config.get("architectures") or []
    if not named:
        raise ModelError(f"{name}: config.json names no architecture. {_WANTED[kind]} is needed here.")
    fits = any(str(architecture).endswith(_FITS[kind]) for architecture in named)
    if not fits or (kind == "causal-lm" and config.get("is_encoder_decoder")):
        raise ModelError(f"{name} is a {', '.join(map(str, named))}. {_WANTED[kind]} is needed here.")


def label_names(config: dict[str, Any]) -> tuple[str, ...]:
    """Return a classifier's labels in the order of its logits; `LABEL_0`, … where its config.json names none."""
    if isinstance(names := config.get("id2label"), dict):
        return tuple(str(names[number]) for number in sorted(names, key=int))
    count = int(config.get("num_labels", 2))  # the default of transformers
    return tuple(f"LABEL_{number}" for number in range(count))


def _check_tokenizer(folder: Path) -> None:
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise ModelError(
            f"{folder} holds no tokenizer (tokenizer.json or tokenizer_config.json). Save the tokenizer into it."
        )


def _weight_files(folder: Path) -> list[Path]:
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
    _check_sizes(folder, [entry["shape"] for file in files for entry in _check_whole(file).values()])
    return files


def _check_sizes(folder: Path, shapes: list[list[int]]) -> None:
    """Check that config.json is not of a network far larger than its weights, which would fill memory or never end.

    Each layer has a tensor at least, and each dimension is that of some tensor.

    Raises:
        ModelError: it is.
    """
    config = _read_config(folder)
    elements = sum(math.prod(shape) for shape in shapes)
    text = json.dumps(config)
    if "model_type" in config and not any(f'"{key}"' in text for key in _SIZES):
        raise ModelError(
            f"{folder}/config.json names no size of the network ({', '.join(_SIZES)}), and transformers would make one "
            "of its default size. Fetch or save the model again."
        )
    for part in (config, config.get("text_config")):
        for key, most in (*((key, len(shapes)) for key in _LAYERS), *((key, elements) for key in _SIZES)):
            value = part.get(key) if isinstance(part, dict) else None
            if isinstance(value, int) and value > most:
                raise ModelError(
                    f"{folder}/config.json says {key} {value:,}, and the weights hold {len(shapes):,} tensors of "
                    f"{elements:,} numbers. Fetch or save the model again."
                )


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
    if "transformers_weights" in _read_config(folder):
        raise ModelError(
            f"{folder}/config.json names other weights (transformers_weights), which only transformers would read. "
            "Load the model and save it again."
        )


def _shards(index: Path) -> list[str]:
    """Return the names of the weight files of an index.

    Raises:
        ModelError: the index is broken, or names other things than files in its folder.
    """
    shards = json_object(index).get("weight_map")
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


def _check_whole(file: Path) -> dict[str, Any]:
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
        ends = [int(end) for _, end in (entry["data_offsets"] for entry in entries.values())]
        shapes = [isinstance(size, int) for entry in entries.values() for size in entry["shape"]]
        whole = 8 + length + max(ends, default=0) == size and all(shapes)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError, OverflowError, RecursionError):
        whole = False
    if not whole:
        raise ModelError(f"{file} is not a whole safetensors file ({size:,} bytes). Fetch the model again.")
    return entries
