"""Loading of Hugging Face models for training, and saving of trained ones."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from prefdata.chat.encoder import PLAIN_END, Chat, named_ends
from prefdata.errors import ModelError
from prefdata.ids import seed as seed_of
from prefdata.models.files import ModelFiles
from prefdata.models.loading import attention_settings, computed, pick_device, read_config, read_weights, silenced
from prefdata.models.memory import TokenBudget
from prefdata.storage.atomic import storage_errors
from prefdata.train.batches import Layout
from prefdata.train.encode import Encoded
from prefdata.train.loop_specs import LoopSpec
from prefdata.train.precision import Precision, pick_precision, recompute_layers
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
    """

    model: Any
    tokenizer: Any
    device: torch.device
    autocast: torch.dtype | None
    save_dtype: torch.dtype
    micro: TokenBudget
    layout: Layout = "padded"

    @property
    def computed(self) -> dict[str, str]:
        """In and on what it computes: the precision's name as `dtype`, and `device`."""
        name = str(self.model.dtype).removeprefix("torch.") if self.autocast is None else "bf16-mixed"
        return computed(self.device, name)

    def precision(self) -> torch.autocast:
        """Open the autocast context of forward passes."""
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)


def load_chat(files: ModelFiles, spec: LoopSpec) -> Chat:
    """The model's encoder, with the chat template that `spec` means.

    Raises:
        ModelError: transformers cannot read the tokenizer, or it names no end token.
        UsageError, InputError: the chat template is unknown, or does not use a variable.
    """
    chat = Chat.of(files, choice=spec.template_choice)
    if chat.tokenizer.eos_token_id is None:
        raise ModelError(f"{files.name}: the tokenizer has no end token. Set eos_token in tokenizer_config.json.")
    return chat


def load(files: ModelFiles, spec: LoopSpec, tokenizer: Any) -> LoadedModel:
    """The model that `spec` trains: a reward model for an RmSpec (with a new head on a causal LM), else a causal LM.

    Raises:
        ModelError: transformers cannot load it, its files lack tensors, or its architecture is not supported.
        UsageError: the device is not available.
    """
    device = pick_device(spec.device)
    precision = pick_precision(spec.dtype, device)
    config = read_config(files)
    saved = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(spec.seed, "weights"))
        try:
            model = (
                _reward_model(files, spec, config, tokenizer, precision)
                if isinstance(spec, RmSpec)
                else _causal(files, spec, config, precision)
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"{files.name}: transformers cannot load it ({error}).") from None
    model.to(device)
    check_trunk(model, files.name)
    layout = pick_layout(model, spec.batch_layout, files.name)
    for head in (getattr(model, name, None) for name in ("score", "length_head")):
        if head is not None:
            head.float()  # scores that differ by less than bfloat16 tells apart would be ties
    if spec.gradient_checkpointing:
        recompute_layers(model, files.name)
    return LoadedModel(model, tokenizer, device, precision.products, saved, _micro_tokens(device, spec), layout)


def _causal(files: ModelFiles, spec: LoopSpec, config: Any, precision: Precision) -> Any:
    if spec.from_scratch:
        return _from_config(AutoModelForCausalLM, config, precision.weights)
    return read_weights(AutoModelForCausalLM, files, precision.weights, config=config)


def _reward_model(files: ModelFiles, spec: RmSpec, config: Any, tokenizer: Any, precision: Precision) -> Any:
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
    new_head = spec.from_scratch or not files.architecture.endswith("ForSequenceClassification") or spec.heads > 1
    if spec.from_scratch:
        model = _from_config(AutoModelForSequenceClassification, config, precision.weights)
    else:
        new = "score" if new_head else ""
        model = read_weights(AutoModelForSequenceClassification, files, precision.weights, new=new, config=config)
    if not is_reward_model(model):
        raise ModelError(f"{files.name}: {type(model).__name__} has no linear `score` head on its last hidden states.")
    if new_head:
        # Small initial weights (1 / (h + 1), as in OpenRLHF), so that all scores are near 0 and the first loss is ln 2.
        nn.init.normal_(model.score.weight, std=1 / (model.score.in_features + 1))
    if spec.loss == "poe-length":
        model.length_head = nn.Linear(2, 1, bias=False)  # trained with the score head, not saved
        nn.init.zeros_(model.length_head.weight)
    return model


def _from_config(auto: Any, config: Any, dtype: torch.dtype) -> Any:
    return auto.from_config(config, dtype=dtype, **attention_settings(config))


def _micro_tokens(device: torch.device, spec: LoopSpec) -> TokenBudget:
    # Short batches of like lengths waste less on padding and stay in a CPU's caches (measured: 28% less time than
    # one batch of 32 pairs); a GPU wants them large.
    return TokenBudget(spec.micro_tokens or (1024 if device.type == "cpu" else 16384), "--micro-tokens")


def save(loaded: LoadedModel, files: ModelFiles, chat: Chat, trained: Encoded, folder: Path) -> None:
    """Write `folder` as a Hugging Face model that transformers and vLLM load: weights, tokenizer, template, configs.

    The folder has the chat template of training with the variables that were set, or none if the data were plain texts,
    and the tokens that ended the responses as end tokens.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(NOT_SAVED)}
    weights = {name: tensor.to(loaded.save_dtype) for name, tensor in state.items()}
    model.config.dtype = loaded.save_dtype
    plain = chat.template is None or not trained.conversations
    if plain:
        model.config.prefdata = {PLAIN_END: tokenizer.eos_token}
    elif hasattr(model.config, "prefdata"):  # of the initial model
        del model.config.prefdata
    tokenizer.chat_template = None if plain else chat.saved_templates
    ends = [] if is_reward_model(model) else _declare(model.config, files, trained.ends)
    with storage_errors(folder), silenced():
        model.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o666 & ~_umask())  # safetensors makes files readable by their owner only
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
