"""Pairwise reward models: a classifier that reads both answers in one text and says whether the first is better.

What it reads is `LAYOUT`, as one user message in the model's own chat template (as plain text where it has none), or a
file of the user's with `{prompt}`, `{first}` and `{second}` in it, as plain text. The probability that the response
shown first is better is the sigmoid of its logit, or of two labels the softmax: the first label means that the first is
better, unless the other is named. Like a language model, a classifier may prefer one position: responses are compared
in both orders, or in one at random.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefdata.chat.messages import as_text
from prefdata.chat.template import TemplateRefusal, require_unicode
from prefdata.errors import ModelError
from prefdata.ids import Message
from prefdata.models.files import ModelFiles, label_names
from prefdata.parallel import prefetch_map
from prefdata.scorers.causal_lm.pairwise import verdict_from_log_odds
from prefdata.scorers.classifier.base import Classifier
from prefdata.scorers.classifier.labels import Labels
from prefdata.scorers.classifier.rendering import RenderedText, fill, read_format, windows
from prefdata.scorers.protocol import Comparison, Verdict

LAYOUT = "{conversation}\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}"
"""What is read without a text format; `{conversation}` is its turns, each as `role: content`, a blank line between."""


_PROBLEMS = {"empty": "an empty text", "unknown_token": "a token that the model has no embedding of"}


@dataclass(frozen=True, slots=True)
class _PreparedBatch:
    """Comparisons, prepared: their distinct texts, and those that have none."""

    rows: list[RenderedText]
    lost: list[Verdict]


class PairwiseReward:
    """A Comparer: the probability that a classifier gives; see `prefdata.scorers.protocol.Comparer`.

    `rationale` holds the log-odds: a probability near 0 or 1 has lost its digits.
    """

    def __init__(
        self,
        classifier: Classifier,
        files: ModelFiles,
        *,
        label: str | None = None,
        text_format: Path | None = None,
        annotator: str | None = None,
    ) -> None:
        """Compare by a classifier that is loaded already; `close` closes it.

        Args:
            classifier: computes the logits, whatever the batch.
            files: of the same model.
            label: which of two labels means that the first is better, by name or number; the first unless given.
            text_format: a file that says how prompt and responses become text.
            annotator: the name of the verdicts' annotator; the model's unless given.

        Raises:
            InputError: the text format cannot be read.
            ModelError: the model has more than two labels.
            UsageError: the model has no such label.
        """
        self.first = first_label(files, label)
        self.other = None if len(label_names(files.config)) == 1 else 1 - self.first
        self.format = None if text_format is None else read_format(text_format, ("first", "second"))
        self.annotator = annotator or files.name
        self.versions, self.computed = classifier.versions, classifier.computed
        self._classifier = classifier
        chat = classifier.texts.chat
        self._chat = chat if self.format is None else chat.of_format()

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about how the classifier computes, where that is not the usual way."""
        return self._classifier.notes

    def text(self, messages: Sequence[Message], first: str, second: str) -> str:
        """Return the exact text of a conversation and two responses to it.

        Raises:
            TemplateRefusal: the template or the format has no place for this conversation, or changes a response.
        """
        if self.format is not None:
            return require_unicode(fill(self.format, messages, first=first, second=second))
        turns = "\n\n".join(f"{message['role']}: {as_text(message)}" for message in messages)
        asked = fill(LAYOUT, [{"role": "user", "content": ""}], conversation=turns, first=first, second=second)
        user = {"role": "user", "content": asked}
        return self._chat.text([user], answer_next=False, holds=(first, second))

    def compare(self, matches: Iterable[Comparison]) -> Iterator[Verdict]:
        """Judge every comparison once, a batch at a time; see the protocol."""
        for window in prefetch_map(windows(matches, self._classifier.WINDOW), self._prepared):
            yield from window.lost
            fits = []
            for row in window.rows:
                if (problem := self._classifier.problem(row)) is None:
                    fits.append(row)
                    continue
                too_long = ("too_long", f"{len(row.ids)} tokens")
                why = too_long if problem == "too_long" else ("error", _PROBLEMS[problem])
                yield from (Verdict(key, None, why[0], rationale=why[1]) for key in row.keys)
            for rows, logits in self._classifier.logits(fits):
                for row, values in zip(rows, logits.double().tolist(), strict=True):
                    odds = values[self.first] - (0.0 if self.other is None else values[self.other])
                    yield from (verdict_from_log_odds(key, odds) for key in row.keys)

    def close(self) -> None:
        """Give back the model's memory."""
        self._classifier.close()

    def _prepared(self, matches: list[Comparison]) -> _PreparedBatch:
        prompts: dict[tuple[Any, ...], int] = {}
        places: dict[str, tuple[int, list[str]]] = {}
        lost = []
        for match in matches:
            try:
                text = self.text(match.messages, match.shown, match.other)
            except TemplateRefusal as error:
                lost.append(Verdict(match.key, None, error.verdict, rationale=str(error)))
                continue
            prompt = prompts.setdefault(tuple(tuple(message.items()) for message in match.messages), len(prompts))
            places.setdefault(text, (prompt, []))[1].append(match.key)
        ids = self._chat.encode(list(places), complete=True)
        rows = [RenderedText(text, row, *place) for (text, place), row in zip(places.items(), ids, strict=True)]
        return _PreparedBatch(rows, lost)


def first_label(files: ModelFiles, label: str | None) -> int:
    """Return the column of the logits that stands for the response shown first.

    Raises:
        ModelError: the model has more than two labels.
        UsageError: it has no label of that name or number.
    """
    names = label_names(files.config)
    if len(names) > 2:
        raise ModelError(
            f"{files.name} has {len(names)} labels ({', '.join(names)}). A pairwise reward model has one, or two: "
            "the first response is better, the second is."
        )
    return Labels.of(files, label or "0", "logit").columns[0]
