"""The protocol of scorers: responses in, scores out, as a stream.

A score belongs to one exact text, whose hash comes with it. What cannot be scored has no score but a reason; a scorer
never invents a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from prefdata.ids import Message

if TYPE_CHECKING:
    import polars as pl

    from prefdata.storage.run import Run


@dataclass(frozen=True, slots=True)
class ScoringItem:
    """One response to be scored: a key of the caller's, the conversation, the response, and whether it is truncated.

    The prompt's reference answer, its metadata and its tools (JSON texts) come along where it has them.
    """

    key: str
    messages: tuple[Message, ...]
    response: str
    truncated: bool
    reference: str | None = None
    metadata: str | None = None
    tools: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """One response's score.

    Attributes:
        key: the item's.
        score: higher is better; None where there is none.
        reason: why there is none (`too_long`, `nan`, an exception's name, …); None where there is one.
        text_hash: id of the exact text that was scored (`ids.text_hash`); None where nothing was.
        details: other results of the scorer, as JSON values.
        output: which of the scorer's outputs this is (see `Scorer.outputs`).
    """

    key: str
    score: float | None
    reason: str | None
    text_hash: str | None
    details: dict[str, Any] | None
    output: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two responses to be compared, in the order in which the judge is to see them.

    Attributes:
        key: the caller's name for the comparison.
        messages: the conversation that both answer.
        shown: the response that is shown first (A).
        other: the response that is shown second (B).
    """

    key: str
    messages: tuple[Message, ...]
    shown: str
    other: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's verdict on a comparison.

    Attributes:
        key: the comparison's.
        probability: that the response shown first is better, in [0, 1]; None where there is no verdict.
        verdict: `first` (the one shown first), `second`, `tie`, or why there is none: `unparsable`, `refused`,
            `too_long`, `error`.
        strength: how much better, in the judge's own scale.
        rationale: the judge's text.
    """

    key: str
    probability: float | None
    verdict: str
    strength: str | None = None
    rationale: str | None = None


def computed_by(scorer: object) -> dict[str, str]:
    """Return in and on what a scorer or a comparer computes: `dtype` and `device`; empty where it runs no model."""
    found: dict[str, str] = getattr(scorer, "computed", {})
    return found


class Comparer(Protocol):
    """An object that compares responses.

    Attributes:
        versions: of the libraries that decide the verdicts.
        annotator: the name of its verdicts' annotator.
    """

    versions: dict[str, str]
    annotator: str

    def compare(self, matches: Iterable[Comparison]) -> Iterator[Verdict]:
        """Judge every comparison exactly once, in any order; comparisons are pulled as they are needed."""
        ...

    def close(self) -> None:
        """Free the memory. The comparer cannot be used afterwards."""
        ...


@dataclass(frozen=True)
class Derivation:
    """Scores that are computed from scores or comparisons of a run; no model is run.

    Attributes:
        name: the scorer's name, unless one is given.
        parents: what is read, each with the id of its content.
        compute: the rows, with the columns of the table of scores (details only where there are some), and further
            figures for the Report.
        resolved: what is part of the scorer's identity and only known from the run.
        seen: the candidates that the scores cover, as `queries.candidate_files` gives them; empty if unknown.
    """

    name: str
    parents: dict[str, str]
    compute: Callable[[], tuple[pl.DataFrame, dict[str, Any]]]
    resolved: dict[str, str] = field(default_factory=dict)
    seen: dict[str, str] = field(default_factory=dict)


class Deriver(Protocol):
    """A source of scores computed from tables of a run."""

    def __call__(self, run: Run, *, partial: bool = False) -> Derivation:
        """Read what is needed of the run, and return the scores.

        Raises:
            NotReady: something that is read is missing or unfinished (without `partial`).
            UsageError: the run has no scorer, judge or pairs of that name.
        """
        ...


class Scorer(Protocol):
    """An object that scores responses.

    Attributes:
        versions: of the libraries that decide the numbers.
        outputs: the names of its numbers where it gives several for one response; `("",)` for one that has one. Each
            output becomes a scorer of its own, and every item gets one `Score` for each.
    """

    versions: dict[str, str]
    outputs: tuple[str, ...]

    def score(self, items: Iterable[ScoringItem]) -> Iterator[Score]:
        """Score every item exactly once, in any order; items are pulled as they are needed."""
        ...

    def close(self) -> None:
        """Free the memory. The scorer cannot be used afterwards."""
        ...
