"""Any server with OpenAI's interface: `vllm serve`, others of its kind, and the commercial ones.

With the model's tokenizer at hand (`--tokenizer`) prompts are rendered here and sent as token ids, as to every other
engine. Without it the server renders the conversation by its own template. One request a candidate, each with its own
seed; so many at a time, the next as soon as one is answered. The key is read from the environment and never said.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from threading import Event
from typing import Any, Literal

from prefdata.ahead import as_completed
from prefdata.chat.encoder import Chat
from prefdata.chat.messages import for_server
from prefdata.engines.protocol import Completion, Rejection, Request, refusal, room
from prefdata.engines.server import Refused, Server
from prefdata.engines.stops import StopTexts
from prefdata.errors import EngineError, UsageError, did_you_mean
from prefdata.ids import Message
from prefdata.model_files import ModelFiles, identify
from prefdata.specs import ModelSpec

NO_BOUND = 1 << 62
FINISHED: dict[str, Literal["stop", "length"]] = {
    "stop": "stop",
    "eos": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
}
"""What servers call the two ends of an answer."""

TOO_LONG = ("context_length", "context length", "max_model_len", "maximum model length", "context window", "too long")
FILTERED = ("content_filter", "content_policy", "content management policy", "moderation")
SPARABLE = {
    "return_token_ids": "keeps its token ids to itself",
    "logprobs": "gives no log-probabilities",
    "seed": "takes no seed, so that its answers cannot be drawn again",
    "response_format": "enforces no JSON schema",
}
"""What is asked of every server and given up where one does not know it, and how the notes say so."""


def served(spec: ModelSpec) -> ModelFiles:
    """The files of a server's model: none, or with `--tokenizer` those that make text into token ids.

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
        """Greet the server.

        Args:
            files: what `served` found.
            spec: the model's name on the server, where it is and how it is asked.

        Raises:
            UsageError: nobody says where the server is.
            ModelError: the tokenizer cannot be loaded.
            EngineError: the server cannot be reached, or does not take the key.
        """
        url = spec.base_url or os.environ.get("OPENAI_BASE_URL")
        if not url:
            raise UsageError(
                "the openai engine needs to know where the server is. Give --base-url http://HOST:PORT/v1, "
                "or set OPENAI_BASE_URL."
            )
        self.model = files
        self.renders = spec.tokenizer is not None
        self.chat = _chat(files, spec) if self.renders else None
        self.template_hash = self.chat.template_hash if self.chat else ""
        self.dtype = "the server's"
        self._raw = spec.raw
        self._name = spec.model
        self._concurrency = spec.concurrency
        self._spared: set[str] = set()
        self._limit = "max_tokens"
        self.notes: tuple[str, ...] = ()
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
        """The token ids of a prompt, or none where the server renders; see the protocol."""
        return self.chat.prompt_ids(messages, tools, holds) if self.chat else ()

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion | Rejection]:
        """Answer every request once, as the server does, so many at a time; see the protocol."""
        # Texts are made here: a tokenizer is no object for several threads.
        with closing(as_completed(requests, self._answer, self._concurrency)) as answers:
            for request, answer in answers:
                yield answer if isinstance(answer, Rejection) else self._completion(request, answer)

    def close(self) -> None:
        """End the connections."""
        self._server.close()

    def _greet(self, max_model_len: int | None) -> None:
        """Learn what the server is: its version, whether it is vLLM, and the model's context."""
        models = {str(one.get("id")): one for one in self._server.models()}
        version = self._server.version()
        self._known = sorted(map(self._server.without_secrets, models))
        mine = models.get(self._name, {})
        # vLLM fills what is not said from the model's own generation defaults: there, everything is said.
        self._is_vllm = mine.get("owned_by") == "vllm"
        self._ends_told = self._is_vllm and self.chat is not None and bool(self.chat.notes)
        self.notes = self.chat.notes if self.chat and self._ends_told else ()
        length = mine.get("max_model_len")
        lengths = [n for n in (length, max_model_len, self.model.context_length) if isinstance(n, int)]
        self.context_length = min(lengths) if lengths else None
        self.versions = {"server": version} if version else {}

    def _refusal(self, request: Request) -> Rejection | None:
        if self.chat:
            config = self.model.config.get("text_config") or self.model.config
            vocabulary = config.get("vocab_size") or NO_BOUND
            return refusal(request, self.context_length or NO_BOUND, vocabulary)
        if self._raw and [message["role"] for message in request.messages] != ["user"]:
            roles = ", ".join(message["role"] for message in request.messages) or "empty"
            detail = f"with --raw only the text of a single user message can be continued, and this is {roles}"
            return Rejection(request.key, "rejected", detail)
        return None

    def _answer(self, request: Request, left: Event) -> tuple[Request, dict[str, Any] | Rejection]:
        """What the server answers to a request, as it comes; `left` is set when nobody waits for it any more."""
        if (no := self._refusal(request)) is not None:
            return request, no
        path, body = self._body(request)
        while True:
            sent = {name: value for name, value in body.items() if name not in self._spared}
            sent[self._limit] = sent.pop("max_tokens", None)
            try:
                given = {name: value for name, value in sent.items() if value is not None}
                return request, self._server.post(path, given, _is_whole, left)
            except Refused as refused:
                if not self._gives_way(refused, sent) and not _without_limit(path, body, refused):
                    return request, self._rejection(request, refused)

    def _body(self, request: Request) -> tuple[str, dict[str, Any]]:
        """Where to send a request, and what."""
        sampling = request.sampling
        most = room(request, self.context_length) if self.chat and self.context_length else sampling.max_tokens
        body: dict[str, Any] = {
            "model": self._name,
            "max_tokens": most,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "presence_penalty": sampling.presence_penalty,
            "seed": request.seed,
            "return_token_ids": True,
            "stop": [text for text in sampling.stop if text] or None,
            "response_format": sampling.json_schema and _response_format(sampling.json_schema),
        }
        for name, silent in (("top_k", 0), ("min_p", 0.0), ("repetition_penalty", 1.0), ("min_tokens", 0)):
            value = getattr(sampling, name)
            if value != silent or self._is_vllm:
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
            body |= {"tools": json.loads(request.tools), "tool_choice": "none"}  # shown to the model; answers are text
        return "chat/completions", body

    def _gives_way(self, refused: Refused, sent: dict[str, Any]) -> bool:
        """Whether to ask again without what this server does not know, or under another name."""
        if refused.status not in (400, 422):
            return False
        if "max_completion_tokens" in refused.said and "max_tokens" in sent:  # others may have been sent beside it
            self._limit = "max_completion_tokens"
            return True
        self._spared.update(name for name in SPARABLE if re.search(rf"\b{name}\b", refused.said) and name in sent)
        spared = (f"The server {why}." for name, why in SPARABLE.items() if name in self._spared)
        self.notes = (*(self.chat.notes if self.chat and self._ends_told else ()), *spared)
        return any(name in sent for name in self._spared)

    def _rejection(self, request: Request, refused: Refused) -> Rejection:
        """The row for a request that the server refuses.

        Raises:
            EngineError: it would refuse every other one too.
        """
        if refused.status in (401, 403):
            raise self._server.wrong_key(refused)
        if refused.status == 404:
            v1 = "" if self._server.url.endswith("/v1") else " (did you forget /v1?)"
            hint = did_you_mean(self._name, self._known) if self._known else f" Check --model and --base-url{v1}."
            raise EngineError(
                f"{self._server.url} has no model {self._name}, or no such address: {refused.said}.{hint}"
            )
        said = f"{refused.code} {refused.said}".lower()
        status: Literal["prompt_too_long", "refused", "rejected"] = "rejected"
        if any(sign in said for sign in FILTERED):
            status = "refused"
        elif any(sign in said for sign in TOO_LONG):
            status = "prompt_too_long"
        return Rejection(request.key, status, f"{refused.status} {refused.said}")

    def _completion(self, request: Request, answer: dict[str, Any]) -> Completion | Rejection:
        choice = answer["choices"][0]
        message = choice.get("message") or {}
        finish = str(choice.get("finish_reason"))
        if finish == "content_filter" or message.get("refusal"):
            why = self._server.without_secrets(str(message.get("refusal") or "the server's content filter"))
            return Rejection(request.key, "refused", why)
        if finish not in FINISHED:
            return Rejection(request.key, "rejected", f"the server ended it: {self._server.without_secrets(finish)}")
        text = str(choice.get("text") or message.get("content") or "")
        if self._server.sent_key_in(text):
            return Rejection(request.key, "rejected", "the response holds the API key, and is not stored")
        ids = choice.get("token_ids")
        if ids is not None and self.chat:
            text = self._text(ids, text, request, choice)
        logprobs = _logprobs(choice)
        usage = answer.get("usage") or {}
        return Completion(
            request.key,
            text,
            None if ids is None else tuple(ids),
            FINISHED[finish],
            None if logprobs is None else sum(logprobs),
            logprobs if request.sampling.logprobs else None,
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
        )

    def _text(self, ids: Sequence[int], text: str, request: Request, choice: dict[str, Any]) -> str:
        """The text as our tokenizer makes it; the server's own where only there a stop text is found."""
        assert self.chat is not None
        ours = self.chat.decode(ids)
        if not isinstance(choice.get("stop_reason"), str):
            return ours
        before = StopTexts(self.chat, 0).cut(ids, request.sampling.stop, request.sampling.min_tokens)
        return text if before is None else before


def _is_whole(answer: dict[str, Any]) -> bool:
    """Whether a server's answer is one, and not what it says of a request that it dropped."""
    choices = answer.get("choices")
    return isinstance(choices, list) and bool(choices) and choices[0].get("finish_reason") not in ("abort", "error")


def _response_format(schema: str) -> dict[str, Any]:
    """How OpenAI's interface asks for an object of a JSON schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": json.loads(schema)}}


def _without_limit(path: str, body: dict[str, Any], refused: Refused) -> bool:
    """Whether to ask again for as much as fits: a chat server alone knows how much of its context a prompt takes."""
    fits_not = refused.status == 400 and any(sign in f"{refused.code} {refused.said}".lower() for sign in TOO_LONG)
    return fits_not and path == "chat/completions" and body.pop("max_tokens", None) is not None


def _logprobs(choice: dict[str, Any]) -> tuple[float, ...] | None:
    """The tokens' log-probabilities, from either of the two forms that servers give; None where one is missing."""
    said = choice.get("logprobs") or {}
    found = said.get("token_logprobs")
    if found is None and said.get("content") is not None:
        found = [token.get("logprob") for token in said["content"]]
    if found is None or any(value is None for value in found):
        return None
    return tuple(map(float, found))


def _chat(files: ModelFiles, spec: ModelSpec) -> Chat:
    return Chat.load(files.folder(), name=files.name, raw=spec.raw, choice=spec.template_choice)
