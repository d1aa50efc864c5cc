"""How likely a language model finds a response: ln p of its tokens, and two scores made of it.

`MeanLogprob` is RRHF's p (Yuan et al. 2023, 2304.05302): the mean ln p of the response's tokens. `ImplicitReward` is
DPO's beta * (ln p - ln p_ref) (Rafailov et al. 2023, 2305.18290), of the sums.

A conversation is rendered whole by the model's chat template; the response is what follows the longest prefix that its
tokens share with those of the rendered prompt, the end of the turn included. Training does the same: what is scored
here is what is trained there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from prefdata import ids
from prefdata.chat.encoder import Chat, shared_prefix
from prefdata.chat.template import TemplateRefusal
from prefdata.errors import ModelError
from prefdata.ids import Message
from prefdata.models.files import ModelFiles
from prefdata.models.loading import computed, load, padding_id, pick_device, pick_dtype
from prefdata.models.memory import TokenBudget
from prefdata.scorers.causal_lm.given_states import GivenStates
from prefdata.scorers.classifier.rendering import windows
from prefdata.scorers.protocol import Score, ScoringItem
from prefdata.specs.chat import TemplateChoice

WINDOW = 1000
"""Responses that are pulled and sorted by length at a time."""

BATCH_TOKENS = {"cpu": 8_192, "cuda": 65_536}
"""Default budgets: rows times the longest row, by kind of device."""

CHUNK_ELEMENTS = 1 << 26
"""Logits that exist at one time: 256 MiB in float32."""

END_WINDOW = 4
"""Tokens at the end of a response among which its end token is: some templates write a line break after it."""


T = TypeVar("T")

Row: TypeAlias = tuple[int, ...]
"""Token ids."""

Places: TypeAlias = Sequence[tuple[int, int]]
"""Rows of a batch, and what each is of."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """Token ids, and the token ids that go before them."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]


class LanguageModel:
    """A causal language model that reads texts and gives the probabilities of their tokens.

    Rows are padded on the right under an attention mask, in batches of a token budget, and every distinct row is
    computed once: two continuations of one token cost one row.
    """

    def __init__(
        self,
        files: ModelFiles,
        *,
        raw: bool = False,
        choice: TemplateChoice = TemplateChoice(),
        device: str | None = None,
        dtype: str = "auto",
        batch_tokens: int | None = None,
        chunk_elements: int = CHUNK_ELEMENTS,
    ) -> None:
        """Load the model.

        Args:
            files: what `identify` found.
            raw: continue plain text although the model has a chat template.
            choice: which chat template, with which variables.
            device: `cpu`, `cuda`, `cuda:1`; a CUDA GPU where there is one, by default.
            dtype: `auto` is float32 on a CPU and bfloat16 on a GPU.
            batch_tokens: rows times the longest row of a batch; more is faster while it fits into memory.
            chunk_elements: how many logits may exist at one time.

        Raises:
            ModelError: the model or its tokenizer cannot be loaded.
            UsageError: there is no such device or type.
        """
        self.files = files
        self.device = pick_device(device)
        dtype = pick_dtype(dtype, self.device)
        self.computed = computed(self.device, dtype)
        self.chat = Chat.of(files, raw=raw, choice=choice)
        self.context_length = files.context_length or 1 << 20
        self._budget = TokenBudget(batch_tokens or BATCH_TOKENS.get(self.device.type, BATCH_TOKENS["cpu"]))
        self.chunk_elements = chunk_elements
        self.versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        net = load(AutoModelForCausalLM, files, dtype, self.device)
        self._pad = padding_id(self.chat.tokenizer, net)
        self._trunk: Any = net.base_model
        self._vocabulary = int(net.get_output_embeddings().weight.shape[0])
        self._known = min(self._vocabulary, int(net.get_input_embeddings().num_embeddings))
        self._states = GivenStates(self._trunk)
        setattr(net, net.base_model_prefix, self._states)
        self._head: Any = net

    def answer(
        self, messages: Sequence[Message], response: str, tools: str | None = None, *, end: bool = True
    ) -> tuple[str, Continuation]:
        """Return a conversation with its response as text, and split into the tokens of the prompt and of the response.

        Args:
            messages: the conversation.
            response: its text.
            tools: the tools as JSON text, where there are some.
            end: whether the response's end token, and what the template writes after it, belong to it.

        Raises:
            TemplateRefusal: the chat template does not take this conversation, or changes the response.
        """
        text, prompt, own = self.chat.answered(messages, response, tools)
        if not end:
            tail = range(max(0, len(own) - END_WINDOW), len(own))
            own = own[: next((i for i in tail if own[i] in self.chat.end_ids), len(own))]
        return text, Continuation(prompt, own)

    def choices(
        self, messages: Sequence[Message], texts: Sequence[str], holds: Sequence[str] = ()
    ) -> tuple[str, list[Continuation]]:
        """Return the prompt as text, and each of several texts as its continuation.

        Args:
            messages: the conversation.
            texts: what may come next.
            holds: the responses that it asks about, which the prompt's text must hold.

        Raises:
            TemplateRefusal: the chat template does not take this conversation, or changes a response in it.
        """
        prompt = self.chat.text(messages, answer_next=True, holds=holds)
        before, *wholes = self.chat.encode([prompt, *(prompt + text for text in texts)], complete=False)
        start = min(shared_prefix(before, whole) for whole in wholes)
        return prompt, [Continuation(tuple(whole[:start]), tuple(whole[start:])) for whole in wholes]

    def problem(self, asked: Continuation) -> str | None:
        """Why a continuation cannot be scored (`empty`, `too_long`, `unknown_token`), or None."""
        if not asked.ids or not asked.prompt:
            return "empty"
        if len(asked.prompt) + len(asked.ids) > self.context_length:
            return "too_long"
        return "unknown_token" if max(*asked.prompt, *asked.ids) >= self._known else None

    def sums(self, asked: Sequence[Continuation]) -> list[float]:
        """Compute the ln p of every continuation given its prompt, in nats, summed over its tokens in float64.

        All of them have no `problem`.
        """
        return [logp for _, logp in sorted(self.each_sum(asked))]

    def each_sum(self, asked: Sequence[Continuation]) -> Iterator[tuple[int, float]]:
        """Yield `sums` as they are computed, each with its continuation's place: a stop loses only one batch."""
        yield from self._read([one.prompt + one.ids[:-1] for one in asked], partial(self._summed, asked))

    @torch.inference_mode()
    def _summed(
        self, asked: Sequence[Continuation], wanted: Sequence[tuple[int, int]], states: Tensor
    ) -> list[tuple[int, float]]:
        """Return the places in `asked` with their sums, for the rows and places of a batch and its states."""
        parts = [states[row, len(asked[place].prompt) - 1 :][: len(asked[place].ids)] for row, place in wanted]
        targets = torch.tensor([token for _, place in wanted for token in asked[place].ids], device=self.device)
        tokens = self._token_logps(torch.cat(parts), targets).double().cpu()
        each = torch.split(tokens, list(map(len, parts)))
        return [(place, float(own.sum())) for (_, place), own in zip(wanted, each, strict=True)]

    @torch.inference_mode()
    def states(self, asked: Sequence[Continuation]) -> list[Tensor]:
        """(tokens, size) the last hidden states at every continuation's own tokens, float32, on the CPU.

        All of them have no `problem`.
        """

        def own(wanted: Sequence[tuple[int, int]], states: Tensor) -> list[tuple[int, Tensor]]:
            cut = ((place, states[row, len(asked[place].prompt) :][: len(asked[place].ids)]) for row, place in wanted)
            return [(place, one.float().cpu().clone()) for place, one in cut]

        found = dict(self._read([one.prompt + one.ids for one in asked], own))
        return [found[place] for place in range(len(asked))]

    def close(self) -> None:
        """Free the model's memory."""
        self._trunk = self._head = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _read(
        self, rows: Sequence[Row], use: Callable[[Places, Tensor], list[tuple[int, T]]]
    ) -> Iterator[tuple[int, T]]:
        """Yield what `use` gives for every row, by its place in `rows`; each distinct row is computed once.

        `use` gets (row of the batch, place) of all that it is to make something of, and the states (B, T, H) of the
        batch, padding included.
        """
        places: dict[Row, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(row, []).append(place)

        def compute(some: Sequence[Row], tokens: int) -> Iterator[tuple[list[Row], list[tuple[int, T]]]]:
            for batch in _batches(some, tokens):
                wanted = [(number, place) for number, row in enumerate(batch) for place in places[row]]
                yield batch, use(wanted, self._batch(batch))

        longest_first = sorted(places, key=lambda row: (-len(row), row))
        yield from chain.from_iterable(self._budget.batches(longest_first, compute))

    @torch.inference_mode()
    def _batch(self, rows: list[tuple[int, ...]]) -> Tensor:
        width = max(map(len, rows))
        tokens = torch.tensor([[*row, *[self._pad] * (width - len(row))] for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self.device)
        output = self._trunk(input_ids=tokens, attention_mask=mask, use_cache=False)
        self._states.output = output
        states: Tensor = output.last_hidden_state
        return states

    def _token_logps(self, states: Tensor, targets: Tensor) -> Tensor:
        """(N,) ln p of `targets` (N,) at `states` (N, H), in float32, the logits of one chunk at a time."""
        rows = max(1, self.chunk_elements // self._vocabulary)
        parts = []
        for some, wanted in zip(torch.split(states, rows), torch.split(targets, rows), strict=True):
            self._states.output = type(self._states.output)(**{**self._states.output, "last_hidden_state": some[None]})
            parts.append(-F.cross_entropy(self._head().logits[0].float(), wanted, reduction="none"))
        return torch.cat(parts)


def _batches(rows: Sequence[Row], tokens: int) -> Iterator[list[Row]]:
    """Batch the rows, the longest first, by a budget of tokens, padding included."""
    batch: list[Row] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(batch[0]) > tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


class _AnswerScorer:
    """What the two scorers share: batches of items become continuations, and each distinct one is computed once."""

    outputs: tuple[str, ...] = ("",)
    end = True

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.versions, self.computed = model.versions, model.computed

    def score(self, items: Iterable[ScoringItem]) -> Iterator[Score]:
        """Score every item once, a window at a time; see the protocol."""
        for window in windows(items, WINDOW):
            yield from self._window(window)

    def close(self) -> None:
        """Free the model's memory."""
        self.model.close()

    def _numbers(self, asked: Sequence[Continuation]) -> Iterable[tuple[int, float, dict[str, Any]]]:
        """Return the place, the score and the details of each continuation, in any order."""
        raise NotImplementedError

    def _window(self, window: Sequence[ScoringItem]) -> Iterator[Score]:
        asked: dict[Continuation, list[tuple[str, str]]] = {}
        for item in window:
            try:
                text, tokens = self.model.answer(item.messages, item.response, item.tools, end=self.end)
            except TemplateRefusal as error:
                yield Score(item.key, None, error.reason, None, {"error": str(error)})
                continue
            if (problem := self._problem(tokens)) is None:
                asked.setdefault(tokens, []).append((item.key, ids.text_hash(text)))
                continue
            length = {"tokens": len(tokens.prompt) + len(tokens.ids)}
            yield Score(item.key, None, problem, ids.text_hash(text), length)
        continuations = list(asked)
        for place, score, details in self._numbers(continuations):
            for key, text_hash in asked[continuations[place]]:
                yield finite_score(key, score, text_hash, details)

    def _problem(self, tokens: Continuation) -> str | None:
        return self.model.problem(tokens)


class MeanLogprob(_AnswerScorer):
    """A Scorer: the mean ln p of the response's tokens; details hold the `sum` and how many `tokens`.

    The end token counts as one of them, as in RRHF, where every response gets one, also a truncated one.
    """

    def __init__(
        self,
        files: ModelFiles,
        *,
        end: bool = True,
        **settings: Any,
    ) -> None:
        """Load the model; without `end` the end token, and what the template writes after it, is left out.

        `settings` and errors are those of `LanguageModel`.
        """
        super().__init__(LanguageModel(files, **settings))
        self.end = end

    def _numbers(self, asked: Sequence[Continuation]) -> Iterator[tuple[int, float, dict[str, Any]]]:
        for place, logp in self.model.each_sum(asked):
            tokens = len(asked[place].ids)
            yield place, logp / tokens, {"sum": logp, "tokens": tokens}


class ImplicitReward(_AnswerScorer):
    """A Scorer: beta * (ln p - ln p_ref) of the response as the policy's chat template writes it.

    Details hold the two sums, `logp` and `logp_reference`. Both models read the same token ids. Like every implicit
    reward it is defined up to a constant of the prompt.
    """

    def __init__(
        self,
        policy: ModelFiles,
        reference: ModelFiles,
        beta: float,
        *,
        choice: TemplateChoice = TemplateChoice(),
        **settings: Any,
    ) -> None:
        """Load both models.

        `choice` is the policy's chat template; `settings` are those of `LanguageModel`.

        Raises:
            ModelError: one of them or its tokenizer cannot be loaded, or their tokenizers differ.
            UsageError: there is no such device or type.
        """
        super().__init__(LanguageModel(policy, choice=choice, **settings))
        self.reference = LanguageModel(reference, raw=True, **settings)  # it reads the policy's token ids
        self.beta = beta
        if self.model.chat.tokenizer.get_vocab() != self.reference.chat.tokenizer.get_vocab():
            raise ModelError(
                f"{policy.name} and {reference.name} have different tokenizers, so that tokens of one mean nothing to "
                "the other. Name the reference that the policy was trained from."
            )

    def close(self) -> None:
        """Free both models' memory."""
        self.model.close()
        self.reference.close()

    def _problem(self, tokens: Continuation) -> str | None:
        return self.model.problem(tokens) or self.reference.problem(tokens)

    def _numbers(self, asked: Sequence[Continuation]) -> Iterator[tuple[int, float, dict[str, Any]]]:
        # Both read the same rows in the same batches, so that both sums of a response are known at about one time.
        both = zip(self.model.each_sum(asked), self.reference.each_sum(asked), strict=True)
        for (place, logp), (same, of_reference) in both:
            assert place == same
            yield place, self.beta * (logp - of_reference), {"logp": logp, "logp_reference": of_reference}


def finite_score(key: str, score: float, text_hash: str, details: dict[str, Any]) -> Score:
    """Return the score, or null with the reason `nan` or `infinite` and no details: JSON has no such numbers."""
    if math.isfinite(score):
        return Score(key, score, None, text_hash, details)
    return Score(key, None, "nan" if math.isnan(score) else "infinite", text_hash, None)
