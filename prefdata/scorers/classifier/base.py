"""What every sequence-classification scorer does, whatever computes its logits: texts in, scores out.

Every distinct text of a batch is scored once, so that equal texts have equal scores.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import ClassVar

from torch import Tensor

from prefdata import ids
from prefdata.parallel import prefetch_map
from prefdata.scorers.classifier.labels import Labels
from prefdata.scorers.classifier.rendering import PreparedBatch, RenderedText, TextRenderer, windows
from prefdata.scorers.protocol import Score, ScoringItem


class Classifier(ABC):
    """A Scorer on a classifier; see `prefdata.scorers.protocol.Scorer`.

    Attributes:
        versions: of the libraries that decide the scores.
        computed: in and on what it computes; see `prefdata.scorers.protocol.computed_by`.
        outputs: the labels' names where several are read, else `("",)`.
        notes: sentences about how it computes, where that is not the default way.
        context_length: most tokens of a text.
        vocabulary: how many tokens the model has an embedding of.
        texts: how items become texts and token ids.
        labels: which labels are read, and as what.
    """

    WINDOW: ClassVar[int] = 4000
    """Items that are pulled, and sorted by length, at a time."""

    versions: dict[str, str]
    computed: dict[str, str]
    outputs: tuple[str, ...]
    notes: tuple[str, ...]
    context_length: int
    vocabulary: int
    texts: TextRenderer
    labels: Labels

    def score(self, items: Iterable[ScoringItem]) -> Iterator[Score]:
        """Score every item once, a batch at a time; see the protocol."""
        for window in prefetch_map(windows(items, self.WINDOW), self.texts.prepare):
            yield from self._window(window)

    @abstractmethod
    def logits(self, rows: list[RenderedText]) -> Iterator[tuple[list[RenderedText], Tensor]]:
        """Yield the rows in any order, in batches, with their raw logits, shape (rows, labels)."""

    @abstractmethod
    def close(self) -> None:
        """Give back the memory. The scorer cannot be used afterwards."""

    def _window(self, window: PreparedBatch) -> Iterator[Score]:
        for scored in window.refused:
            yield from self._for_each_output(scored)
        fits = []
        for row in window.rows:
            if (reason := self.problem(row)) is None:
                fits.append(row)
                continue
            text_hash = ids.text_hash(row.text)
            for key in row.keys:
                yield from self._for_each_output(Score(key, None, reason, text_hash, {"tokens": len(row.ids)}))
        for rows, logits in self.logits(fits):
            for row, values in zip(rows, self.labels.read(logits).tolist(), strict=True):
                yield from self._scored(row, values)

    def problem(self, row: RenderedText) -> str | None:
        """Return why a text cannot be scored (`empty`, `too_long`, `unknown_token`), or None."""
        if not row.ids:
            return "empty"
        if len(row.ids) > self.context_length:
            return "too_long"
        return "unknown_token" if max(row.ids) >= self.vocabulary else None

    def _for_each_output(self, none: Score) -> Iterator[Score]:
        for output in self.outputs:
            yield Score(none.key, None, none.reason, none.text_hash, none.details, output)

    def _scored(self, row: RenderedText, values: list[float]) -> Iterator[Score]:
        text_hash = ids.text_hash(row.text)
        for output, value in zip(self.outputs, values, strict=True):
            reason = None if math.isfinite(value) else "nan" if math.isnan(value) else "infinite"
            for key in row.keys:
                yield Score(key, None if reason else value, reason, text_hash, None, output)
