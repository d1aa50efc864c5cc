"""Engines: causal language models behind one protocol. Importing this imports neither torch nor vllm."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from functools import cache
from typing import TYPE_CHECKING, Literal

from prefdata.errors import UsageError
from prefdata.model_files import ModelFiles

if TYPE_CHECKING:
    from prefdata.engines.protocol import Generator

Engine = Literal["transformers", "vllm"]


def choose_engine(asked: Literal["auto", "transformers", "vllm"]) -> tuple[Engine, str]:
    """The engine to use, and why: `auto` takes vllm where it is installed and an NVIDIA GPU is there.

    Raises:
        UsageError: vllm was asked for and is not installed.
    """
    installed = importlib.util.find_spec("vllm") is not None
    if asked == "vllm" and not installed:
        raise UsageError(
            "vllm is not installed. Install it (pip install 'prefdata[vllm]') or use --engine transformers."
        )
    if asked != "auto":
        return asked, "asked for"
    if not installed:
        return "transformers", "vllm is not installed"
    if not has_gpu():
        return "transformers", "vllm is installed, but there is no NVIDIA GPU"
    return "vllm", "vllm is installed and there is an NVIDIA GPU"


@cache
def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU that its driver lists."""
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True, check=False).returncode == 0


def open_generator(
    files: ModelFiles,
    engine: Engine,
    *,
    raw: bool = False,
    device: str | None = None,
    dtype: str = "auto",
    batch_tokens: int | None = None,
) -> Generator:
    """The model on that engine, loaded.

    Raises:
        ModelError: the model cannot be loaded.
        EngineError: the engine cannot start.
        UsageError: a setting that the engine has no use for.
    """
    if engine == "vllm":
        if device is not None or batch_tokens is not None:
            raise UsageError(
                "--device and --batch-tokens are for the transformers engine. vLLM fills its batches by itself, and "
                "takes the GPUs that CUDA_VISIBLE_DEVICES shows it."
            )
        from prefdata.engines.vllm import VllmGenerator

        return VllmGenerator(files, raw=raw, dtype=dtype)
    from prefdata.engines.transformers import TransformersGenerator

    return TransformersGenerator(files, raw=raw, device=device, dtype=dtype, batch_tokens=batch_tokens)
