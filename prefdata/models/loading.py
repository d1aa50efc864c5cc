"""Load a network: device, type, weights and LoRA adapters, for engines, scorers and the trainer alike."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from prefdata.errors import ModelError, UsageError
from prefdata.model_files import ModelFiles

log = logging.getLogger("prefdata.models")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: str | None) -> torch.device:
    """The device asked for, or the first CUDA GPU, or the CPU.

    Raises:
        UsageError: that is no device, or this machine has none such.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError:
        raise UsageError(f"--device should be cpu, cuda, cuda:1, …, not {device!r}.") from None
    try:
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0].rstrip(".")
        raise UsageError(f"--device {device}: {said}. Use --device cpu.") from None
    return picked


def pick_dtype(dtype: str, device: torch.device) -> str:
    """The name of the type asked for; `auto` is float32 on a CPU and bfloat16 on a GPU.

    Raises:
        UsageError: there is no such type here.
    """
    if dtype == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    if dtype not in _DTYPES:
        raise UsageError(f"--dtype should be auto, {', '.join(_DTYPES)}, not {dtype!r}.")
    return dtype


def load(auto_class: Any, model: ModelFiles, dtype: str, device: torch.device) -> Any:
    """Load the network of `model` from safetensors, ready for inference; errors as in `read_weights`."""
    return read_weights(auto_class, model, _DTYPES[dtype]).to(device).eval()


def read_weights(auto_class: Any, model: ModelFiles, dtype: torch.dtype, *, new: str = "", **settings: Any) -> Any:
    """Load the network of `model` with every one of its weights taken from the files.

    Args:
        auto_class: which of transformers' classes loads it.
        model: what `identify` found.
        dtype: of the weights.
        new: the module whose weights may be missing, because the caller initialises it: a reward model's new head.
        settings: further keyword arguments of `from_pretrained`.

    Raises:
        ModelError: transformers cannot load it, or tensors are missing, have another shape, or belong to its layers
            and are not used.
    """
    try:
        with silenced():
            net, found = auto_class.from_pretrained(
                model.folder(),
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **settings,
            )
    except Exception as error:
        raise ModelError(f"cannot load {model.name}: {' '.join(str(error).split())}.") from error
    _check_complete(net, found, model, new)
    return net


def _check_complete(net: Any, found: dict[str, Any], model: ModelFiles, new: str) -> None:
    """Compare the tensors of the files with those of the network.

    Raises:
        ModelError: they differ in what the network computes with.
    """
    missing = sorted(name for name in found["missing_keys"] if not new or not name.startswith(f"{new}."))
    unused = sorted(found["unexpected_keys"])
    within = [name for name in unused if name.startswith(f"{net.base_model_prefix}.")]
    kind = type(net).__name__
    if missing:
        hint = f" They hold {_listed(unused)}, which it does not have." if unused else ""
        raise ModelError(
            f"the weights of {model.name} lack {_listed(missing)} of a {kind}.{hint} Save or fetch the model again."
        )
    if shapes := sorted(found["mismatched_keys"]):
        name, stored, wanted = shapes[0]
        raise ModelError(
            f"the weights of {model.name} do not fit its config.json: {name} is {_size(stored)} and should be "
            f"{_size(wanted)} ({_count(len(shapes), 'such tensor')}). Save or fetch the model again."
        )
    if within:
        raise ModelError(
            f"the weights of {model.name} hold {_listed(within)} in the layers of a {kind}, which has no place for "
            "them, so it would compute something else than the model that was saved. Check architectures and sizes in "
            "its config.json, or merge adapters and dequantise first."
        )
    if not new and unused:
        log.warning("%s: %s of its files are no part of a %s and are not used.", model.name, _listed(unused), kind)


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{_count(len(names), 'tensor')} ({', '.join(names[:most])}{more})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


@contextmanager
def silenced() -> Iterator[None]:
    """Keep transformers' own messages and progress bars off the terminal."""
    # What is missing or unused is checked and reported here; transformers' own tables and bars repeat it.
    hf_logging: Any = transformers.utils.logging
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def merge_lora(net: Any, folder: Path) -> None:
    """Add a LoRA adapter in PEFT's format to the weights of `net`: W + scale * B A (Hu et al. 2021, section 4.1).

    `scale` is lora_alpha / r, or lora_alpha / sqrt(r) where the adapter says `use_rslora`.

    Raises:
        ModelError: there is no such adapter, it does not fit the model, or it holds more than pairs of A and B.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        tensors, alpha = load_file(folder / "adapter_model.safetensors"), float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"cannot read the LoRA adapter {folder} ({type(error).__name__}: {error}). It needs adapter_config.json "
            "and adapter_model.safetensors, as PEFT saves them."
        ) from None
    beyond = [name for name in ("use_dora", "alpha_pattern", "modules_to_save", "lora_bias") if config.get(name)]
    beyond += [f"peft_type {config.get('peft_type')}"] if config.get("peft_type") != "LORA" else []
    beyond += sorted(name for name in tensors if not name.endswith((".lora_A.weight", ".lora_B.weight")))
    if beyond:
        raise ModelError(
            f"the adapter {folder} holds more than plain LoRA ({beyond[0]}). Merge it into its model with PEFT "
            "(merge_and_unload), and use that model."
        )
    pairs = {name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")}
    if not pairs or len(tensors) != 2 * len(pairs):
        raise ModelError(f"the adapter {folder} has no pairs of lora_A and lora_B. Save it again.")
    with torch.no_grad():
        for pair in sorted(pairs):
            down, up = tensors[f"{pair}.lora_A.weight"].float(), tensors[f"{pair}.lora_B.weight"].float()
            root = math.sqrt(len(down)) if config.get("use_rslora") else len(down)
            _add(net, pair.removeprefix("base_model.model."), alpha / root * up @ down, folder)


def _add(net: Any, name: str, change: Tensor, folder: Path) -> None:
    module = dict(net.named_modules()).get(name)
    weight = getattr(module, "weight", None)
    change = change.T if isinstance(module, Conv1D) else change  # GPT-2 keeps its matrices the other way round
    if weight is None or weight.shape != change.shape:
        raise ModelError(
            f"the adapter {folder} changes {name}, which the model does not have so. Is it another model's?"
        )
    if net.get_output_embeddings() is not None and weight is net.get_input_embeddings().weight:
        raise ModelError(
            f"the adapter {folder} changes {name}, whose weights the model uses twice. Merge it with PEFT."
        )
    weight.copy_((weight.float() + change.to(weight.device)).to(weight.dtype))
