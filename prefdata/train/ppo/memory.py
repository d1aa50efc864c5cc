"""How much memory each role of a training takes, from the models' configs alone: `--dry-run`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from prefdata.engines.hf.generator import BATCH_TOKENS
from prefdata.models.files import ModelFiles, identify
from prefdata.models.loading import pick_device, read_config
from prefdata.scorers.open import scorer_models
from prefdata.specs import RankSpec
from prefdata.train.adapter import add_adapter
from prefdata.train.logps import CHUNK_ELEMENTS
from prefdata.train.models import micro_budget
from prefdata.train.ppo.specs import PpoSpec
from prefdata.train.precision import pick_precision

ADAM_MOMENTS = 2


@dataclass(frozen=True)
class Role:
    """One line of the table.

    Attributes:
        role: whose memory.
        parameters: how many there are.
        weights: bytes of them.
        gradients: bytes of their gradients; 0 where nothing is trained.
        optimiser: bytes of AdamW's two moments.
        note: what is not counted, or why it is 0.
    """

    role: str
    parameters: int = 0
    weights: int = 0
    gradients: int = 0
    optimiser: int = 0
    note: str = ""

    @property
    def total(self) -> int:
        """All its bytes."""
        return self.weights + self.gradients + self.optimiser


def memory_by_role(files: ModelFiles, spec: PpoSpec, scorers: dict[str, RankSpec]) -> list[Role]:
    """Return the memory of each network and of the largest tables, in bytes.

    Args:
        files: the policy.
        spec: the settings.
        scorers: those of the reward, by name.
    """
    precision = pick_precision(spec.dtype, pick_device(spec.device))
    net = _network(AutoModelForCausalLM, files)
    whole, size = _count(net), precision.frozen.itemsize
    if spec.lora_r is not None:
        add_adapter(net, spec, files, torch.float32)
    trained = _count(net, trained=True) + (net.config.get_text_config().hidden_size + 1) * _has_value_head(spec)
    adapter = spec.lora_r is not None
    roles = [_trained("policy", trained, precision.weights.itemsize, frozen=whole if adapter else 0, frozen_size=size)]
    roles += [
        Role("reference", note="the policy without its adapter")
        if adapter
        else Role("reference", whole, whole * precision.weights.itemsize)
    ]
    if spec.critic is not None:
        critic = _network(AutoModelForSequenceClassification, identify(spec.critic, "reward-model", weights=False))
        roles.append(_trained("critic", _count(critic), precision.weights.itemsize))
    elif spec.method == "ppo":
        roles.append(Role("critic", note="a head of the policy, counted there"))
    if spec.ema is not None:
        roles.append(Role("average", trained, trained * precision.weights.itemsize))
    roles += [_scorer(name, scorer) for name, scorer in scorers.items()]
    return [*roles, _sampling(net, spec, size), _logits(net, spec), _tables(spec)]


def _has_value_head(spec: PpoSpec) -> bool:
    return spec.method == "ppo" and spec.critic is None


def _network(auto: Any, files: ModelFiles) -> Any:
    """Return the network of a model without any memory for its weights."""
    config = read_config(files)
    if auto is AutoModelForSequenceClassification:
        config.num_labels = 1
    with torch.device("meta"):
        return auto.from_config(config)


def _count(net: Any, *, trained: bool = False) -> int:
    return sum(p.numel() for p in net.parameters() if p.requires_grad or not trained)


def _trained(role: str, count: int, size: int, *, frozen: int = 0, frozen_size: int = 0) -> Role:
    weights = count * size + frozen * frozen_size
    return Role(role, count + frozen, weights, count * size, ADAM_MOMENTS * count * size)


def _scorer(name: str, spec: RankSpec) -> Role:
    models = scorer_models(spec)
    if not models:
        return Role(f"reward: {name}", note="no model")
    files = next(iter(models.values()))
    if files.path is None:
        return Role(f"reward: {name}", note="not on this machine")
    weights = sum(file.stat().st_size for file in files.path.glob("*.safetensors"))
    return Role(f"reward: {name}", weights=weights, note="as on the disk; its batches are not counted")


def _sampling(net: Any, spec: PpoSpec, size: int) -> Role:
    """Keys and values of the largest batch that is sampled at one time, at most all responses of a step."""
    config = net.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    positions = getattr(config, "max_position_embeddings", None) or 1024
    largest = BATCH_TOKENS.get(pick_device(spec.device).type, BATCH_TOKENS["cpu"])
    tokens = min(spec.batch_size * spec.responses * positions, largest)
    cache = 2 * config.num_hidden_layers * heads * head * tokens * size
    return Role("sampling", weights=cache, note=f"keys and values of up to {tokens:,} tokens")


def _logits(net: Any, spec: PpoSpec) -> Role:
    """Count the logits of a micro-batch and what the backward pass makes of them, in float32, at most one chunk."""
    tokens = micro_budget(pick_device(spec.device), spec).given
    elements = min(tokens * net.config.get_text_config().vocab_size, CHUNK_ELEMENTS)
    return Role("logits", weights=2 * 4 * elements, note=f"of {tokens:,} tokens; other activations are not counted")


def _tables(spec: PpoSpec) -> Role:
    tables = 8 * 4 * spec.batch_size * spec.responses * spec.max_tokens
    return Role("experience", weights=tables, note="tables by token, on the CPU")
