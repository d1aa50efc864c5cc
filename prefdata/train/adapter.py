"""Adapters on a model: LoRA and DoRA by PEFT, trained while the model's own weights stay as they are.

PEFT replaces linear layers inside the model, so that all else works on it as on any other model. With the adapter off
it is the model that training started from: the reference needs no second copy.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from prefdata.errors import ModelError, UsageError
from prefdata.models.adapters import WEIGHTS
from prefdata.models.files import ModelFiles
from prefdata.train.adapter_specs import AdapterSpec
from prefdata.train.logps import score_head


def add_adapter(model: Any, spec: AdapterSpec, files: ModelFiles, dtype: torch.dtype) -> Any:
    """Put a new adapter on a model, which computes the same numbers with it until it is trained.

    Args:
        model: the model; its own weights are trained no longer, except a reward model's head.
        spec: the adapter's settings.
        files: where the model came from, which the adapter names.
        dtype: of the adapter's weights.

    Returns:
        PEFT's view of the model.

    Raises:
        UsageError: PEFT is not installed, or the model has no layer of such a name.
        ModelError: PEFT knows no adapter for the model.
    """
    if files.adapter is not None and not spec.merge:
        raise UsageError(
            f"{files.name} is an adapter, and a new one would belong to both. Give --merge: it saves the whole model."
        )
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UsageError("--lora-r needs PEFT. Install it (pip install 'prefdata[lora]').") from None
    assert spec.lora_r is not None
    config = LoraConfig(
        r=spec.lora_r,
        lora_alpha=spec.alpha,
        lora_dropout=spec.lora_dropout,
        target_modules=_targets(model, spec, files.name),
        use_dora=spec.dora,
        task_type="CAUSAL_LM" if score_head(model) is None else "SEQ_CLS",
        base_model_name_or_path=files.name if files.path is None else str(files.path),
        revision=files.revision if files.path is None else None,
    )
    try:
        with warnings.catch_warnings(action="ignore"):  # it tells what it corrects by itself
            adapter = get_peft_model(model, config, low_cpu_mem_usage=model.device.type == "meta")
    except (ValueError, TypeError) as error:
        raise ModelError(f"{files.name}: PEFT cannot put an adapter on it ({' '.join(str(error).split())}).") from None
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return adapter


def _targets(model: Any, spec: AdapterSpec, name: str) -> list[str]:
    """Name the layers that get an adapter, as PEFT matches them: by the end of their path.

    Raises:
        UsageError: one of the names that were given fits no linear layer.
    """
    linear = [path for path, module in model.base_model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    known = sorted({path.rsplit(".", 1)[-1] for path in linear})
    for target in spec.lora_targets:
        if not any(f".{path}".endswith(f".{target}") for path in linear):
            raise UsageError(f"--lora-targets {target}: {name} has no such linear layer. It has {', '.join(known)}.")
    return sorted(set(spec.lora_targets)) or known


@contextmanager
def adapter_off(adapter: Any) -> Iterator[None]:
    """Compute as the model did without the adapter."""
    adapter.base_model.disable_adapter_layers()
    try:
        yield
    finally:
        adapter.base_model.enable_adapter_layers()


def train_adapter(adapter: Any) -> None:
    """Let the adapter's own dropout work in a model that is in eval mode."""
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [layer for layer in adapter.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        layer.training = True  # and not the layer that it adapts
        layer.lora_dropout.train()


class WithoutAdapter:
    """A model as it was before it had an adapter, for those who use its trunk and its head.

    Args:
        model: the model.
        adapter: PEFT's view of it.
    """

    def __init__(self, model: Any, adapter: Any) -> None:
        self._model, self._adapter, self.config = model, adapter, model.config

    def base_model(self, **inputs: Any) -> Any:
        """Return the trunk."""
        with adapter_off(self._adapter):
            return self._model.base_model(**inputs)

    def get_output_embeddings(self) -> nn.Module:
        """Return the head, which has no adapter."""
        head: nn.Module = self._model.get_output_embeddings()
        return head


def save_adapter(adapter: Any, folder: Path) -> None:
    """Write the adapter as PEFT loads it, in float32 or whatever its weights are."""
    from peft import get_peft_model_state_dict

    found: dict[str, Tensor] = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = adapter.peft_config["default"]
    config.inference_mode = True
    config.save_pretrained(folder)
