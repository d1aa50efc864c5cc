"""vLLM found, its version checked, an engine started: the layer that has to fit vLLM's version.

The tests run against `TESTED_VERSIONS`. What else the adapters use of vLLM is among `NEEDED`, so that a version that
lacks some of it is refused before anything is begun.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from inspect import signature
from multiprocessing import connection
from operator import attrgetter
from threading import Thread
from typing import Any

from prefdata.engines.guard import Guard
from prefdata.engines.vllm_settings import parse_options
from prefdata.errors import EngineError, UsageError
from prefdata.model_files import ModelFiles

TESTED_VERSIONS = ("0.32.0",)

NEEDED = (
    "LLMEngine.from_engine_args",
    "EngineArgs",
    "PoolingParams",
    "SamplingParams",
    "TokensPrompt",
    "exceptions.VLLMClientError",
    "lora.request.LoRARequest",
    "platforms.current_platform",
    "sampling_params.RequestOutputKind.FINAL_ONLY",
    "sampling_params.StructuredOutputsParams",
)
"""What is used of vLLM, looked for before anything is started."""

CPU_CACHE_GIB = "2"
"""Memory for keys and values on a CPU, where VLLM_CPU_KVCACHE_SPACE does not say."""

BATCH_INVARIANT_CAPABILITY = 80
"""The compute capability (times ten) from which on vLLM 0.32 has kernels that do not mind their neighbours."""

BATCH_INVARIANT = "VLLM_BATCH_INVARIANT"
"""The environment variable by which vLLM is told to use them; its processes inherit it when they start."""


def import_vllm() -> Any:
    """The vllm package, told to be quiet unless VLLM_LOGGING_LEVEL says otherwise.

    Raises:
        EngineError: it is not installed, does not work here, or lacks what is needed.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB)
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # a forked process would not carry the mark
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            import vllm
            import vllm.exceptions
            import vllm.lora.request
            import vllm.platforms
            import vllm.sampling_params
        attrgetter(*NEEDED)(vllm)
    except Exception as error:
        notes = "".join(f" {note}" for note in untested(versions("vllm").get("vllm", "of no known version")))
        raise EngineError(
            f"vllm cannot be used: {first_line(error)}.{notes} Install it again (pip install 'prefdata[vllm]'), "
            "or use --engine transformers."
        ) from error
    return vllm


def start(
    vllm: Any, model: ModelFiles, options: Sequence[str], *, dtype: str, batch_invariant: bool, **settings: Any
) -> tuple[Any, Guard]:
    """A running LLMEngine, and the guard of its processes, which is released when it is shut down.

    Args:
        vllm: what `import_vllm` gave.
        model: what `identify` found.
        options: what the user says of vLLM's settings, as `KEY=VALUE`.
        dtype: `auto` is float32 on a CPU and the model's own type on a GPU.
        batch_invariant: ask for the same results whatever else is computed beside them.
        settings: EngineArgs; those that are None are vLLM's own affair.

    Raises:
        UsageError: an option that this vLLM does not have, or that is prefdata's own, or no GPU that can do what is
            asked.
        EngineError: it did not start.
    """
    platform = vllm.platforms.current_platform
    settings |= {
        "model": str(model.folder()),
        "dtype": "float32" if dtype == "auto" and platform.is_cpu() else dtype,
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
        **parse_options(options, signature(vllm.EngineArgs).parameters),
    }
    # On a CPU vLLM takes the setting and does nothing about it.
    if batch_invariant and not (platform.is_cuda() and platform.has_device_capability(BATCH_INVARIANT_CAPABILITY)):
        raise UsageError(
            "--batch-invariant needs an NVIDIA GPU of compute capability 8.0 or more (A100, H100 and later); "
            "there is none here. Leave it out."
        )
    before = os.environ.get(BATCH_INVARIANT)
    if batch_invariant:
        os.environ[BATCH_INVARIANT] = "1"
    guard = Guard()
    try:
        given = {key: value for key, value in settings.items() if value is not None}
        engine = vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**given))
        engine.get_supported_tasks()  # which add_request would ask for, and wait for in vain of a dead engine
        _wake_when_dead(engine.engine_core)
        return engine, guard
    except BaseException as error:
        guard.release()
        if not isinstance(error, Exception):
            raise
        notes = "".join(f" {note}" for note in untested(vllm.__version__))
        raise EngineError(
            f"vLLM {vllm.__version__} cannot start: {first_line(error)}.{notes} "
            "See its own words with VLLM_LOGGING_LEVEL=INFO, or use --engine transformers."
        ) from error
    finally:
        if before is None:
            os.environ.pop(BATCH_INVARIANT, None)
        else:
            os.environ[BATCH_INVARIANT] = before


def broken(version: str, error: Exception) -> EngineError:
    """What to say when a running engine fails."""
    notes = "".join(f" {note}" for note in untested(version))
    return EngineError(
        f"vLLM {version} broke down: {first_line(error)}.{notes} Run the same command again to continue."
    )


def _wake_when_dead(core: Any) -> None:
    """See to it that whoever waits for the engine's output hears of its death.

    vLLM 0.32 notices that a process of its own was killed, closes its sockets, and leaves `get_output` waiting for
    ever.
    """
    processes = core.resources.engine_manager.processes

    def wait() -> None:
        connection.wait([process.sentinel for process in processes])
        core.outputs_queue.put(RuntimeError("a process of the engine has ended"))

    Thread(target=wait, name="prefdata-engine-watch", daemon=True).start()


def untested(version: str) -> tuple[str, ...]:
    """A sentence for a version that the tests do not run against."""
    if version.split("+")[0] in TESTED_VERSIONS:
        return ()
    return (f"vLLM {version} is untested here; tested: {', '.join(TESTED_VERSIONS)}.",)


def versions(*packages: str) -> dict[str, str]:
    """The versions of those packages that are installed; a build for CPUs (`vllm-cpu`) counts as its package."""
    found: dict[str, str] = {}
    for package in packages:
        for name in (package, f"{package}-cpu"):
            with suppress(metadata.PackageNotFoundError):
                found.setdefault(package, metadata.version(name))
    return found


def first_line(error: Exception) -> str:
    """What an error says, in a line and without its full stop."""
    said = str(error).strip()
    return said.splitlines()[0].rstrip(".") if said else type(error).__name__
