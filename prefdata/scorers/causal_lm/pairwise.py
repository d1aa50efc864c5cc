"""SLiC-HF's pairwise ranker (Zhao et al. 2023, 2305.10425): a language model is asked which of two responses is better.

No reply is generated: the probability that the response shown first is better is p(A) / (p(A) + p(B)), of the labels as
the next tokens. Most models prefer one position, so callers compare in both orders, or in one at random as RSO does;
here a comparison is made in the order given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from prefdata.chat.template import VERDICTS
from prefdata.models.files import ModelFiles
from prefdata.scorers.causal_lm.likelihood import WINDOW, LanguageModel
from prefdata.scorers.causal_lm.pointwise import LabelOdds, Shown, label_odds
from prefdata.scorers.classifier.rendering import windows
from prefdata.scorers.judge.rubrics import Question
from prefdata.scorers.protocol import Comparison, Verdict


class Pairwise:
    """A Comparer: the model's probability of the first of two labels; see `prefdata.scorers.protocol.Comparer`.

    `rationale` holds the log-odds, ln p(A) - ln p(B): a probability near 0 or 1 has lost its digits.
    """

    def __init__(
        self,
        files: ModelFiles,
        question: Question,
        *,
        annotator: str | None = None,
        **settings: Any,
    ) -> None:
        """Load the model that is asked `question`, of the kind pairwise-labels.

        Args:
            files: the model.
            question: what it is asked.
            annotator: the name of the verdicts' annotator; the model's unless given.
            settings: those of `LanguageModel`, whose errors it raises.
        """
        self.model = LanguageModel(files, raw=question.plain, **settings)
        self.question = question
        self.annotator = annotator or files.name
        self.versions, self.computed = self.model.versions, self.model.computed

    def compare(self, matches: Iterable[Comparison]) -> Iterator[Verdict]:
        """Judge every comparison once, a batch at a time; see the protocol."""
        for window in windows(matches, WINDOW):
            shown = [Shown(match.key, self._asked(match), (match.shown, match.other)) for match in window]
            yield from map(_verdict, label_odds(self.model, self.question.labels, shown))

    def close(self) -> None:
        """Give back the model's memory."""
        self.model.close()

    def _asked(self, match: Comparison) -> tuple[dict[str, str], ...]:
        return self.question.messages(match.messages, first=match.shown, second=match.other)


_WORDS = {**VERDICTS, "too_long": "too_long"}


def _verdict(one: LabelOdds) -> Verdict:
    if one.problem is not None:
        return Verdict(one.key, None, _WORDS.get(one.problem, "error"), rationale=one.detail)
    return verdict_from_log_odds(one.key, one.log_odds)


def verdict_from_log_odds(key: str, log_odds: float) -> Verdict:
    """Return the verdict for ln p(first) - ln p(second); a null one where that is not finite."""
    if not math.isfinite(log_odds):
        kind = "not a number (NaN)" if math.isnan(log_odds) else "infinite"
        return Verdict(key, None, "error", rationale=f"the model's output is {kind}")
    share = 1 / (1 + math.exp(-log_odds)) if log_odds >= 0 else math.exp(log_odds) / (1 + math.exp(log_odds))
    verdict = "tie" if log_odds == 0 else "first" if log_odds > 0 else "second"
    return Verdict(key, share, verdict, rationale=f"log-odds {log_odds:.6g}")
