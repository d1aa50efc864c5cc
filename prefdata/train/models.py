"""Loading of Hugging Face models for training, and saving of trained ones."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig

from prefdata.chat.encoder import PLAIN_END, Chat, named_ends
from prefdata.errors import ModelError
from prefdata.ids import seed as seed_of
from prefdata.models.files import ModelFiles
from prefdata.models.loading import (
    attention_settings,
    computed,
    merge_adapter,
    pick_device,
    read_config,
    read_weights,
    silenced,
)
from prefdata.models.memory import TokenBudget
from prefdata.storage.atomic import storage_errors
from prefdata.train.adapter import adapter_off, add_adapter, save_adapter, train_adapter
from prefdata.train.adapter_specs import AdapterSpec
from prefdata.train.batches import Layout
from prefdata.train.encode import Encoded
from prefdata.train.logps import score_head
from prefdata.train.loop_specs import LoopSpec
from prefdata.train.precision import pick_precision, recompute_layers
from prefdata.train.self_check import check_trunk, is_reward_model, pick_layout
from prefdata.train.specs import RmSpec

NOT_SAVED = ("length_head.", "value_head.")
"""Parameters that are trained beside a model and are no part of what is saved."""

log = logging.getLogger("prefdata.train")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to train.

    Attributes:
        model: on `device`, with weights of the precision that was asked for.
        tokenizer: its tokenizer.
        device: the model's device.
        autocast: the precision of matrix products, or None for that of the weights.
        save_dtype: precision of the saved weights, as in the initial model.
        micro: maximum tokens of a micro-batch, padding included.
        layout: the layout of its batches.
        adapter: the PEFT model around it, if an adapter is trained instead of its own weights.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    autocast: torch.dtype | None
    save_dtype: torch.dtype
    micro: TokenBudget
    layout: Layout = "padded"
    adapter: Any = None

    @property
    def computed(self) -> dict[str, str]:
        """Where and how it computes: the precision's name as `dtype`, and `device`."""
        name = str(self.model.dtype).removeprefix("torch.") if self.autocast is None else "bf16-mixed"
        return computed(self.device, name)

    @property
    def numerics(self) -> dict[str, Any]:
        """What decides the micro-batches and their numbers, by its name in messages."""
        return {"batch layout": self.layout, "micro-tokens": self.micro.given, "dtype": self.computed["dtype"]}

    def train(self, dropout: bool) -> None:
        """Get ready for a step, with the model's own dropout or without; an adapter's is on in both."""
        self.model.train(dropout)
        if self.adapter is not None:
            train_adapter(self.adapter)

    def without_adapter(self) -> AbstractContextManager[None]:
        """Open a context in which the adapter is switched off."""
        return nullcontext() if self.adapter is None else adapter_off(self.adapter)

    def precision(self) -> torch.autocast:
        """Open the autocast context of forward passes."""
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)


def load_chat(files: ModelFiles, spec: LoopSpec) -> Chat:
    """Load the model's encoder, with the chat template and variables of `spec`.

    Raises:
        ModelError: transformers cannot read the tokenizer, or it names no end token.
        UsageError, InputError: the chat template is unknown, or does not use a variable.
    """
    chat = Chat.of(files, choice=spec.template_choice)
    if chat.tokenizer.eos_token_id is None:
        raise ModelError(f"{files.name}: the tokenizer has no end token. Set eos_token in tokenizer_config.json.")
    return chat


def load(files: ModelFiles, spec: LoopSpec, tokenizer: Any, *, frozen: bool = False) -> LoadedModel:
    """Load the model that `spec` trains: a reward model for an RmSpec (a causal LM gets a new head), else a causal LM.

    Args:
        files: where it is.
        spec: how it is trained.
        tokenizer: its tokenizer.
        frozen: load it to be compared with, and not to be trained.

    Raises:
        ModelError: transformers cannot load it, its files lack tensors, or it computes what the trainer does not know.
        UsageError: the device is not there, or the model has no such layers.
    """
    device = pick_device(spec.device)
    precision = pick_precision(spec.dtype, device)
    adapted = spec if isinstance(spec, AdapterSpec) and spec.lora_r is not None and not frozen else None
    dtype = precision.weights if adapted is None and not frozen else precision.frozen
    config = read_config(files)
    saved = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(spec.seed, "weights"))
        model = _network(files, spec, config, tokenizer, dtype).to(device)
        check_trunk(model, files.name)
        layout = pick_layout(model, spec.batch_layout, files.name)
        adapter = None if adapted is None else add_adapter(model, adapted, files, precision.weights)
    if isinstance(spec, RmSpec):
        _complete_heads(model, spec)
    if spec.gradient_checkpointing:
        recompute_layers(model, files.name)
    micro = micro_budget(device, spec)
    return LoadedModel(model, tokenizer, device, precision.products, saved, micro, layout, adapter)


def _network(files: ModelFiles, spec: LoopSpec, config: Any, tokenizer: Any, dtype: torch.dtype) -> Any:
    try:
        if isinstance(spec, RmSpec):
            return _reward_model(files, spec, config, tokenizer, dtype)
        return _causal(files, spec, config, dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{files.name}: transformers cannot load it ({error}).") from None


def _causal(files: ModelFiles, spec: LoopSpec, config: Any, dtype: torch.dtype) -> Any:
    if spec.from_scratch:
        return _from_config(AutoModelForCausalLM, config, dtype)
    return read_weights(AutoModelForCausalLM, files, dtype, config=config)


def _reward_model(files: ModelFiles, spec: RmSpec, config: Any, tokenizer: Any, dtype: torch.dtype) -> Any:
    config.num_labels = spec.heads
    if spec.attributes:
        config.id2label = dict(enumerate(spec.attributes))
        config.label2id = {name: number for number, name in config.id2label.items()}
    if config.pad_token_id is None:
        known = (tokenizer.pad_token_id, tokenizer.eos_token_id)
        config.pad_token_id = next((pad for pad in known if pad is not None and pad < config.vocab_size), None)
    if config.pad_token_id == tokenizer.eos_token_id:
        log.warning(
            "%s: its padding token is its end token. prefdata and vLLM read the score at the end token; transformers' "
            "own forward looks for the last token that is not padding, and would read the one before it.",
            files.name,
        )
    new_head = spec.from_scratch or not files.architecture.endswith("ForSequenceClassification")
    if spec.from_scratch:
        model = _from_config(AutoModelForSequenceClassification, config, dtype)
    else:
        new = "score" if new_head else ""
        model = read_weights(AutoModelForSequenceClassification, files, dtype, new=new, config=config)
    if not is_reward_model(model):
        raise ModelError(f"{files.name}: {type(model).__name__} has no linear `score` head on its last hidden states.")
    if new_head:
        # Small initial weights (1 / (h + 1), as in OpenRLHF), so that all scores are near 0 and the first loss is ln 2.
        nn.init.normal_(model.score.weight, std=1 / (model.score.in_features + 1))
    return model


def _complete_heads(model: Any, spec: RmSpec) -> None:
    """Compute scores in float32, as those that bfloat16 does not tell apart would be ties; add a length expert."""
    score_head(model).float()
    if spec.loss == "poe-length":
        model.length_head = nn.Linear(2, 1, bias=False, device=model.device)  # trained beside the score, not saved
        nn.init.zeros_(model.length_head.weight)


def _from_config(auto: Any, config: Any, dtype: torch.dtype) -> Any:
    return auto.from_config(config, dtype=dtype, **attention_settings(config))


def micro_budget(device: torch.device, spec: LoopSpec) -> TokenBudget:
    """Return the most tokens, padding included, that go through a model at once."""
    # Small batches of similar lengths have less padding and fit a CPU's caches (measured: 28% less time than one batch
    # of 32 pairs); a GPU needs large ones.
    return TokenBudget(spec.micro_tokens or (1024 if device.type == "cpu" else 16384), "--micro-tokens")


def merged(loaded: LoadedModel, files: ModelFiles, spec: LoopSpec) -> LoadedModel:
    """Merge the adapter into weights that are read again, in float32 and on the CPU."""
    with TemporaryDirectory() as folder:
        save_adapter(loaded.adapter, Path(folder))
        whole = _network(files, spec, read_config(files), loaded.tokenizer, torch.float32)
        return replace(loaded, model=merge_adapter(whole, Path(folder)), adapter=None)


def save(loaded: LoadedModel, files: ModelFiles, chat: Chat, trained: Encoded, folder: Path) -> None:
    """Write `folder` as a Hugging Face model that transformers and vLLM load: weights, tokenizer, template, configs.

    It says what was trained: the chat template with the variables that were set, or none where the data were plain
    texts, and the tokens that ended the responses. Of an adapter there are its own weights, and the model's name.
    """
    plain = chat.template is None or not trained.conversations
    loaded.tokenizer.chat_template = None if plain else chat.saved_templates
    with storage_errors(folder), silenced():
        if loaded.adapter is None:
            _save_whole(loaded, files, trained, folder, plain=plain)
        else:
            save_adapter(loaded.adapter, folder)
        loaded.tokenizer.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o666 & ~_umask())  # safetensors writes for its owner only


def _save_whole(loaded: LoadedModel, files: ModelFiles, trained: Encoded, folder: Path, *, plain: bool) -> None:
    model = loaded.model
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(NOT_SAVED)}
    weights = {name: tensor.to(loaded.save_dtype) for name, tensor in state.items()}
    model.config.dtype = loaded.save_dtype
    if plain:
        model.config.prefdata = {PLAIN_END: loaded.tokenizer.eos_token}
    elif hasattr(model.config, "prefdata"):  # of the model that training began with
        del model.config.prefdata
    ends = [] if is_reward_model(model) else _declare(model.config, files, trained.ends)
    if not is_reward_model(model):
        # transformers refuses to save defaults that do not go together (a temperature without do_sample), as many
        # models have them; the file is copied below.
        model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(folder, state_dict=weights)
    if not is_reward_model(model):
        _save_generation_config(files.folder() / "generation_config.json", folder / "generation_config.json", ends)


def _declare(config: Any, files: ModelFiles, trained: Set[int]) -> list[int]:
    """Add the tokens that ended responses in training to a config; returns all of them, or [] if nothing was added."""
    source = files.folder() / "generation_config.json"
    generation = json.loads(source.read_text("utf-8")) if source.exists() else {}
    declared = named_ends(generation) or named_ends(files.config)
    if trained <= set(declared):
        return []
    config.eos_token_id = [*declared, *sorted(trained - set(declared))]
    return list(config.eos_token_id)


def _save_generation_config(source: Path, target: Path, ends: list[int]) -> None:
    """Copy the generation defaults of the initial model; `ends` replace its end tokens."""
    if source.exists():
        shutil.copyfile(source, target)
    if ends:
        values = json.loads(target.read_text("utf-8"))
        target.write_text(json.dumps({**values, "eos_token_id": ends}, indent=2) + "\n", "utf-8")


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
