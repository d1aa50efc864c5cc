"""Encoding of items as examples of token ids: rendered, tokenised, and split into prompt and response.

The texts, and their ids, are those that scoring, likelihoods and sampling use (`prefdata.chat`). All that the template
writes from the response on is trained, the end of the turn included; with `{% generation %}` blocks in the template,
those blocks are. Plain texts end with the tokenizer's end token.

A run's candidates are trained as texts, rendered by the template, even if they were truncated: the end token then
follows the truncated response.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from prefdata.chat.encoder import Chat, shared_prefix
from prefdata.chat.responses import require_responses
from prefdata.chat.template import TemplateRefusal, require_unicode
from prefdata.errors import BadRow, BadRows, ModelError
from prefdata.formats.bad_rows import OnBadRows
from prefdata.train.batches import Example, Ids
from prefdata.train.parsing import Item, Row, Turns

_END_WINDOW = 4
"""The end token must be among so many last tokens of a response: some templates write a line break after it."""


class Problem(NamedTuple):
    """Why an item has no example: the reason for the report, and the message."""

    reason: str
    detail: str


@dataclass
class Encoded:
    """Examples, and the counts of items without one.

    Attributes:
        examples: the examples.
        rows: the indices of their items.
        dropped: counts of items that are left out, by reason.
        bad: the rows that the template refuses or changes, and why.
        figures: counts of items for the report, by name.
        ends: the tokens that end the responses.
        conversations: how many of the examples are conversations rather than plain texts.
    """

    examples: list[Example] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[Row, Problem]] = field(default_factory=list)
    figures: Counter[str] = field(default_factory=Counter)
    ends: set[int] = field(default_factory=set)
    conversations: int = 0


class Encoder:
    """Turns items into examples for one model.

    Args:
        chat: the model's encoder.
        max_length: maximum tokens of a prompt with one response, or None.
        on_long: error, drop or truncate; what happens to longer ones. Truncation cuts the ends of responses.
        sampled: whether the model will be sampled from: a response must then follow the generation prompt as in
            sampling. A reward model reads whole conversations.
        on_bad_rows: what happens to items that the template refuses or changes; all values but error leave them out.
        vocabulary: tokens in the model's embedding, or None. Items with other tokens are bad ones, too.
    """

    def __init__(
        self,
        chat: Chat,
        max_length: int | None = None,
        on_long: str = "error",
        *,
        sampled: bool = True,
        on_bad_rows: OnBadRows = "error",
        vocabulary: int | None = None,
    ) -> None:
        self.chat, self.plain = chat, chat.plain()
        self.max_length, self.on_long = max_length, on_long
        self.sampled, self.on_bad_rows, self.vocabulary = sampled, on_bad_rows, vocabulary
        self._ends = set(chat.end_ids) | (set(chat.special_ids) if chat.turn_end is None else set())

    def encode(self, items: Sequence[Item]) -> Encoded:
        """Encode the items as examples.

        Raises:
            ModelError: the chat template is missing, or does not end a response with an end token.
            BadRows: the template refuses or changes rows and `on_bad_rows` is error, or rows are too long and `on_long`
                is error.
        """
        out, bad = Encoded(), []
        marked = [self._is_marked(item) for item in items]
        masked = iter(self._masked([item for item, marks in zip(items, marked, strict=True) if marks], out))
        split = iter(self._split([item for item, marks in zip(items, marked, strict=True) if not marks], out))
        for place, (item, marks) in enumerate(zip(items, marked, strict=True)):
            example = next(masked if marks else split)
            problem = example if isinstance(example, Problem) else self._fit(item, example, out, place)
            if problem is None:
                continue
            if self.on_bad_rows != "error" and problem.reason != "too_long":
                out.dropped[problem.reason] += 1
                out.bad.append((item.row, problem))
            else:
                bad.append(BadRow(item.row.file, item.row.row, problem.detail))
        if bad:
            raise BadRows(bad)
        return out

    def _is_marked(self, item: Item) -> bool:
        """Return whether the template's own marks say which tokens of an item are trained."""
        chats = len(item.answers) == 1 and not isinstance(item.prompt, str)
        return self.sampled and chats and self.chat.template is not None and self.chat.template.marks

    def _split(self, items: Sequence[Item], out: Encoded) -> list[Example | Problem]:
        """Split examples at the longest common prefix of the prompt's and the full texts' tokens."""
        rendered = [self._texts(item, out) for item in items]
        examples: list[Example | Problem] = [one if isinstance(one, Problem) else Problem("", "") for one in rendered]
        for chat in (self.chat, self.plain):
            texts = {
                place: one
                for place, (item, one) in enumerate(zip(items, rendered, strict=True))
                if not isinstance(one, Problem) and isinstance(item.prompt, str) is (chat is self.plain)
            }
            prompts = chat.encode([prompt for prompt, *_ in texts.values()], complete=False)
            wholes = iter(chat.encode([whole for _, *own in texts.values() for whole in own], complete=True))
            for (place, (_, *own)), prompt in zip(texts.items(), prompts, strict=True):
                examples[place] = self._example(items[place], _ids(prompt), [_ids(next(wholes)) for _ in own], out)
        return examples

    def _texts(self, item: Item, out: Encoded) -> list[str] | Problem:
        """Render the prompt's text and the full text of each response; or return what is wrong."""
        try:
            if isinstance(item.prompt, str):
                texts = [require_unicode(text) for text in (item.prompt, *(item.prompt + str(a) for a in item.answers))]
            else:
                self._require_template(item)
                tools = None if item.tools is None else json.dumps(item.tools)
                wholes = [
                    self.chat.complete(item.prompt, _turns(answer), tools, sampled=self.sampled).text
                    for answer in item.answers
                ]
                texts = [self.chat.text(item.prompt, tools, answer_next=True), *wholes]
        except TemplateRefusal as refusal:
            return Problem(refusal.reason, str(refusal))
        self._count(item, texts[1:], out)
        return texts

    def _require_template(self, item: Item) -> None:
        one_turn = len(item.prompt) == 1 and all(len(answer) == 1 for answer in item.answers)
        if self.chat.template is None and not one_turn:
            raise ModelError(
                "the tokenizer has no chat template, and the data has conversations of several turns. Choose a "
                "model with a chat template, or set --chat-template."
            )

    def _count(self, item: Item, wholes: Sequence[str], out: Encoded) -> None:
        """Count the properties of an item's texts that the report names."""
        responses = [_responses(answer) for answer in item.answers]
        if any(text not in whole for own, whole in zip(responses, wholes, strict=True) for text in own):
            out.figures["whitespace_changed_by_template"] += 1
        prompt = [item.prompt] if isinstance(item.prompt, str) else [turn["content"] for turn in item.prompt]
        if any(self.chat.spells_special(text) for text in (*prompt, *(text for own in responses for text in own))):
            out.figures["special_tokens_in_text"] += 1

    def _example(self, item: Item, prompt: Ids, wholes: list[Ids], out: Encoded) -> Example | Problem:
        start = min(shared_prefix(prompt, whole) for whole in wholes)
        return self._checked(item, wholes[0][:start], tuple(whole[start:] for whole in wholes), None, out)

    def _masked(self, items: Sequence[Item], out: Encoded) -> list[Example | Problem]:
        """Build examples from the template's {% generation %} marks: every assistant turn, or those of the response."""
        examples: list[Example | Problem] = []
        for item in items:
            try:
                ids, mask = self._marked(item, out)
            except TemplateRefusal as refusal:
                examples.append(Problem(refusal.reason, str(refusal)))
                continue
            places = np.flatnonzero(mask)
            first, last = (places[0], places[-1] + 1) if len(places) else (len(ids), len(ids))
            examples.append(self._checked(item, ids[:first], (ids[first:last],), (mask[first:last],), out))
        return examples

    def _marked(self, item: Item, out: Encoded) -> tuple[Ids, np.ndarray]:
        """Encode a conversation: its token ids, and which of them are trained.

        Raises:
            TemplateRefusal: the template refuses the conversation, changes a response, or does not mark it.
        """
        prompt, answer = _turns(item.prompt), _turns(item.answers[0])
        tools = None if item.tools is None else json.dumps(item.tools)
        rendered = self.chat.complete(prompt, answer, tools, sampled=self.sampled, every_turn=item.every_turn)
        asked = "" if item.every_turn else self.chat.text(prompt, tools, answer_next=True)
        responses = _responses([*prompt, *answer] if item.every_turn else answer)
        marked = "".join(rendered.text[at:to] for at, to in rendered.marked if to > len(asked.rstrip()))
        require_responses(marked, 0, responses, f"{self.chat.name}, in its generation blocks,")
        self._count(item, [rendered.text], out)
        ids, mask = map(np.array, self.chat.encode_marked(rendered))
        if asked:
            (before,) = self.chat.encode([asked], complete=False)
            mask[: shared_prefix(before, ids)] = False
        return ids.astype(np.int32), mask.astype(bool)

    def _checked(
        self, item: Item, prompt: Ids, responses: tuple[Ids, ...], trained: tuple[np.ndarray, ...] | None, out: Encoded
    ) -> Example | Problem:
        for response in responses:
            if not len(response):
                return Problem("changed_by_template", "the chat template writes no text for the response")
            out.ends.add(self._end_of(response))
        return Example(
            prompt, responses, trained, item.weight, item.margin or 0.0, item.probability, item.label, item.ratings
        )

    def _end_of(self, response: Ids) -> int:
        """Find the token that ends a response: the template's end of turn, or any other end token.

        Raises:
            ModelError: there is no end token.
        """
        tail = response[-_END_WINDOW:].tolist()
        found = self.chat.turn_end if self.chat.turn_end in tail else next((t for t in tail if t in self._ends), None)
        if found is None:
            raise ModelError(
                f"the chat template ends a response with {self.chat.tokenizer.decode(tail)!r}, which is not an end "
                "token: a model trained on it would never stop. Change the template to write the end token after the "
                "assistant's turn (inside its generation block, if it has one)."
            )
        return found

    def _fit(self, item: Item, example: Example, out: Encoded, place: int) -> Problem | None:
        """Add the example to `out`, too long ones as `on_long` says; returns what is wrong with it."""
        fits = example = self._distinct(example, out)
        highest = max(int(ids.max(initial=0)) for ids in (example.prompt, *example.responses))
        if self.vocabulary is not None and highest >= self.vocabulary:
            token = self.chat.tokenizer.convert_ids_to_tokens(highest)
            return Problem("unknown_token", f"token {highest} ({token!r}) is not among the model's {self.vocabulary}")
        if example.weight == 0:
            out.dropped["weight_zero"] += 1
            return None
        if _alike(example):
            out.dropped["identical_as_rendered"] += 1
            return None
        if self.max_length is not None and example.length > self.max_length:
            if self.on_long == "error":
                long = f"{example.length} tokens, more than {self.max_length}: use --on-long drop or truncate"
                return Problem("too_long", long)
            room = self.max_length - len(example.prompt)
            if self.on_long == "drop" or room < 1:
                out.dropped["too_long" if self.on_long == "drop" else "prompt_too_long"] += 1
                return None
            fits = self._distinct(truncate(example, room), out)
            if _alike(fits):
                out.dropped["identical_when_truncated"] += 1
                return None
            out.figures["truncated"] += 1
        out.examples.append(fits)
        out.rows.append(place)
        out.conversations += not isinstance(item.prompt, str)
        return None

    @staticmethod
    def _distinct(example: Example, out: Encoded) -> Example:
        """Remove duplicate responses of a group; of equal ones the best rated is kept."""
        ratings = example.ratings
        if ratings is None or len(example.responses) < 3:
            return example
        best: dict[bytes, int] = {}
        for k in sorted(range(len(example.responses)), key=lambda k: -ratings[k][0]):
            best.setdefault(example.responses[k].tobytes(), k)
        kept = sorted(best.values())
        out.figures["identical_responses"] += len(example.responses) - len(kept)
        return replace(
            example,
            responses=tuple(example.responses[k] for k in kept),
            ratings=tuple(ratings[k] for k in kept),
        )


def truncate(example: Example, room: int) -> Example:
    """Cut the example's responses to `room` tokens."""
    trained = None if example.trained is None else tuple(mask[:room] for mask in example.trained)
    return replace(example, responses=tuple(response[:room] for response in example.responses), trained=trained)


def _alike(example: Example) -> bool:
    """Return whether two responses are the same tokens, so that there is no preference to learn."""
    return len({response.tobytes() for response in example.responses}) < len(example.responses)


def _ids(tokens: Iterable[int]) -> Ids:
    return np.array(tokens, dtype=np.int32)


def _turns(part: str | Turns) -> Turns:
    assert not isinstance(part, str)
    return part


def _responses(answer: str | Turns) -> list[str]:
    if isinstance(answer, str):
        return [answer]
    return [turn["content"] for turn in answer if turn["role"] == "assistant"]
