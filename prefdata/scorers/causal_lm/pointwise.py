"""SLiC-HF's pointwise ranker (Zhao et al. 2023, 2305.10425): a language model is asked whether a response is good.

No reply is generated: the score is p(Good) / (p(Good) + p(Bad)), of the labels as the next tokens. The log-odds,
ln p(Good) - ln p(Bad), are in the details: a score near 0 or 1 has lost its digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from prefdata import ids
from prefdata.chat.template import TemplateRefusal
from prefdata.ids import Message
from prefdata.models.files import ModelFiles
from prefdata.scorers.causal_lm.likelihood import WINDOW, Continuation, LanguageModel, finite_score
from prefdata.scorers.classifier.rendering import windows
from prefdata.scorers.judge.rubrics import Question
from prefdata.scorers.protocol import Score, ScoringItem


class Pointwise:
    """A Scorer: the model's probability of the good one of two labels; see `prefdata.scorers.protocol.Scorer`."""

    outputs: tuple[str, ...] = ("",)

    def __init__(
        self,
        files: ModelFiles,
        question: Question,
        **settings: Any,
    ) -> None:
        """Load the model that is asked `question`, of the kind pointwise-labels.

        `settings` and errors are those of `LanguageModel`.
        """
        self.model = LanguageModel(files, raw=question.plain, **settings)
        self.question = question
        self.versions, self.computed = self.model.versions, self.model.computed

    def score(self, items: Iterable[ScoringItem]) -> Iterator[Score]:
        """Score every item once, a window at a time; see the protocol."""
        for window in windows(items, WINDOW):
            shown = []
            for item in window:
                if self.question.needs_reference and item.reference is None:
                    yield Score(item.key, None, "no_reference", None, None)
                    continue
                texts = {"response": item.response, "reference": item.reference}
                shown.append(Shown(item.key, self.question.messages(item.messages, **texts), (item.response,)))
            for one in label_odds(self.model, self.question.labels, shown):
                yield self._scored(one)

    def close(self) -> None:
        """Give back the model's memory."""
        self.model.close()

    def _scored(self, one: LabelOdds) -> Score:
        if one.problem is not None or one.text_hash is None:
            return Score(one.key, None, one.problem, one.text_hash, {"error": one.detail} if one.detail else None)
        logps = dict(zip(self.question.labels, one.logps, strict=True))
        return finite_score(one.key, one.share, one.text_hash, {"logps": logps, "log_odds": one.log_odds})


class Shown(NamedTuple):
    """What a model is asked: a key, the messages, and the responses that they quote."""

    key: str
    messages: Sequence[Message]
    responses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabelOdds:
    """The log-probabilities of two labels.

    Attributes:
        key: the caller's.
        text_hash: id of the text that it was shown; None where there is none.
        logps: ln p of both labels, in nats.
        problem: why there are none (`too_long`, `empty`, or a TemplateRefusal's reason), or None.
        detail: the problem as text.
    """

    key: str
    text_hash: str | None
    logps: tuple[float, float] = (math.nan, math.nan)
    problem: str | None = None
    detail: str | None = None

    @property
    def log_odds(self) -> float:
        """The log-odds: ln p(first) - ln p(second)."""
        return self.logps[0] - self.logps[1]

    @property
    def share(self) -> float:
        """p(first) / (p(first) + p(second)); NaN where one of them is NaN or both are 0."""
        odds = self.log_odds
        if math.isnan(odds):
            return math.nan
        return 1 / (1 + math.exp(-odds)) if odds >= 0 else math.exp(odds) / (1 + math.exp(odds))


def label_odds(model: LanguageModel, labels: tuple[str, str], shown: Sequence[Shown]) -> Iterator[LabelOdds]:
    """Yield the log-probabilities of both labels as the next tokens of each text; equal texts are computed once."""
    asked: dict[str, tuple[list[Continuation], list[str]]] = {}
    for key, messages, responses in shown:
        try:
            text, choices = model.choices(messages, labels, holds=responses)
        except TemplateRefusal as error:
            yield LabelOdds(key, None, problem=error.reason, detail=str(error))
            continue
        if problem := next((found for one in choices if (found := model.problem(one))), None):
            length = max(len(one.prompt) + len(one.ids) for one in choices)
            yield LabelOdds(key, ids.text_hash(text), problem=problem, detail=f"{length} tokens")
            continue
        asked.setdefault(text, (choices, []))[1].append(key)
    texts = list(asked)
    half: dict[int, float] = {}
    for place, logp in model.each_sum([one for choices, _ in asked.values() for one in choices]):
        number, side = divmod(place, 2)
        if number not in half:
            half[number] = logp
            continue
        logps = (logp, half.pop(number)) if side == 0 else (half.pop(number), logp)
        for key in asked[texts[number]][1]:
            yield LabelOdds(key, ids.text_hash(texts[number]), logps)
