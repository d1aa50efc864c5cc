"""Engines: causal language models behind one protocol. Importing this imports neither torch nor vllm."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Literal

from prefdata.errors import UsageError
from prefdata.models.files import ModelFiles
from prefdata.models.gpus import has_gpu
from prefdata.specs import Group, ModelSpec, VllmSpec, flag_of, group_of

if TYPE_CHECKING:
    from prefdata.engines.protocol import Generator

Engine = Literal["transformers", "vllm", "openai"]


def choose_engine(asked: Literal["auto", "transformers", "vllm", "openai"]) -> tuple[Engine, str]:
    """Choose the engine, and say why: `auto` takes vllm where it is installed and an NVIDIA GPU is present.

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


def open_generator(spec: ModelSpec, files: ModelFiles, engine: Engine) -> Generator:
    """Load the model of `spec` on that engine.

    Raises:
        ModelError: the model cannot be loaded.
        EngineError: the engine cannot start.
        UsageError: a setting that the engine does not use.
    """
    reject_unsupported_settings(spec, engine)
    if engine == "openai":
        from prefdata.engines.openai.generator import OpenAIGenerator

        return OpenAIGenerator(files, spec)
    if engine == "vllm":
        from prefdata.engines.vllm.generator import VllmGenerator

        return VllmGenerator(files, spec)
    from prefdata.engines.hf.generator import TransformersGenerator

    return TransformersGenerator(
        files,
        raw=spec.raw,
        choice=spec.template_choice,
        device=spec.device,
        dtype=spec.dtype,
        batch_tokens=spec.batch_tokens,
        context_length=spec.max_model_len,
        lora=spec.lora,
    )


def remote_model_files(spec: ModelSpec) -> ModelFiles:
    """Return a server's model: without files, or with `--tokenizer` those that turn text into token ids.

    Raises:
        ModelError: there is no such tokenizer.
    """
    from prefdata.engines.openai.generator import served as found

    return found(spec)


_GROUPS: dict[Engine, Group] = {
    "transformers": Group.TRANSFORMERS,
    "vllm": Group.VLLM,
    "openai": Group.OPENAI,
}
"""The settings that only one engine has: those of its group."""


def reject_unsupported_settings(spec: VllmSpec, engine: Engine) -> None:
    """Refuse settings that this engine would ignore.

    Raises:
        UsageError: a setting of another engine was given.
    """
    for name, field in type(spec).model_fields.items():
        other = next((one for one, group in _GROUPS.items() if group == group_of(field)), engine)
        if other != engine and getattr(spec, name) != field.default:
            hint = " It takes the GPUs that CUDA_VISIBLE_DEVICES shows it." if engine == "vllm" else ""
            raise UsageError(f"{flag_of(name)} is for the {other} engine, and this is {engine}.{hint} Leave it out.")
    if engine == "openai" and (getattr(spec, "lora", None) or spec.dtype != "auto"):
        raise UsageError("--lora and --dtype are settings of the server: set them where it is started.")
