"""Hidden states of responses under a language model: what SLiC compares a response with its reference by.

SLiC (Zhao et al. 2022, 2210.00045) compares two responses by the decoder's output states for their tokens.
Of a causal model these are the last hidden states at the response's own tokens, in the context of its prompt; the end
token, which every response has, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from prefdata import ids
from prefdata.chat.template import TemplateRefusal
from prefdata.models.files import ModelFiles
from prefdata.scorers.causal_lm.likelihood import Continuation, LanguageModel, finite_score
from prefdata.scorers.classifier.rendering import windows
from prefdata.scorers.protocol import Score, ScoringItem

WINDOW = 200
"""Items whose states are held at a time: 200 responses of 500 tokens of a model of size 4096 take 1.6 GiB."""

States = np.ndarray
"""(tokens, size) of one response, float32."""


class AnswerStates:
    """The hidden states of responses under one model."""

    def __init__(self, files: ModelFiles, **settings: Any) -> None:
        """Load the model; `settings` and errors are those of `LanguageModel`."""
        self.model = LanguageModel(files, **settings)
        self.versions, self.computed = self.model.versions, self.model.computed

    def of(self, items: Sequence[ScoringItem]) -> list[States | Score]:
        """Return the states of each item's response, in their order; a null score with the reason where there are none.

        Equal responses to one prompt are computed once. All of them are held: give some hundreds at a time.
        """
        asked: list[Continuation | Score] = [self._asked(item) for item in items]
        distinct = list(dict.fromkeys(one for one in asked if isinstance(one, Continuation)))
        states = dict(zip(distinct, (state.numpy() for state in self.model.states(distinct)), strict=True))
        return [one if isinstance(one, Score) else states[one] for one in asked]

    def close(self) -> None:
        """Give back the model's memory."""
        self.model.close()

    def _asked(self, item: ScoringItem) -> Continuation | Score:
        try:
            text, tokens = self.model.answer(item.messages, item.response, item.tools, end=False)
        except TemplateRefusal as error:
            return Score(item.key, None, error.reason, None, {"error": str(error)})
        if (problem := self.model.problem(tokens)) is None:
            return tokens
        length = {"tokens": len(tokens.prompt) + len(tokens.ids)}
        return Score(item.key, None, problem, ids.text_hash(text), length)


class StateSimilarity:
    """A Scorer: the similarity of a response's states to those of the prompt's reference answer, by a given measure.

    Details hold the tokens of both. Items without a reference have no score and the reason `no_reference`.
    """

    outputs: tuple[str, ...] = ("",)

    def __init__(
        self,
        files: ModelFiles,
        similarity: Callable[[States, States], float],
        **settings: Any,
    ) -> None:
        """Load the model whose states `similarity` compares: the response's first, then the reference's.

        `settings` and errors are those of `LanguageModel`.
        """
        self.states = AnswerStates(files, **settings)
        self.similarity = similarity
        self.versions, self.computed = self.states.versions, self.states.computed

    def score(self, items: Iterable[ScoringItem]) -> Iterator[Score]:
        """Score every item once, a window at a time; see the protocol."""
        for window in windows(items, WINDOW):
            known = [item for item in window if item.reference is not None]
            yield from (Score(item.key, None, "no_reference", None, None) for item in window if item.reference is None)
            answers, references = known, [replace(item, response=str(item.reference)) for item in known]
            states = self.states.of([*answers, *references])
            for item, answer, reference in zip(known, states, states[len(known) :], strict=False):
                yield self._scored(item, answer, reference)

    def close(self) -> None:
        """Give back the model's memory."""
        self.states.close()

    def _scored(self, item: ScoringItem, answer: States | Score, reference: States | Score) -> Score:
        if isinstance(answer, Score):
            return answer
        if isinstance(reference, Score):
            return replace(reference, reason=f"reference_{reference.reason}", text_hash=None)
        text = self.states.model.chat.conversation(item.messages, item.response, item.tools)
        details = {"tokens": len(answer), "reference_tokens": len(reference)}
        return finite_score(item.key, float(self.similarity(answer, reference)), ids.text_hash(text), details)
