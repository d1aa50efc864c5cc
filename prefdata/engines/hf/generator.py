"""The embedded engine: transformers and torch alone, on a CPU or a CUDA GPU.

Requests are pulled in chunks, sorted by length, and put into batches of a token budget: left-padded rows with an
attention mask and explicit positions. A prompt that several requests of a batch share is computed once, and rows
whose responses have ended leave the batch (and its cache). A candidate depends on its prompt, seed and settings, not on
its batch: see `token_sampling`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from transformers import AutoModelForCausalLM

from prefdata.chat.encoder import Chat
from prefdata.engines.hf.batch_state import WholeRows, packed, pick_batch_state
from prefdata.engines.hf.beam_search import BeamRequest, search
from prefdata.engines.hf.penalties import Penalties
from prefdata.engines.hf.token_sampling import Settings, draw, stream_keys
from prefdata.engines.protocol import Completion, Rejection, Request, Sampling, refusal, room
from prefdata.engines.stop_strings import StopStrings
from prefdata.ids import Message
from prefdata.models.files import ModelFiles
from prefdata.models.loading import computed, load, merge_adapter, pick_device, pick_dtype
from prefdata.models.memory import TokenBudget
from prefdata.specs.chat import TemplateChoice

WINDOW = 2000
"""Requests that are pulled and sorted at a time."""

BATCH_TOKENS = {"cpu": 32_768, "cuda": 131_072}
"""Default budgets: rows times the positions of the longest row, by kind of device."""

MAX_ROWS = 256

ENDED_SHARE = 32
"""Rows leave a batch when one in so many has ended."""


R = TypeVar("R", Request, BeamRequest)
Answers = list[Completion | Rejection]


class TransformersGenerator:
    """A Generator on transformers; see `prefdata.engines.protocol.Generator`."""

    name = "transformers"
    renders = True

    def __init__(
        self,
        model: ModelFiles,
        *,
        raw: bool = False,
        choice: TemplateChoice = TemplateChoice(),
        device: str | None = None,
        dtype: str = "auto",
        batch_tokens: int | None = None,
        context_length: int | None = None,
        lora: str | None = None,
        notes: Sequence[str] = (),
        net: Any = None,
    ) -> None:
        """Load the model.

        Args:
            model: what `identify` found.
            raw: continue plain text although the model has a chat template.
            choice: which chat template, with which variables.
            device: `cpu`, `cuda`, `cuda:1`; a CUDA GPU where there is one, by default.
            dtype: `auto` is float32 on a CPU and bfloat16 on a GPU.
            batch_tokens: rows times positions of a batch; more is faster while it fits into memory.
            context_length: use less of the context than the model was made for.
            lora: the folder of an adapter in PEFT's format, to merge into the weights.
            notes: sentences to carry along.
            net: the network, where it is loaded already (a policy in training); its device and type are taken.

        Raises:
            ModelError: the model, its tokenizer or the adapter cannot be loaded.
            UsageError: there is no such device.
        """
        self.model = model
        self.device = pick_device(device)
        dtype = pick_dtype(dtype, self.device)
        self.computed = computed(self.device, dtype)
        self.chat = Chat.of(model, raw=raw, choice=choice)
        self.template_hash = self.chat.template_hash
        self.context_length = min(context_length or 1 << 20, model.context_length or 1 << 20)
        self._budget = TokenBudget(batch_tokens or BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cpu"]))
        self.versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        self.notes = (*notes, *self.chat.notes)
        self._net = load(AutoModelForCausalLM, model, dtype, self.device) if net is None else net
        if lora is not None:
            self._net = merge_adapter(self._net, Path(lora))
        self._batch_state = pick_batch_state(self._net)
        if self._batch_state is WholeRows:
            self.notes += ("Every token is computed from whole rows, which is slow: the model's cache cannot be used.",)
        self._vocabulary = int(self._net.get_input_embeddings().num_embeddings)
        ends = [end for end in self.chat.end_ids if end < self._vocabulary]
        self._ends = torch.tensor(ends, dtype=torch.int64, device=self.device)
        self._stops = StopStrings(self.chat, self._vocabulary)

    def render(
        self, messages: Sequence[Message], tools: str | None = None, holds: Sequence[str] = ()
    ) -> tuple[int, ...]:
        """Return the token ids of a prompt; see the protocol."""
        return self.chat.prompt_ids(messages, tools, holds)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion | Rejection]:
        """Answer every request once, a batch at a time; see the protocol."""
        stream = iter(requests)
        while window := list(islice(stream, WINDOW)):
            refusals = [refusal(request, self.context_length, self._vocabulary) for request in window]
            yield from (no for no in refusals if no is not None)
            fit = [request for request, no in zip(window, refusals, strict=True) if no is None]
            yield from self._computed(fit, self._answers)

    def beams(self, requests: Iterable[BeamRequest]) -> Iterator[Completion | Rejection]:
        """Search for the most probable responses to every prompt, one per key; see `prefdata.engines.hf.beam_search`.

        Raises:
            EngineError: the engine broke down. What was yielded before is valid.
        """
        stream = iter(requests)
        while window := list(islice(stream, WINDOW)):
            fit: dict[tuple[int, bool], list[BeamRequest]] = {}
            for request in window:
                asked = request.asked()
                refusals = [refusal(one, self.context_length, self._vocabulary) for one in asked]
                yield from (no for no in refusals if no is not None)
                if asked and refusals[0] is None:
                    fit.setdefault((len(asked), request.diversity_penalty is None), []).append(request)
            for (beams, _), alike in fit.items():
                yield from self._computed(alike, self._found, rows=beams)

    def close(self) -> None:
        """Free the model's memory."""
        self._net = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _computed(
        self, requests: Sequence[R], compute: Callable[[list[R]], Answers], rows: int = 1
    ) -> Iterator[Completion | Rejection]:
        """Yield the responses to requests, each of so many rows, in batches that memory holds."""

        def one_by_one(some: Sequence[R], tokens: int) -> Iterator[tuple[list[R], Answers]]:
            for batch in self._batches(some, tokens, rows):
                yield batch, compute(batch)

        yield from chain.from_iterable(self._budget.batches(requests, one_by_one))

    def _batches(self, window: Sequence[R], tokens: int, rows: int) -> Iterator[list[R]]:
        """Batch requests of similar length, each of so many rows, within a budget of tokens."""

        # Long ones first: a batch that does not fit into memory is then the first one, not the last.
        def size(request: R) -> tuple[int, int, tuple[int, ...]]:
            return len(request.prompt_ids), self._room(request), request.prompt_ids

        batch: list[R] = []
        longest = 0
        for request in sorted(window, key=size, reverse=True):
            length = len(request.prompt_ids) + self._room(request)
            more = (len(batch) + 1) * rows
            if batch and (more > MAX_ROWS or more * max(longest, length) > tokens):
                yield batch
                batch, longest = [], 0
            batch.append(request)
            longest = max(longest, length)
        if batch:
            yield batch

    def _room(self, request: Request | BeamRequest) -> int:
        return room(request if isinstance(request, Request) else request.asked()[0], self.context_length)

    def _found(self, batch: list[BeamRequest]) -> Answers:
        found = search(self._batch_state, self._net, batch, self._ends, self._stops, self.context_length)
        return [
            Rejection(key, "rejected", f"the search found {len(beams)} responses, not {len(request.keys)}")
            if beam is None
            else self._completion(key, request.sampling, beam.token_ids, beam.logprobs)
            for request, beams in zip(batch, found, strict=True)
            for key, beam in zip_longest(request.keys, beams)
        ]

    def _answers(self, batch: list[Request]) -> Answers:
        drawn = self._decode(batch)
        return [self._completion(r.key, r.sampling, *row) for r, row in zip(batch, drawn, strict=True)]

    def _completion(
        self, key: str, sampling: Sampling, token_ids: Sequence[int], logprobs: Sequence[float]
    ) -> Completion | Rejection:
        logprob_sum = sum(logprobs)
        if math.isnan(logprob_sum):
            return Rejection(key, "rejected", "the model's output is not a number (NaN)")
        cut = self._stops.cut(token_ids, sampling.stop, sampling.min_tokens)
        return Completion(
            key,
            self.chat.decode(token_ids) if cut is None else cut,
            tuple(token_ids),
            "length" if cut is None and token_ids[-1] not in self.chat.end_ids else "stop",
            logprob_sum,
            tuple(logprobs) if sampling.logprobs else None,
        )

    @torch.inference_mode()
    def _decode(self, batch: list[Request]) -> list[tuple[list[int], list[float]]]:
        """Sample until every row has ended: the tokens of each and their ln p."""
        device, samplings, prompts = self.device, [r.sampling for r in batch], [r.prompt_ids for r in batch]
        limit = torch.tensor([room(r, self.context_length) for r in batch], device=device)
        longest = int(limit.max())
        keys = stream_keys([r.seed for r in batch], longest).to(device)
        tokens = torch.zeros(len(batch), longest, dtype=torch.int64, device=device)
        logps = torch.zeros(len(batch), longest, dtype=torch.float64, device=device)
        length = limit.clone()

        settings = Settings.of(samplings, self._vocabulary, device)
        penalties = Penalties.of(samplings, prompts, self._ends, self._vocabulary)
        stops = self._stops.watch(samplings, device)
        rows = self._batch_state(self._net, prompts, self.context_length)
        live = torch.arange(len(batch), device=device)
        for step in range(longest):
            penalised = None if penalties is None else penalties(rows.logits, step)
            token, logp = draw(rows.logits, settings, keys[live, step], penalised)
            tokens[live, step], logps[live, step] = token, logp
            ends = torch.isin(token, self._ends)
            if stops is not None:
                ends |= stops.ended(live, token, tokens, step + 1)
            length[live] = torch.where(ends, length[live].clamp(max=step + 1), length[live])
            stay = packed(length[live] > step + 1)
            if not len(stay):
                break
            if penalties is not None:
                penalties.note(token)
            if (len(live) - len(stay)) * ENDED_SHARE >= len(live):
                rows.select(stay)
                live, token, settings = live[stay], token[stay], settings.rows(stay)
                penalties = None if penalties is None else penalties.rows(stay)
            rows.append(token)
        ids, numbers, lengths = tokens.tolist(), logps.tolist(), length.tolist()
        return [(ids[i][:n], numbers[i][:n]) for i, n in enumerate(lengths)]
