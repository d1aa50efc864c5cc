"""Any OpenAI-compatible server: `vllm serve`, similar ones, and commercial services.

With the model's tokenizer (`--tokenizer`) prompts are rendered locally and sent as token ids, as to every other
engine. Without it the server renders the conversation by its own template. One request a candidate, each with its own
seed; so many at a time, the next as soon as one is finished. The key is read from the environment and never printed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from threading import Event
from typing import Any, Literal

from prefdata.chat.encoder import Chat
from prefdata.chat.messages import for_server
from prefdata.engines.openai.client import RequestRefused, Server
from prefdata.engines.openai.reading import (
    Odd,
    count,
    ending,
    has_reasoning,
    logprobs_of,
    refused_by_model,
    text_of,
    token_ids,
    usage_of,
)
from prefdata.engines.protocol import Completion, Rejection, Request, refusal, room
from prefdata.engines.stop_strings import StopStrings
from prefdata.errors import EngineError, UsageError, did_you_mean
from prefdata.ids import Message
from prefdata.models.files import ModelFiles, identify
from prefdata.parallel import as_completed
from prefdata.specs import ModelSpec

NO_BOUND = 1 << 62
TOO_LONG = re.compile(
    "context[_ ](length|size|window)|max_model_len|maximum model length|too long|too large to process|too many tokens"
    "|exceeds the maximum number of tokens|reduce the length|must have less than|max_new_tokens` must be"
)
"""Servers' messages for a prompt that does not fit: vLLM, OpenAI, llama.cpp, TGI, Gemini, Anthropic, Cohere, Groq."""

FILTERED = ("content_filter", "content_policy", "content management policy", "moderation")
"""Servers' messages for a prompt that a filter refuses."""

SPARABLE = {
    "return_token_ids": "returns no token ids",
    "logprobs": "gives no log-probabilities",
    "seed": "takes no seed, so that its responses are not reproducible",
    "response_format": "enforces no JSON schema",
    "temperature": "takes no temperature and uses its own",
}
"""Optional fields: sent to every server, dropped where it does not know them, and named in the notes.

The temperature is dropped where it is 1, or where any will do (`Sampling.any_temperature`).
"""

REASONING_NOTE = "The server sent reasoning with its responses, which is not stored."
LOGPROBS_NOTE = "Some of the server's log-probabilities are not numbers: those responses have none."
NEUTRAL = {
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "min_tokens": 0,
}
"""Values that change nothing. Strict servers refuse such fields; those in `FULL` have other defaults and get them."""

FULL = ("vllm", "llamacpp")
"""The `owned_by` of models on servers whose own defaults are not neutral."""


def served(spec: ModelSpec) -> ModelFiles:
    """Return a server's model: without files, or with `--tokenizer` those that turn text into token ids.

    Raises:
        ModelError: there is no such tokenizer.
    """
    if spec.tokenizer is None:
        return ModelFiles(spec.model, "", None, {})
    files = identify(spec.tokenizer, "causal-lm", weights=False)
    return ModelFiles(spec.model, "", files.text_folder(), files.config)


class OpenAIGenerator:
    """A Generator on a server; see `prefdata.engines.protocol.Generator`."""

    name = "openai"

    def __init__(self, files: ModelFiles, spec: ModelSpec) -> None:
        """Connect to the server.

        Args:
            files: what `served` found.
            spec: the model's name on the server, its address and settings.

        Raises:
            UsageError: no address of a server is given.
            ModelError: the tokenizer cannot be loaded.
            EngineError: the server cannot be reached, or does not take the key.
        """
        url = spec.base_url or os.environ.get("OPENAI_BASE_URL")
        if not url:
            raise UsageError(
                "the openai engine needs the server's address. Give --base-url http://HOST:PORT/v1, "
                "or set OPENAI_BASE_URL."
            )
        self.model = files
        self.renders = spec.tokenizer is not None
        self.chat = _chat(files, spec) if self.renders else None
        self.template_hash = self.chat.template_hash if self.chat else ""
        self.computed: dict[str, str] = {}
        self._raw = spec.raw
        self._name = spec.model
        self._concurrency = spec.concurrency
        self._spared: set[str] = set()
        self._seen: set[str] = set()
        self._limit = "max_tokens"
        self._server = Server(
            url, key_env=spec.api_key_env, timeout=spec.timeout, retries=spec.retries, connections=spec.concurrency
        )
        try:
            self._greet(spec.max_model_len)
        except BaseException:
            self.close()
            raise

    def render(
        self, messages: Sequence[Message], tools: str | None = None, holds: Sequence[str] = ()
    ) -> tuple[int, ...]:
        """Return the token ids of a prompt, or none where the server renders; see the protocol."""
        return self.chat.prompt_ids(messages, tools, holds) if self.chat else ()

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion | Rejection]:
        """Answer every request once, as the server does, so many at a time; see the protocol."""
        # Texts are decoded here: a tokenizer is not thread-safe.
        with closing(as_completed(requests, self._answer, self._concurrency)) as answers:
            for request, answer in answers:
                yield answer if isinstance(answer, Rejection) else self._completion(request, answer)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user: which end tokens were sent, what the server does not do."""
        spared = (f"The server {why}." for name, why in SPARABLE.items() if name in self._spared)
        return (*(self.chat.notes if self.chat and self._ends_told else ()), *spared, *sorted(self._seen))

    def close(self) -> None:
        """End the connections."""
        self._server.close()

    def _greet(self, max_model_len: int | None) -> None:
        """Query the server: its version, whether it is vLLM, and the model's context length."""
        models = {str(one.get("id")): one for one in self._server.models()}
        version = self._server.version()
        self._known = sorted(map(self._server.without_secrets, models))
        mine = models.get(self._name, {})
        # vLLM fills what is not given from the model's own generation defaults, llama.cpp from its own.
        self._says_all = mine.get("owned_by") in FULL
        self._ends_told = mine.get("owned_by") == "vllm" and self.chat is not None and bool(self.chat.notes)
        length = count(mine.get("max_model_len")) or None
        lengths = [n for n in (length, max_model_len, self.model.context_length) if n is not None]
        self.context_length = min(lengths) if lengths else None
        self.versions = {"server": version} if version else {}

    def _refusal(self, request: Request) -> Rejection | None:
        if self.chat:
            return refusal(request, self.context_length or NO_BOUND, self.model.vocabulary or NO_BOUND)
        if self._raw and [message["role"] for message in request.messages] != ["user"]:
            roles = ", ".join(message["role"] for message in request.messages) or "empty"
            detail = f"with --raw only the text of a single user message can be continued, and this is {roles}"
            return Rejection(request.key, "rejected", detail)
        return None

    def _answer(self, request: Request, left: Event) -> tuple[Request, dict[str, Any] | Rejection]:
        """Send a request and return the server's reply unparsed; `left` is set once nobody waits for it."""
        if (no := self._refusal(request)) is not None:
            return request, no
        path, body = self._body(request)
        while True:
            sent = {name: value for name, value in body.items() if name not in self._spared}
            sent[self._limit] = sent.pop("max_tokens", None)
            if not _any_temperature(request):
                sent["temperature"] = request.sampling.temperature
            try:
                given = {name: value for name, value in sent.items() if value is not None}
                return request, self._server.post(path, given, _too_long, left)
            except RequestRefused as refused:
                if not self._gives_way(request, refused, sent) and not _without_limit(path, body, refused):
                    return request, self._rejection(request, refused)

    def _body(self, request: Request) -> tuple[str, dict[str, Any]]:
        """Return the path and the body of a request."""
        sampling = request.sampling
        most = room(request, self.context_length) if self.chat and self.context_length else sampling.max_tokens
        body: dict[str, Any] = {
            "model": self._name,
            "max_tokens": most,
            "temperature": sampling.temperature,
            "seed": request.seed,
            "return_token_ids": True,
            "stop": [text for text in sampling.stop if text] or None,
            "response_format": sampling.json_schema and _response_format(sampling.json_schema),
        }
        for name, neutral in NEUTRAL.items():
            value = getattr(sampling, name)
            if value != neutral or self._says_all:
                body[name] = min(value, most) if name == "min_tokens" else value
        if self.chat:
            if self._ends_told:
                body["stop_token_ids"] = list(self.chat.end_ids)
            return "completions", body | {"prompt": list(request.prompt_ids), "logprobs": 1}
        if self._raw:
            return "completions", body | {"prompt": request.messages[0]["content"], "logprobs": 1}
        body |= {"messages": [for_server(message) for message in request.messages], "logprobs": True}
        if request.messages and request.messages[-1].get("prefill"):
            body |= {"continue_final_message": True, "add_generation_prompt": False}  # as vLLM and SGLang call it
        if request.tools is not None:
            body |= {"tools": json.loads(request.tools), "tool_choice": "none"}  # shown, never called
        return "chat/completions", body

    def _gives_way(self, request: Request, refused: RequestRefused, sent: dict[str, Any]) -> bool:
        """Whether to send again without a field that this server does not know, or with another name for it."""
        if refused.status not in (400, 422):
            return False
        if "max_completion_tokens" in refused.said and "max_tokens" in sent:  # other threads may be first
            self._limit = "max_completion_tokens"
            return True
        sparable = [name for name in SPARABLE if name != "temperature" or _any_temperature(request)]
        spared = [name for name in sparable if name in sent and re.search(rf"\b{name}\b", refused.said)]
        self._spared.update(spared)
        return any(name in sent for name in self._spared.intersection(sparable))

    def _rejection(self, request: Request, refused: RequestRefused) -> Rejection:
        """Return the row for a request that the server refuses.

        Raises:
            EngineError: it would refuse every other request too.
        """
        if refused.status in (401, 403):
            raise self._server.wrong_key(refused)
        if refused.status == 404:
            v1 = "" if self._server.url.endswith("/v1") else " (did you forget /v1?)"
            hint = did_you_mean(self._name, self._known) if self._known else f" Check --model and --base-url{v1}."
            raise EngineError(
                f"{self._server.url} has no model {self._name}, or no such address: {refused.said}.{hint}"
            )
        text = f"{refused.code} {refused.said}".lower()
        status: Literal["prompt_too_long", "refused", "rejected"] = "rejected"
        if any(sign in text for sign in FILTERED):
            status = "refused"
        elif _too_long(refused):
            status = "prompt_too_long"
        return Rejection(request.key, status, f"{refused.status} {refused.said}")

    def _completion(self, request: Request, answer: dict[str, Any]) -> Completion | Rejection:
        try:
            return self._read(request, answer)
        except Odd as odd:
            return Rejection(request.key, "rejected", self._server.line(f"the response {odd}"))

    def _read(self, request: Request, answer: dict[str, Any]) -> Completion | Rejection:
        choice = answer["choices"][0]
        refusal, finish = refused_by_model(choice), ending(choice)
        if refusal or finish == "filter":
            why = self._server.without_secrets(refusal or "the server's content filter")
            return Rejection(request.key, "refused", why)
        text, ids, logprobs = text_of(choice), token_ids(choice), self._logprobs(choice)
        if has_reasoning(choice):
            self._seen.add(REASONING_NOTE)
        if ids is not None and self.chat:
            text = self._text(ids, text, request, choice)
        if secret := self._server.secret_in(text):
            return Rejection(request.key, "rejected", f"the response holds {secret}, and is not stored")
        return Completion(
            request.key,
            text,
            ids,
            finish,
            None if logprobs is None else sum(logprobs),
            logprobs if request.sampling.logprobs else None,
            prompt_tokens=usage_of(answer, "prompt_tokens"),
            completion_tokens=usage_of(answer, "completion_tokens"),
        )

    def _logprobs(self, choice: dict[str, Any]) -> tuple[float, ...] | None:
        """Return the tokens' log-probabilities; None where one is missing."""
        found = logprobs_of(choice)
        if found is None or None not in found:
            return found  # type: ignore[return-value]
        self._seen.add(LOGPROBS_NOTE)
        return None

    def _text(self, ids: Sequence[int], text: str, request: Request, choice: dict[str, Any]) -> str:
        """Decode the text with our tokenizer; take the server's text where only that contains a stop string."""
        assert self.chat is not None
        ours = self.chat.decode(ids)
        if not isinstance(choice.get("stop_reason"), str):
            return ours
        before = StopStrings(self.chat, 0).cut(ids, request.sampling.stop, request.sampling.min_tokens)
        return text if before is None else before


def _any_temperature(request: Request) -> bool:
    """Whether a server that takes no temperature may use its own, which is usually 1."""
    return request.sampling.any_temperature or request.sampling.temperature == 1.0


def _too_long(refused: RequestRefused) -> bool:
    return refused.status == 413 or TOO_LONG.search(f"{refused.code} {refused.said}".lower()) is not None


def _response_format(schema: str) -> dict[str, Any]:
    """OpenAI's `response_format` for a JSON schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": json.loads(schema)}}


def _without_limit(path: str, body: dict[str, Any], refused: RequestRefused) -> bool:
    """Whether to ask again for fewer tokens: only a chat server knows how much of its context a prompt takes."""
    return _too_long(refused) and path == "chat/completions" and body.pop("max_tokens", None) is not None


def _chat(files: ModelFiles, spec: ModelSpec) -> Chat:
    return Chat.of(files, raw=spec.raw, choice=spec.template_choice)
