"""The embedded engine: transformers and torch alone, on a CPU or a CUDA GPU.

Requests are taken in windows, sorted by length, and put into batches of a token budget: left-padded rows with an
attention mask and explicit positions. A prompt that several requests of a batch share is computed once, and a row
leaves the batch (and its cache) when its answer ends. A candidate depends on its prompt, seed and settings, not on
its batch: see `draw`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from prefdata.engines.chat import Chat
from prefdata.engines.draw import Settings, draw, stream_keys
from prefdata.engines.loading import load, pick_device, pick_dtype
from prefdata.engines.protocol import Completion, Rejection, Request, refusal, room
from prefdata.errors import EngineError
from prefdata.ids import Message
from prefdata.model_files import ModelFiles

WINDOW = 2000
"""Requests that are pulled and sorted at a time."""

BATCH_TOKENS = {"cpu": 16_384, "cuda": 131_072}
"""Default budgets: rows times the positions of the longest row, by kind of device."""

MAX_ROWS = 256


class TransformersGenerator:
    """A Generator on transformers; see `prefdata.engines.protocol.Generator`."""

    name = "transformers"
    renders = True

    def __init__(
        self,
        model: ModelFiles,
        *,
        raw: bool = False,
        device: str | None = None,
        dtype: str = "auto",
        batch_tokens: int | None = None,
        context_length: int | None = None,
        lora: str | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        """Load the model.

        Args:
            model: what `identify` found.
            raw: continue plain text although the model has a chat template.
            device: `cpu`, `cuda`, `cuda:1`; a CUDA GPU where there is one, by default.
            dtype: `auto` is float32 on a CPU and bfloat16 on a GPU.
            batch_tokens: rows times positions of a batch; more is faster until the memory ends.
            context_length: use less of the context than the model was made for.
            notes: sentences to carry along.

        Raises:
            ModelError: the model or its tokenizer cannot be loaded.
            EngineError: there is no such device.
        """
        self.model = model
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.chat = Chat.load(model.folder(), name=model.name, raw=raw)
        self.template_hash = self.chat.template_hash
        self.context_length = min(context_length or 1 << 20, model.context_length or 1 << 20)
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cpu"])
        self.versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        self.notes = tuple(notes)
        self._net = load(AutoModelForCausalLM, model, self.dtype, self.device)
        self._vocabulary = int(self._net.get_input_embeddings().num_embeddings)
        ends = self.chat.end_ids(self._net.config, self._net.generation_config)
        self._ends = torch.tensor(ends, dtype=torch.int64, device=self.device)

    def render(self, messages: Sequence[Message], tools: str | None = None) -> tuple[int, ...]:
        """The token ids of a prompt; see the protocol."""
        return self.chat.prompt_ids(messages, tools)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion | Rejection]:
        """Answer every request once, a batch at a time; see the protocol."""
        stream = iter(requests)
        while window := list(islice(stream, WINDOW)):
            refusals = [refusal(request, self.context_length, self._vocabulary) for request in window]
            yield from (no for no in refusals if no is not None)
            for batch in self._batches([r for r, no in zip(window, refusals, strict=True) if no is None]):
                yield from self._answer(batch)

    def close(self) -> None:
        """Give back the model's memory."""
        self._net = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _batches(self, window: list[Request]) -> Iterator[list[Request]]:
        # Long ones first: a batch that does not fit into memory is then the first one, not the last.
        def size(request: Request) -> tuple[int, int, tuple[int, ...]]:
            return len(request.prompt_ids), room(request, self.context_length), request.prompt_ids

        batch: list[Request] = []
        longest = 0
        for request in sorted(window, key=size, reverse=True):
            length = len(request.prompt_ids) + room(request, self.context_length)
            rows = len(batch) + 1
            if batch and (rows > MAX_ROWS or rows * max(longest, length) > self.batch_tokens):
                yield batch
                batch, longest = [], 0
            batch.append(request)
            longest = max(longest, length)
        if batch:
            yield batch

    def _answer(self, batch: list[Request]) -> list[Completion | Rejection]:
        """The answers of one batch; one that does not fit into a GPU's memory is halved, as are those to come."""
        try:
            tokens, logp = self._decode(batch)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            if len(batch) == 1:
                raise EngineError("the GPU's memory does not hold one request. Lower the context length.") from None
            self.batch_tokens = max(self.batch_tokens // 2, 1)
            half = len(batch) // 2
            return self._answer(batch[:half]) + self._answer(batch[half:])
        return [self._completion(*row) for row in zip(batch, tokens.tolist(), logp.tolist(), strict=True)]

    def _completion(self, request: Request, drawn: list[int], logprob_sum: float) -> Completion | Rejection:
        if logprob_sum != logprob_sum:
            return Rejection(request.key, "rejected", "the model's output is not a number (NaN)")
        ids = tuple(drawn[: drawn.index(-1)] if -1 in drawn else drawn)
        ended = ids[-1] in self._ends.tolist()
        text = self.chat.decode(ids)
        return Completion(request.key, text, ids, "stop" if ended else "length", logprob_sum)

    @torch.inference_mode()
    def _decode(self, batch: list[Request]) -> tuple[Tensor, Tensor]:
        """Draw until every row has ended: tokens (B, longest) with -1 after the end, and summed ln p (B,) float64."""
        device, vocabulary = self.device, self._vocabulary
        limit = torch.tensor([room(r, self.context_length) for r in batch], device=device)
        longest = int(limit.max())
        settings = Settings.of([r.sampling for r in batch], vocabulary, device)
        keys = stream_keys([r.seed for r in batch], longest).to(device)
        tokens = torch.full((len(batch), longest), -1, device=device)
        total = torch.zeros(len(batch), dtype=torch.float64, device=device)

        logits, mask, cache = self._prefill([r.prompt_ids for r in batch])
        live = torch.arange(len(batch), device=device)
        for step in range(longest):
            token, logp = draw(logits, settings.rows(live), keys[live, step])
            tokens[live, step] = token
            total[live] += logp
            goes_on = ~torch.isin(token, self._ends) & (limit[live] > step + 1)
            if not bool(goes_on.all()):
                stay = goes_on.nonzero()[:, 0]
                if not len(stay):
                    break
                cache.batch_select_indices(stay)
                live, token, mask = live[stay], token[stay], mask[stay]
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
            logits = self._forward(token[:, None], mask, mask.sum(1, keepdim=True) - 1, cache)
        return tokens, total

    def _prefill(self, prompts: list[tuple[int, ...]]) -> tuple[Tensor, Tensor, DynamicCache]:
        """Next-token logits (B, V), attention mask (B, T) and cache of the prompts, each distinct one computed once."""
        distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        width = max(map(len, prompts))
        ids = torch.zeros(len(distinct), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for prompt, row in distinct.items():
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        cache = DynamicCache(config=self._net.config)
        logits = self._forward(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), cache)
        rows = torch.tensor([distinct[prompt] for prompt in prompts], device=self.device)
        cache.batch_select_indices(rows)
        return logits[rows], mask[rows], cache

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        out = self._net(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = out.logits[:, -1]
        return logits
