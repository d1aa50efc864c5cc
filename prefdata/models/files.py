"""Find a model: a folder or a hub name becomes local files of the right kind, with a revision.

Every fault of a model folder is found here, before an engine starts: no weights, a missing or broken
shard, no tokenizer, another kind of model. Nothing here imports torch or transformers.
"""

from __future__ import annotations

import importlib.util
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefdata.errors import ModelError, did_you_mean
from prefdata.models.adapters import adapted_config, base_name, base_places, is_adapter
from prefdata.models.identity import adapter_id, check_files, config_id, text_id, weights_id
from prefdata.models.weight_files import read_config, read_header, read_json, weight_files

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
            raise _hub_error(self.name, error) from error

    def weights(self) -> list[Path]:
        """Return the safetensors files that the model is made of: those that its revision names.

        Raises:
            ModelError: as `folder`.
        """
        return weight_files(self.folder())

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
            raise _hub_error(self.name, error) from error
        weight_files(Path(folder))
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
        config = read_config(folder)
        _check_kind(model, kind, config)
        files = weight_files(folder) if weights else []
        if tokenizer:
            _check_tokenizer(folder)
        parts = [*([weights_id(files)] if weights else []), config_id(folder)]
        return ModelFiles(model, ".".join(parts), folder.resolve(), config)
    if folder.exists():
        raise ModelError(f"{model} is a file, and a model is a folder. Give the folder that holds its config.json.")
    if not _HUB_NAME.fullmatch(model) or ("/" in model and folder.parent.is_dir()):
        raise ModelError(f"there is no folder {model}.{_near(folder)} Check the path, or give a hub name (org/name).")
    revision, config = _hub_config(model)
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
    shapes = {name: entry["shape"] for name, entry in read_header(folder / "adapter_model.safetensors").items()}
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


def _check_kind(name: str, kind: Kind, config: dict[str, Any]) -> None:
    named = config.get("architectures") or []
    if not named:
        raise ModelError(f"{name}: config.json names no architecture. {_WANTED[kind]} is needed here.")
    fits = any(str(architecture).endswith(_FITS[kind]) for architecture in named)
    if not fits or (kind == "causal-lm" and config.get("is_encoder_decoder")):
        raise ModelError(f"{name} is a {', '.join(map(str, named))}. {_WANTED[kind]} is needed here.")
    one = kind == "reward-start" and str(named[0]).endswith("ForSequenceClassification")
    if one and (labels := len(label_names(config))) != 1:
        raise ModelError(
            f"{name} has {labels} labels, and a reward model is trained with one. Give a model made with num_labels=1."
        )


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


def _hub_config(name: str) -> tuple[str, dict[str, Any]]:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ModelError(
            f"there is no folder {name} here, and huggingface_hub is not installed. "
            "Give a folder, or pip install 'prefdata[models]'."
        )
    try:
        path = Path(_cached_config(name) or _fetched_config(name))
    except Exception as error:
        raise _hub_error(name, error) from error
    return path.parent.name, read_json(path)  # …/snapshots/<commit>/config.json


def _cached_config(name: str) -> str | None:
    # The cache comes first: the same command again takes the same revision, with or without a network.
    from huggingface_hub import errors, hf_hub_download

    try:
        return str(hf_hub_download(name, "config.json", local_files_only=True))
    except errors.LocalEntryNotFoundError:
        return None


def _fetched_config(name: str) -> str:
    from huggingface_hub import HfApi, hf_hub_download

    # model_info fails at once without a network, where a download would try again for half a minute.
    return str(hf_hub_download(name, "config.json", revision=HfApi().model_info(name, timeout=10).sha))


def _hub_error(name: str, error: Exception) -> ModelError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        problem = "the Hugging Face hub asks for its terms to be accepted. Accept them there and log in (hf auth login)"
    elif isinstance(error, errors.RepositoryNotFoundError):
        problem = "the Hugging Face hub has no such model (or it is private). Check the name"
    elif isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        problem = "the Hugging Face hub's model of that name has no config.json. Choose another"
    else:
        problem = (
            "the Hugging Face hub cannot be reached and its local cache does not hold it. Give a folder, or connect"
        )
    return ModelError(f"there is no folder {name} here, and {problem}.")
