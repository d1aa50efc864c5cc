"""The protocol of engines: token ids in, completions out, as a stream.

An engine gets prompts as token ids. Text is rendered once, by the engine's own `render`, so that nothing ever
tokenises it again and adds a second BOS; the exception is a server whose tokenizer we do not have (`renders` is false).
Every request carries its own seed and its own sampling settings, and comes back under its key: order and batches do
not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from prefdata.ids import Message
from prefdata.models.files import ModelFiles


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are sampled: penalties on the logits, then temperature, then min-p, top-k, and top-p of what is left.

    Attributes:
        temperature: divides the logits; 0 always takes the most probable token.
        top_p: the smallest set of most probable tokens with this total probability, in (0, 1]; 1 keeps all.
        top_k: this many most probable tokens; 0 keeps all.
        max_tokens: maximum tokens of a response, its end token included.
        min_p: tokens at least this fraction as probable as the most probable (Nguyen et al. 2024); 0 keeps all.
        repetition_penalty: of tokens in the prompt or the response so far, positive logits are divided by it and
            negative ones multiplied (Keskar et al. 2019, section 4.1); 1 is none.
        presence_penalty: subtracted from the logits of tokens in the response so far; 0 is none.
        min_tokens: no end token, and no stop string, before this many tokens.
        stop: texts that end a response; the response's text ends before the first of them.
        logprobs: whether to return the log-probability of every token.
        json_schema: the JSON schema, as text, of the object that the response is to be. vllm and most servers let
            nothing else be sampled; transformers ignores it, so callers must validate the response.
        any_temperature: whether a server that takes no temperature but its own may use that one.
    """

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    json_schema: str | None = None
    any_temperature: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """A request for one response.

    Attributes:
        key: the caller's name for it.
        prompt_ids: the rendered prompt; empty for an engine that renders by itself (see `Generator.renders`).
        seed: of this sample.
        sampling: its settings.
        messages: the conversation, for an engine that renders by itself.
        tools: its tools, as JSON text.
    """

    key: str
    prompt_ids: tuple[int, ...]
    seed: int
    sampling: Sampling
    messages: tuple[Message, ...] = ()
    tools: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One response.

    Attributes:
        key: the request's.
        text: the response without special tokens, and without the stop string that ended it.
        token_ids: the sampled tokens, the end token (or those of the stop string) included; None where a server does
            not return them.
        finish_reason: `stop` at an end token or a stop string, `length` at the maximum number of tokens.
        logprob_sum: sum of ln p of the tokens under the model itself (no penalties, temperature 1, no truncation),
            in nats; None where a server does not return it.
        logprobs: the same, token by token, where it was asked for.
        prompt_tokens: as a server counted them; None where the request says.
        completion_tokens: as a server counted them; None where `token_ids` says.
    """

    key: str
    text: str
    token_ids: tuple[int, ...] | None
    finish_reason: Literal["stop", "length"]
    logprob_sum: float | None
    logprobs: tuple[float, ...] | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Rejection:
    """A request that has no response, and why.

    `prompt_too_long`: no room for a response; `rejected`: by the template or the engine; `refused`: a server's content
    filter refused it.
    """

    key: str
    status: Literal["prompt_too_long", "rejected", "refused"]
    detail: str


class Generator(Protocol):
    """A causal language model behind an engine.

    Attributes:
        name: of the engine: `transformers`, `vllm`, `openai`.
        model: the files that it runs, or the name that a server knows.
        renders: whether prompts are rendered here, by `render`; else a server does it, from `Request.messages`.
        computed: in and on what it computes: `dtype` (`float32`, `bfloat16`, …) and `device`; empty for a server.
        versions: of the libraries that decide the numbers.
        template_hash: id of the chat template and the tokenizer's files: of all that decides the ids of a prompt.
    """

    name: str
    model: ModelFiles
    renders: bool
    computed: dict[str, str]
    versions: dict[str, str]
    template_hash: str

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user, at any time: which engine was chosen and why, what a server does not do."""
        ...

    @property
    def context_length(self) -> int | None:
        """Maximum tokens of prompt and response together; None where only a server knows."""
        ...

    def render(
        self, messages: Sequence[Message], tools: str | None = None, holds: Sequence[str] = ()
    ) -> tuple[int, ...]:
        """Return the token ids of a prompt, ready for the response's first token.

        Args:
            messages: the conversation.
            tools: the tools as JSON text, where there are some.
            holds: responses that a message quotes, which the rendered text must hold.

        Raises:
            TemplateRefusal: the chat template does not take this conversation, or changes what it must hold.
        """
        ...

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion | Rejection]:
        """Answer every request exactly once, in any order; requests are pulled as they are needed.

        Raises:
            EngineError: the engine broke down. What was yielded before is valid.
        """
        ...

    def close(self) -> None:
        """Free the memory. The generator cannot be used afterwards."""
        ...


def refusal(request: Request, context_length: int, vocabulary: int) -> Rejection | None:
    """Why a prompt cannot be answered (no room for a response, no tokens, a token that the model lacks), or None."""
    length = len(request.prompt_ids)
    if length >= context_length:
        return Rejection(request.key, "prompt_too_long", f"{length} prompt tokens in a context of {context_length}")
    if length == 0:
        return Rejection(request.key, "rejected", "the prompt has no tokens")
    if (highest := max(request.prompt_ids)) >= vocabulary:
        return Rejection(request.key, "rejected", f"token {highest} is not among the model's {vocabulary}")
    return None


def room(request: Request, context_length: int) -> int:
    """Return the tokens that the response may have: what was asked for, or less where the context ends first."""
    return min(request.sampling.max_tokens, context_length - len(request.prompt_ids))
