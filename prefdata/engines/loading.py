"""Where and how a network runs, and loading it: shared by the embedded engine and the reward models."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from prefdata.errors import EngineError, ModelError
from prefdata.model_files import ModelFiles

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: str | None) -> torch.device:
    """The device asked for, or the first CUDA GPU, or the CPU.

    Raises:
        EngineError: there is no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError) as error:
        raise EngineError(f'device "{device}": {str(error).splitlines()[0]}. Use --device cpu.') from None
    return picked


def pick_dtype(dtype: str, device: torch.device) -> str:
    """The name of the type asked for; `auto` is float32 on a CPU and bfloat16 on a GPU.

    Raises:
        EngineError: there is no such type here.
    """
    if dtype == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    if dtype not in _DTYPES:
        raise EngineError(f'dtype "{dtype}" is not known. Use auto, {", ".join(_DTYPES)}.')
    return dtype


def load(auto_class: Any, model: ModelFiles, dtype: str, device: torch.device) -> Any:
    """The network of `model`, from safetensors alone, ready for inference.

    Raises:
        ModelError: transformers cannot load it, or would make up weights that the files lack.
    """
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        net, found = auto_class.from_pretrained(
            model.folder(), dtype=_DTYPES[dtype], use_safetensors=True, output_loading_info=True
        )
    except Exception as error:
        raise ModelError(f"cannot load {model.name}: {error}.") from error
    if missing := sorted(found["missing_keys"]):
        raise ModelError(
            f"the weights of {model.name} lack {len(missing)} tensors of a {model.architecture} (first: {missing[0]}). "
            "Save or fetch the model again."
        )
    return net.to(device).eval()
