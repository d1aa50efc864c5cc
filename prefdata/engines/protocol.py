"""What sampling asks of an engine: token ids in, completions out, as a stream.

An engine gets prompts as token ids only. Text is rendered once, by the engine's own `render`, so that no server ever
tokenises it again and adds a second BOS. Every request carries its own seed and its own sampling settings, and comes
back under its key: order and batches mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from prefdata.errors import InputError
from prefdata.ids import Message
from prefdata.model_files import ModelFiles


class TemplateRefusal(InputError):
    """A conversation that the model's chat template does not take (roles out of order, a role or tools unknown)."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn: temperature first, then top-k, then top-p of what is left.

    Attributes:
        temperature: divides the logits; 0 always takes the likeliest token.
        top_p: the least set of likeliest tokens that holds this share of the probability, in (0, 1]; 1 keeps all.
        top_k: this many likeliest tokens; 0 keeps all.
        max_tokens: the most tokens of an answer, its end token included.
    """

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Request:
    """One answer that is wanted: a key of the caller's, the rendered prompt, and the seed of this very draw."""

    key: str
    prompt_ids: tuple[int, ...]
    seed: int
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer.

    Attributes:
        key: the request's.
        text: the answer without special tokens.
        token_ids: the tokens as drawn, the end token included where one was drawn.
        finish_reason: `stop` where an end token was drawn, `length` where the tokens ran out first.
        logprob_sum: sum of ln p of the tokens under the model itself (temperature 1, nothing cut off), in nats.
    """

    key: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    logprob_sum: float


@dataclass(frozen=True, slots=True)
class Rejection:
    """A request that has no answer, and why."""

    key: str
    status: Literal["prompt_too_long", "rejected"]
    detail: str


class Generator(Protocol):
    """A causal language model behind an engine.

    Attributes:
        name: of the engine: `transformers`, `vllm`.
        model: the files that it runs.
        context_length: the most tokens of prompt and answer together.
        dtype: in which it computes (`float32`, `bfloat16`, …).
        versions: of the libraries that decide the numbers.
        template_hash: id of the chat template and the tokenizer's files: of all that decides the ids of a prompt.
        notes: sentences for whoever runs it: which engine was chosen and why, an untested version.
    """

    name: str
    model: ModelFiles
    context_length: int
    dtype: str
    versions: dict[str, str]
    template_hash: str
    notes: tuple[str, ...]

    def render(self, messages: Sequence[Message], tools: str | None = None) -> tuple[int, ...]:
        """The token ids of a prompt, ready for the answer's first token.

        Raises:
            TemplateRefusal: the chat template does not take this conversation.
        """
        ...

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion | Rejection]:
        """Answer every request exactly once, in any order; requests are pulled as they are needed.

        Raises:
            EngineError: the engine broke down. What was yielded before stands.
        """
        ...

    def close(self) -> None:
        """Give back the memory. The generator cannot be used afterwards."""
        ...


def refusal(request: Request, context_length: int, vocabulary: int) -> Rejection | None:
    """Why a prompt cannot be answered (no room for an answer, no tokens, a token that the model lacks), or None."""
    length = len(request.prompt_ids)
    if length >= context_length:
        return Rejection(request.key, "prompt_too_long", f"{length} prompt tokens in a context of {context_length}")
    if length == 0:
        return Rejection(request.key, "rejected", "the prompt has no tokens")
    if (highest := max(request.prompt_ids)) >= vocabulary:
        return Rejection(request.key, "rejected", f"token {highest} is not among the model's {vocabulary}")
    return None


def room(request: Request, context_length: int) -> int:
    """The tokens that the answer may have: what was asked for, or less where the context ends first."""
    return min(request.sampling.max_tokens, context_length - len(request.prompt_ids))
