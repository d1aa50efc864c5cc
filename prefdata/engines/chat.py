"""Conversations to token ids, once, and token ids back to text: the same for every engine and scorer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from prefdata.engines.protocol import TemplateRefusal
from prefdata.errors import ModelError
from prefdata.ids import Message, digest

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt")


class Chat:
    """A model's tokenizer and chat template.

    A model without a template, or with `raw`, continues the plain text of a single user message, tokenised as the
    tokenizer does by itself (with its BOS where it has one).

    Attributes:
        tokenizer: the transformers tokenizer.
        template: the chat template, or None where plain text is continued.
        template_hash: id of the template and the tokenizer's files.
    """

    def __init__(self, tokenizer: Any, *, name: str, raw: bool = False, files_hash: str = "") -> None:
        """Wrap a tokenizer; `name` is the model's in messages, `files_hash` the hash of the tokenizer's files."""
        self.tokenizer = tokenizer
        self.name = name
        self.raw = raw
        self.template: str | None = None if raw or not tokenizer.chat_template else tokenizer.get_chat_template()
        self.template_hash = digest({"template": self.template, "tokenizer": files_hash})

    @classmethod
    def load(cls, folder: Path, *, name: str | None = None, raw: bool = False) -> Self:
        """The tokenizer and template in a model's folder.

        Raises:
            ModelError: the tokenizer cannot be loaded.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except Exception as error:
            raise ModelError(f"cannot load the tokenizer of {folder}: {error}. Save it there again.") from error
        hashes = {
            file: hashlib.sha256((folder / file).read_bytes()).hexdigest()
            for file in _TOKENIZER_FILES
            if (folder / file).is_file()
        }
        return cls(tokenizer, name=name or str(folder), raw=raw, files_hash=digest(hashes))

    def prompt_ids(self, messages: Sequence[Message], tools: str | None = None) -> tuple[int, ...]:
        """The ids of a prompt, ready for the first token of an answer: one BOS at most, no end token.

        Args:
            messages: the conversation, `{role, content}` each.
            tools: the tools as JSON text, where there are some.

        Raises:
            TemplateRefusal: the chat template does not take this conversation, or there is no template for it.
        """
        return self._encode(self.text(messages, tools, answer_next=True))

    def conversation(self, messages: Sequence[Message], response: str, tools: str | None = None) -> str:
        """The exact text of a conversation that ends with `response` as the assistant's, as a scorer reads it.

        Raises:
            TemplateRefusal: the chat template does not take this conversation, or there is no template for it.
        """
        if self.template is None:
            return self._single(messages) + response
        return self.text([*messages, {"role": "assistant", "content": response}], tools, answer_next=False)

    def conversation_ids(self, text: str) -> list[int]:
        """The ids of a text that `conversation` made."""
        return list(self._encode(text, keep_end=True))

    def text(self, messages: Sequence[Message], tools: str | None, *, answer_next: bool) -> str:
        """The text that the template makes of a conversation; `answer_next` opens the assistant's turn.

        Raises:
            TemplateRefusal: the chat template does not take this conversation, or there is no template for it.
        """
        if self.template is None:
            return self._single(messages)
        rendered = self._apply(messages, None if tools is None else json.loads(tools), answer_next)
        if tools is not None and rendered == self._apply(messages, None, answer_next):
            raise TemplateRefusal(f"the chat template of {self.name} has no place for tools. Choose a model that has.")
        return rendered

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of an answer: no special tokens, spaces as they are, broken UTF-8 as U+FFFD.

        Where plain text is continued, the text starts with the space that the tokens begin with: prompt and answer
        put together read as the model wrote them.
        """
        if self.template is not None:
            return self._decode(token_ids)
        # Some tokenizers drop the space in front of a text's first word, so the first word here is another one.
        anchor = self.tokenizer.encode("a", add_special_tokens=False)
        before, whole = self._decode(anchor), self._decode([*anchor, *token_ids])
        return whole[len(before) :] if whole.startswith(before) else self._decode(token_ids)

    def pieces(self, vocabulary: int) -> list[str]:
        """What each token adds to a text, with U+FFFD where that depends on its neighbours; `""` for special ones.

        Args:
            vocabulary: how many tokens the model has; ids that the tokenizer lacks add nothing.
        """
        anchor = self.tokenizer.encode("a", add_special_tokens=False)
        before = self._decode(anchor)
        known = min(vocabulary, len(self.tokenizer))
        wholes = (self._decode([*anchor, token]) for token in range(known))
        pieces = [whole[len(before) :] if whole.startswith(before) else "\ufffd" for whole in wholes]
        return pieces + [""] * (vocabulary - known)

    def end_ids(self, *configs: Any) -> tuple[int, ...]:
        """The ids that end an answer: every end token that the tokenizer or one of the configs names, ascending."""
        found: set[int] = set()
        for value in (self.tokenizer.eos_token_id, *(getattr(config, "eos_token_id", None) for config in configs)):
            found.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
        return tuple(sorted(found))

    def _apply(self, messages: Sequence[Message], tools: Any, answer_next: bool) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tools=tools,
                    tokenize=False,
                    add_generation_prompt=answer_next,
                )
            )
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise TemplateRefusal(
                f"the chat template of {self.name} refuses this conversation ({roles}): {error}. "
                "Change its roles, or use --raw with a single user message."
            ) from None

    def _single(self, messages: Sequence[Message]) -> str:
        if len(messages) == 1 and messages[0]["role"] == "user":
            return str(messages[0]["content"])
        why = "with --raw" if self.raw else f"{self.name} has no chat template:"
        roles = ", ".join(str(message["role"]) for message in messages) or "empty"
        raise TemplateRefusal(
            f"{why} only the text of a single user message can be continued, and this conversation is {roles}. "
            "Choose a model with a chat template."
        )

    def _encode(self, text: str, *, keep_end: bool = False) -> tuple[int, ...]:
        # A template writes its own special tokens; plain text gets those that the tokenizer adds.
        tokenizer = self.tokenizer
        try:
            ids = tokenizer.encode(text, add_special_tokens=self.template is None)
        except (UnicodeError, TypeError) as error:
            raise TemplateRefusal(f"a text that is not Unicode cannot be tokenised: {error}.") from None
        while len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
            ids = ids[1:]
        if self.template is None and not keep_end and ids and ids[-1] == tokenizer.eos_token_id:
            ids = ids[:-1]  # a tokenizer that closes every text would leave nothing to continue
        return tuple(ids)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
