"""Items become examples of token ids: rendered and tokenised by the encoder, split where prompt and response part.

The texts, and their ids, are those that scoring, likelihoods and sampling use (`prefdata.chat`). Trained is all that
the template writes from the response on, the end of the turn included; a template with `{% generation %}` blocks says
itself what is trained. Plain texts end with the tokenizer's end token.

A run's candidates are trained as texts, through the template, also where they were truncated: the trained response then
ends there too.
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
"""Tokens at the end of a response among which its end token must be: some templates write a line break after it."""


class Problem(NamedTuple):
    """Why an item has no example: a word for the report, and what is wrong."""

    reason: str
    detail: str


@dataclass
class Encoded:
    """Examples, and what became of the items that are not among them.

    Attributes:
        examples: the examples.
        rows: the places of their items.
        dropped: items that are left out, by reason.
        bad: the rows of those that the template refuses or changes, and why.
        figures: items of which a report should tell, by what is to be told.
        ends: the tokens that end the responses.
        conversations: how many of the examples are conversations, and not plain texts.
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
        max_length: most tokens of a prompt with one response, or None.
        on_long: error, drop or truncate; what happens to longer ones. Truncation cuts the ends of responses.
        sampled: whether the model is one that is sampled from, so that a response must follow the prompt as it does
            there. A reward model reads whole conversations.
        on_bad_rows: what happens to items that the template refuses or changes; all but error leave them out.
    """

    def __init__(
        self,
        chat: Chat,
        max_length: int | None = None,
        on_long: str = "error",
        *,
        sampled: bool = True,
        on_bad_rows: OnBadRows = "error",
    ) -> None:
        self.chat, self.plain = chat, chat.plain()
        self.max_length, self.on_long = max_length, on_long
        self.sampled, self.on_bad_rows = sampled, on_bad_rows
        self._ends = set(chat.end_ids) | (set(chat.special_ids) if chat.turn_end is None else set())

    def encode(self, items: Sequence[Item]) -> Encoded:
        """The items as examples.

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
        """Whether the template's own marks say which tokens of an item are trained."""
        chats = len(item.answers) == 1 and not isinstance(item.prompt, str)
        return self.sampled and chats and self.chat.template is not None and self.chat.template.marks

    def _split(self, items: Sequence[Item], out: Encoded) -> list[Example | Problem]:
        """Examples by the longest common prefix of the prompt's and the whole texts' tokens."""
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
        """The prompt's text and every whole text; or what is wrong."""
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
                "the tokenizer has no chat template, and the data holds conversations of several turns. Give a model "
                "that has one, or a template with --chat-template."
            )

    def _count(self, item: Item, wholes: Sequence[str], out: Encoded) -> None:
        """Count what a report should tell of an item's texts."""
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
        """Examples by the template's {% generation %} marks: every turn of the assistant, or those of the response."""
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
        """The token ids of a conversation, and which of them are trained.

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
                return Problem("changed_by_template", "the chat template writes nothing for the response")
            out.ends.add(self._end_of(response))
        return Example(
            prompt, responses, trained, item.weight, item.margin or 0.0, item.probability, item.label, item.ratings
        )

    def _end_of(self, response: Ids) -> int:
        """The token that ends a response: the one that the template ends turns with, or any other end token.

        Raises:
            ModelError: there is none.
        """
        tail = response[-_END_WINDOW:].tolist()
        found = self.chat.turn_end if self.chat.turn_end in tail else next((t for t in tail if t in self._ends), None)
        if found is None:
            raise ModelError(
                f"the chat template ends a response with {self.chat.tokenizer.decode(tail)!r}, which is no end token: "
                "a model trained so would never stop. Let the template write the end token after the assistant's turn "
                "(inside its generation block, where it has one)."
            )
        return found

    def _fit(self, item: Item, example: Example, out: Encoded, place: int) -> Problem | None:
        """Put the example into `out` if it is not too long, or as `on_long` says; returns what is wrong with it."""
        fits = example = self._distinct(example, out)
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
        """A group with each response once: of equal ones the best rated stays."""
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
    """The example with its responses cut to `room` tokens."""
    trained = None if example.trained is None else tuple(mask[:room] for mask in example.trained)
    return replace(example, responses=tuple(response[:room] for response in example.responses), trained=trained)


def _alike(example: Example) -> bool:
    """Whether two responses are the same tokens, so that there is nothing to prefer."""
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
