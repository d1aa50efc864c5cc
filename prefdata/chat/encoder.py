"""The one encoder: conversations and plain texts to token ids, for every command, and token ids back to text.

A chat template writes its special tokens itself, and its text is tokenised as it is. Plain text (a model without a
template, or `raw`) is tokenised as the tokenizer does by itself, with its begin token where it has one, and a complete
one is closed by the end token. In both, text that spells a special token becomes that token, as in transformers and
vLLM, and a second begin token at the very start is removed.

The response of a conversation is what follows the longest start that its tokens share with those of the prompt: no
token of that boundary is ever made from two tokenisations.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from prefdata.chat.renderer import PROBE, Renderer
from prefdata.chat.template import NotUnicode, Rendered, TemplateRefusal, choose, load_tokenizer
from prefdata.errors import ModelError, UsageError
from prefdata.ids import Message, digest
from prefdata.models.files import ModelFiles
from prefdata.specs.chat import TemplateChoice

PLAIN_END = "plain_text_end"
"""The key under `prefdata` of a model's config.json: the token that closed the plain texts that it was trained on."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt")


class Answered(NamedTuple):
    """A conversation that ends with a response: its text, and the token ids before the response and from it on."""

    text: str
    prompt: tuple[int, ...]
    ids: tuple[int, ...]


class Chat(Renderer):
    """A model's tokenizer and chat template.

    A model without a template, or with `raw`, continues the plain text of a single user message.

    Attributes:
        tokenizer: the transformers tokenizer.
        template: the chat template, or None where plain text is continued.
        template_hash: id of the template, its variables and the tokenizer's files.
        end_ids: the ids that end a response: what the tokenizer and the model's configs name, and what the template
            ends turns with; ascending.
        notes: notes for the report on the end tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        name: str,
        raw: bool = False,
        choice: TemplateChoice = TemplateChoice(),
        files_hash: str = "",
        declared_ends: Iterable[int] = (),
        plain_end: str | None = None,
    ) -> None:
        """Wrap a tokenizer.

        Args:
            tokenizer: the transformers tokenizer.
            name: the model's, for messages.
            raw: continue plain text although the tokenizer has a template.
            choice: which template, with which variables.
            files_hash: the hash of the tokenizer's files.
            declared_ends: the end tokens that the model's configs name.
            plain_end: the token that closed plain texts in training, where the model says so.

        Raises:
            UsageError: there is no such template, it does not read a variable, or `raw` makes it useless.
            ModelError: the tokenizer has several templates, and none is the default or chosen.
        """
        if raw and choice:
            raise UsageError("--raw uses no chat template: leave out --chat-template and --chat-template-arg.")
        super().__init__(None if raw else choose(tokenizer, name, choice), name, raw)
        self.tokenizer, self.plain_end, self._choice = tokenizer, plain_end, choice
        identity = {"template": None} if self.template is None else self.template.identity
        self.template_hash = digest({**identity, "tokenizer": files_hash})
        self._end = self._eos if self.template is None else None
        declared = {end for end in (*declared_ends, tokenizer.eos_token_id) if end is not None}
        written = {end for end in (self.turn_end,) if end is not None}
        self.end_ids = tuple(sorted(declared | written))
        self.notes = tuple(
            f"Responses also end at {tokenizer.decode([end])}: the chat template ends turns with it, and the "
            f"configs of {name} do not name it."
            for end in written - declared
        )

    @classmethod
    def of(cls, files: ModelFiles, *, raw: bool = False, choice: TemplateChoice = TemplateChoice()) -> Self:
        """Load the tokenizer and template of a model; those of an adapter with the configs of its model.

        Raises:
            ModelError, UsageError, InputError: as `load`.
        """
        configs = (files.base or files).text_folder()
        return cls.load(files.text_folder(), name=files.name, raw=raw, choice=choice, configs=configs)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        name: str | None = None,
        raw: bool = False,
        choice: TemplateChoice = TemplateChoice(),
        configs: Path | None = None,
    ) -> Self:
        """Load the tokenizer and template in a model's folder; `configs` is that of its configs, where it is another.

        Raises:
            ModelError: the tokenizer cannot be loaded.
            UsageError, InputError: as the constructor.
        """
        tokenizer = load_tokenizer(folder)
        hashes = {
            file: hashlib.sha256((folder / file).read_bytes()).hexdigest()
            for file in _TOKENIZER_FILES
            if (folder / file).is_file()
        }
        config, generation = (_json((configs or folder) / f"{kind}.json") for kind in ("config", "generation_config"))
        return cls(
            tokenizer,
            name=name or str(folder),
            raw=raw,
            choice=choice,
            files_hash=digest(hashes),
            declared_ends=[*named_ends(config), *named_ends(generation)],
            plain_end=_record(config).get(PLAIN_END),
        )

    def plain(self, *, closed: bool = True) -> Chat:
        """Return the same tokenizer for plain text; unless `closed`, complete texts get no end token added."""
        chat = Chat(self.tokenizer, name=self.name, raw=True, plain_end=self.plain_end)
        chat._end = chat._end if closed else None
        return chat

    def of_format(self) -> Chat:
        """Return the same tokenizer for texts of a user's format, which are read as they are written.

        The end token closes them only where the model says that it was trained on plain texts closed so.
        """
        return self.plain(closed=self.plain_end is not None and self.plain_end == self.tokenizer.eos_token)

    @property
    def closes_plain_text(self) -> bool:
        """Whether complete texts are plain, and closed by the end token."""
        return self._end is not None

    @property
    def saved_templates(self) -> str | dict[str, str] | None:
        """The tokenizer's chat templates as a model that was trained by this encoder is saved with."""
        own = self.tokenizer.chat_template
        if self.template is None or not self._choice:
            return None if self.template is None else own
        made = self.template.with_defaults
        if self._choice.named is None and isinstance(own, dict):
            return {**own, **(made if isinstance(made, dict) else {"default": made})}
        return made

    def prompt_ids(
        self, messages: Sequence[Message], tools: str | None = None, holds: Sequence[str] = ()
    ) -> tuple[int, ...]:
        """Return the ids of a prompt, ready for the first token of a response: one BOS at most, no end token.

        Args:
            messages: the conversation, `{role, content}` each.
            tools: the tools as JSON text, where there are some.
            holds: responses that a message quotes, which the text must hold.

        Raises:
            TemplateRefusal: the chat template does not take this conversation, or there is no template for it.
            ResponseChanged: the text lacks a part of what it is to hold.
        """
        text = self.text(messages, tools, answer_next=True, holds=holds)
        return tuple(self.encode([text], complete=False)[0])

    def answered(self, messages: Sequence[Message], response: str, tools: str | None = None) -> Answered:
        """Tokenize a conversation with its response, split at the first token of the response.

        Raises:
            TemplateRefusal, ResponseChanged: as `conversation`; or the prompt is rendered otherwise for sampling.
        """
        text = self.complete(messages, [{"role": "assistant", "content": response}], tools, sampled=True).text
        (whole,) = self.encode([text], complete=True)
        start = shared_prefix(self.prompt_ids(messages, tools), whole)
        return Answered(text, tuple(whole[:start]), tuple(whole[start:]))

    def encode(self, texts: Sequence[str], *, complete: bool) -> list[list[int]]:
        """Return the token ids of texts that this encoder rendered: the only place where text becomes tokens.

        Args:
            texts: the texts.
            complete: whether nothing follows, so that plain text is closed by its end token; else the tokenizer's own
                end token is left out, and a response may follow.

        Raises:
            TemplateRefusal: the tokenizer does not take one of them.
            ModelError: its vocabulary is broken.
        """
        if not texts:
            return []
        plain = self.template is None
        try:
            found = self.tokenizer(list(texts), add_special_tokens=plain, return_attention_mask=False, verbose=False)
        except (UnicodeError, TypeError) as error:
            raise NotUnicode(f"a text that is not Unicode cannot be tokenised: {error}.") from None
        except Exception as error:  # tokenizers' own errors have no type: a vocabulary without a token for the unknown
            raise ModelError(f"the tokenizer of {self.name} cannot tokenise a text: {error}. Save it again.") from error
        rows = [row[self._extra_begins(row) :] for row in found["input_ids"]]
        return [self._closed(row) if complete else self._opened(row) for row in rows] if plain else rows

    def encode_marked(self, rendered: Rendered) -> tuple[list[int], list[bool]]:
        """Return a conversation's token ids, and which hold text that the template marks as the assistant's.

        Raises:
            ModelError: the tokenizer does not say which characters a token stands for.
        """
        try:
            found = self.tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        except NotImplementedError:
            raise ModelError(
                f"{self.name}: its tokenizer gives no offsets, which generation blocks need. Save it as a fast one "
                "(tokenizer.json), or use a chat template without generation blocks."
            ) from None
        ids, offsets = found["input_ids"], found["offset_mapping"]
        mask = [any(start < to and end > at for at, to in rendered.marked) for start, end in offsets]
        extra = self._extra_begins(ids)
        return ids[extra:], mask[extra:]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decode a response: no special tokens, spaces unchanged, broken UTF-8 as U+FFFD.

        Where plain text is continued, the text starts with the space that the tokens begin with: prompt and response
        put together read as the model wrote them.
        """
        if self.template is not None:
            return self._decode(token_ids)
        # Some tokenizers drop the space in front of a text's first word, so the first word here is another one.
        anchor = self.tokenizer.encode("a", add_special_tokens=False)
        before, whole = self._decode(anchor), self._decode([*anchor, *token_ids])
        return whole[len(before) :] if whole.startswith(before) else self._decode(token_ids)

    def pieces(self, vocabulary: int) -> list[str]:
        """Return the text that each token adds, U+FFFD where that depends on its neighbours; `""` for special tokens.

        Args:
            vocabulary: how many tokens the model has; ids that the tokenizer lacks add nothing.
        """
        anchor = self.tokenizer.encode("a", add_special_tokens=False)
        before = self._decode(anchor)
        known = min(vocabulary, len(self.tokenizer))
        wholes = (self._decode([*anchor, token]) for token in range(known))
        pieces = [whole[len(before) :] if whole.startswith(before) else "\ufffd" for whole in wholes]
        return pieces + [""] * (vocabulary - known)

    @cached_property
    def turn_end(self) -> int | None:
        """The token that ends a response: what the template writes first after one, for plain text the end token."""
        if self.template is None:
            return self._eos
        user = {"role": "user", "content": "a"}
        try:
            text = self.template.render([user, {"role": "assistant", "content": PROBE}]).text
        except TemplateRefusal:
            return None
        _, found, after = text.rpartition(PROBE)
        ids = self.tokenizer.encode(after, add_special_tokens=False) if found else []
        return next((token for token in ids if token in self.special_ids), None)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The special and the added tokens of the tokenizer: those that are found in a text before anything else."""
        return frozenset({*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder} - {None})

    def spells_special(self, text: str) -> bool:
        """Whether a text holds the spelling of a special token, which then becomes that token."""
        return self._special.search(text) is not None

    @property
    def _eos(self) -> int | None:
        end: int | None = self.tokenizer.eos_token_id
        return end

    @cached_property
    def _special(self) -> re.Pattern[str]:
        added = self.tokenizer.added_tokens_decoder.values()
        found = {*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
        words = sorted(found, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, words)) or r"(?!)")

    def _extra_begins(self, ids: Sequence[int]) -> int:
        """How many begin tokens are at the start beyond the first."""
        begin, count = self.tokenizer.bos_token_id, 0
        while begin is not None and len(ids) > count + 1 and ids[count] == ids[count + 1] == begin:
            count += 1
        return count

    def _closed(self, ids: list[int]) -> list[int]:
        return ids if self._end is None or ids[-1:] == [self._end] else [*ids, self._end]

    def _opened(self, ids: list[int]) -> list[int]:
        return ids[: len(ids) - self._added_after]

    @cached_property
    def _added_after(self) -> int:
        """How many tokens the tokenizer appends to a plain text by itself: 1 for T5, BERT and others."""
        bare, whole = (self.tokenizer.encode("a", add_special_tokens=special) for special in (False, True))
        at = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
        return len(whole) - at - len(bare)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def shared_prefix(a: Sequence[int] | np.ndarray, b: Sequence[int] | np.ndarray) -> int:
    """How many tokens two rows have in common at their start."""
    count = min(len(a), len(b))
    differs = np.flatnonzero(np.asarray(a[:count]) != np.asarray(b[:count]))
    return int(differs[0]) if len(differs) else count


def named_ends(config: dict[str, Any]) -> list[int]:
    """Return the end tokens that a config names: one, several or none."""
    named = config.get("eos_token_id")
    return [token for token in (named if isinstance(named, list) else [named]) if isinstance(token, int)]


def _record(config: dict[str, Any]) -> dict[str, Any]:
    """Return what the trainer recorded in a model's config.json."""
    found = config.get("prefdata")
    return found if isinstance(found, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
