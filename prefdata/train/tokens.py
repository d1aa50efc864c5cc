"""Items become trees of token ids: rendered once, split where prompt and answer part, checked for their ends.

A conversation is rendered whole by the model's chat template, and the answer is what follows the longest prefix that
its tokens share with those of the rendered prompt: no token of a boundary is ever made from two tokenisations. What is
trained is all that the template writes from there on, the end of the turn included. Plain texts get the tokenizer's
own begin token, and its end token at their end.

A run's candidates are trained as texts, through the template, also where they were cut off by the length limit: the
trained answer then ends there too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from prefdata.errors import BadRow, BadRows, ModelError
from prefdata.train.batches import Ids, Tree
from prefdata.train.layouts import Item, Turns

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_END_WINDOW = 4
"""Tokens at the end of an answer among which its end token must be: some templates write a line break after it."""


@dataclass
class Encoded:
    """Trees, and what became of the items that are not among them.

    `rows` are the places of the trees' items.
    """

    trees: list[Tree] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    truncated: int = 0

    def drop(self, reason: str) -> None:
        """Count one item that is left out."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1


class Encoder:
    """Turns items into trees for one model.

    Args:
        tokenizer: the model's.
        stops: ids that may end an answer.
        max_length: most tokens of a prompt with one answer, or None.
        on_long: error, drop or truncate; what happens to longer ones. Truncation cuts the ends of answers.
    """

    def __init__(self, tokenizer: Any, stops: frozenset[int], max_length: int | None, on_long: str) -> None:
        self.tokenizer, self.max_length, self.on_long = tokenizer, max_length, on_long
        self.template = tokenizer.get_chat_template() if tokenizer.chat_template else None
        self.ends = np.array(sorted({*stops, *tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}))

    def encode(self, items: Sequence[Item]) -> Encoded:
        """The items as trees.

        Raises:
            ModelError: the chat template is missing, or does not end an answer with an end token.
            BadRows: the template refuses rows, or rows are too long and `on_long` is error.
        """
        drawn = self._masked(items) if self._has_masks(items) else self._split(items)
        out, bad = Encoded(), []
        for place, (item, tree) in enumerate(zip(items, drawn, strict=True)):
            problem = tree if isinstance(tree, str) else self._fit(tree, out, place)
            if problem:
                bad.append(BadRow(item.row.file, item.row.row, problem))
        if bad:
            raise BadRows(bad)
        return out

    def _has_masks(self, items: Sequence[Item]) -> bool:
        chats = bool(items) and len(items[0].answers) == 1 and not isinstance(items[0].prompt, str)
        return chats and bool(self.template and _GENERATION.search(self.template))

    def _split(self, items: Sequence[Item]) -> list[Tree | str]:
        """Trees by the longest common prefix of the prompt's and the whole texts' tokens; texts for unusable items."""
        rendered = [self._texts(item) for item in items]
        plain = [special for _, special in rendered]
        flat = [text for texts, _ in rendered if not isinstance(texts, str) for text in texts]
        adds = [special for texts, special in rendered if not isinstance(texts, str) for _ in texts]
        ids = iter(self._tokenise(flat, adds))
        trees: list[Tree | str] = []
        for item, (texts, _), special in zip(items, rendered, plain, strict=True):
            if isinstance(texts, str):
                trees.append(texts)
                continue
            prompt, *wholes = [next(ids) for _ in texts]
            trees.append(self._tree(item, prompt, [self._ended(whole, special) for whole in wholes]))
        return trees

    def _texts(self, item: Item) -> tuple[list[str] | str, bool]:
        """(the prompt's text and every whole text, whether the tokenizer adds its special tokens); or what is wrong."""
        if isinstance(item.prompt, str):
            return [item.prompt, *(item.prompt + str(answer) for answer in item.answers)], True
        if self.template is None:
            return self._untemplated(item), True
        try:
            wholes = [self._render([*item.prompt, *answer], item) for answer in item.answers]
            return [self._render(item.prompt, item, add_generation_prompt=True), *wholes], False
        except Exception as error:  # a template is a program and raises what it likes
            return f"the chat template refuses it: {error}", False

    def _render(self, turns: Turns, item: Item, **how: Any) -> str:
        text: str = self.tokenizer.apply_chat_template(turns, tools=item.tools, tokenize=False, **how)
        return text

    def _untemplated(self, item: Item) -> list[str]:
        if len(item.prompt) != 1 or any(len(answer) != 1 for answer in item.answers):
            raise ModelError(
                "the tokenizer has no chat template, and the data holds conversations of several turns. Give a model "
                "that has one, or put chat_template.jinja into its folder."
            )
        prompt = item.prompt[0]["content"]  # type: ignore[index]
        return [prompt, *(prompt + answer[0]["content"] for answer in item.answers)]  # type: ignore[index]

    def _tokenise(self, texts: list[str], adds: list[bool]) -> list[Ids]:
        out: list[Ids | None] = [None] * len(texts)
        for special in set(adds):
            places = [i for i, add in enumerate(adds) if add is special]
            ids = self.tokenizer([texts[i] for i in places], add_special_tokens=special)["input_ids"]
            for i, vector in zip(places, ids, strict=True):
                out[i] = np.array(vector, dtype=np.int32)
        return [vector for vector in out if vector is not None]

    def _ended(self, whole: Ids, special: bool) -> Ids:
        end = self.tokenizer.eos_token_id
        return np.append(whole, np.int32(end)) if special and (not len(whole) or whole[-1] != end) else whole

    def _tree(self, item: Item, prompt: Ids, wholes: list[Ids]) -> Tree | str:
        start = min(shared_prefix(prompt, whole) for whole in wholes)
        return self._checked(item, wholes[0][:start], tuple(whole[start:] for whole in wholes), None)

    def _masked(self, items: Sequence[Item]) -> list[Tree | str]:
        """Trees by the template's own {% generation %} marks: every turn of the assistant, or those of the answer."""
        trees: list[Tree | str] = []
        for item in items:
            turns = [*item.prompt, *item.answers[0]]
            try:
                said = self.tokenizer.apply_chat_template(
                    turns, tools=item.tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
                )
                asked = "" if item.every_turn else self._render(item.prompt, item, add_generation_prompt=True)  # type: ignore[arg-type]
            except Exception as error:  # a template is a program and raises what it likes
                trees.append(f"the chat template refuses it: {error}")
                continue
            ids, mask = np.array(said["input_ids"], dtype=np.int32), np.array(said["assistant_masks"], dtype=bool)
            mask[: shared_prefix(self._tokenise([asked], [False])[0], ids)] = False
            places = np.flatnonzero(mask)
            first, last = (places[0], places[-1] + 1) if len(places) else (len(ids), len(ids))
            trees.append(self._checked(item, ids[:first], (ids[first:last],), (mask[first:last],)))
        return trees

    def _checked(
        self, item: Item, prompt: Ids, responses: tuple[Ids, ...], trained: tuple[np.ndarray, ...] | None
    ) -> Tree | str:
        begin = self.tokenizer.bos_token_id
        for response in responses:
            if not len(response):
                return "the chat template writes nothing for the answer"
            if not np.isin(response[-_END_WINDOW:], self.ends).any():
                end = self.tokenizer.decode(response[-_END_WINDOW:])
                raise ModelError(
                    f"the chat template ends an answer with {end!r}, which is no end token: a model trained so would "
                    "never stop. Let the template write the end token after the assistant's turn (inside its "
                    "generation block, where it has one)."
                )
            begins = np.count_nonzero(prompt == begin) + np.count_nonzero(response == begin)
            if begin is not None and begin != self.tokenizer.eos_token_id and begins > 1:
                return f"it holds {begins} begin tokens ({self.tokenizer.bos_token}), and a model expects one"
        return Tree(prompt, responses, trained, item.weight, item.margin or 0.0, item.probability)

    def _fit(self, tree: Tree, out: Encoded, place: int) -> str | None:
        """Put the tree into `out` if it is not too long, or as `on_long` says; returns what is wrong with it."""
        fits = tree
        if tree.weight == 0:
            out.drop("weight_zero")
            return None
        if self.max_length is not None and tree.length > self.max_length:
            if self.on_long == "error":
                return f"{tree.length} tokens, more than {self.max_length} (see on_long and max_length)"
            room = self.max_length - len(tree.prompt)
            if self.on_long == "drop" or room < 1:
                out.drop("too_long" if self.on_long == "drop" else "prompt_too_long")
                return None
            fits = cut(tree, room)
            if len({response.tobytes() for response in fits.responses}) < len(fits.responses):
                out.drop("identical_when_truncated")
                return None
            out.truncated += 1
        out.trees.append(fits)
        out.rows.append(place)
        return None


def shared_prefix(a: Ids, b: Ids) -> int:
    """How many tokens `a` and `b` have in common at their start."""
    count = min(len(a), len(b))
    differs = np.flatnonzero(a[:count] != b[:count])
    return int(differs[0]) if len(differs) else count


def cut(tree: Tree, room: int) -> Tree:
    """The tree with its responses cut to `room` tokens."""
    trained = None if tree.trained is None else tuple(mask[:room] for mask in tree.trained)
    return replace(tree, responses=tuple(response[:room] for response in tree.responses), trained=trained)
