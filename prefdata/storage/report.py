"""Reports: what a step did with every row it was given. Nothing vanishes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import polars as pl


class Report(BaseModel):
    """The row counts of one step, stored in `_SUCCESS` and printed at the end.

    `rows_in = rows_out + sum(dropped.values())` always holds; `unit` says what is counted. `figures` are further
    numbers that are worth a line (ties seen, acceptance rate, tokens) and take no part in the sum. `failure` says why
    there is no usable row at all, if so: the command prints it and exits with 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    unit: str
    rows_in: int
    rows_out: int
    dropped: dict[str, int] = {}
    figures: dict[str, Any] = {}
    seconds: float = 0.0
    failure: str = ""

    def model_post_init(self, _: Any) -> None:
        """Assert the identity.

        Raises:
            ValueError: rows were lost or invented, which is a bug in the step.
        """
        lost = self.rows_in - self.rows_out - sum(self.dropped.values())
        if lost:
            raise ValueError(
                f"{self.step}: {self.rows_in} in, {self.rows_out} out, {self.dropped}: {lost} unaccounted for"
            )

    @property
    def per_second(self) -> float:
        """Rows out per second of wall time."""
        return self.rows_out / self.seconds if self.seconds > 0 else 0.0

    def timed(self, seconds: float, **figures: Any) -> Report:
        """Return the same report with its wall time in seconds, and further figures."""
        return self.model_copy(update={"seconds": round(seconds, 3), "figures": {**self.figures, **figures}})

    def failed(self, why: str) -> Report:
        """Return the same report for a step that has no usable row."""
        return self.model_copy(update={"failure": why})


def by_reason(reasons: pl.Series) -> Counter[str]:
    """How many rows there are of each reason; null is none."""
    if reasons.null_count() == len(reasons):
        return Counter()
    return Counter(dict(reasons.drop_nulls().value_counts(name="n").sort(reasons.name).iter_rows()))


def nonzero(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the reasons that occurred, in their order."""
    return {reason: int(count) for reason, count in counts.items() if count}


@dataclass
class ReportBuilder:
    """What a step did with some of its rows; accounts of parts add up to that of the whole.

    `counts` are figures that add up, `sums` those that are means: a name, and (sum, count).
    """

    rows_in: int = 0
    rows_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Keep the reasons that occurred."""
        self.dropped = Counter(nonzero(self.dropped))

    def __iadd__(self, other: ReportBuilder) -> Self:
        self.rows_in += other.rows_in
        self.rows_out += other.rows_out
        self.dropped.update(other.dropped)
        self.counts.update(other.counts)
        for name, (total, count) in other.sums.items():
            before = self.sums.get(name, (0.0, 0))
            self.sums[name] = (before[0] + total, before[1] + count)
        return self

    def report(self, step: str, unit: str, **figures: Any) -> Report:
        """Return the counts as a step's Report; the mean of no rows is None."""
        means = {name: total / count if count else None for name, (total, count) in self.sums.items()}
        return Report(
            step=step,
            unit=unit,
            rows_in=self.rows_in,
            rows_out=self.rows_out,
            dropped=nonzero(self.dropped),
            figures={**self.counts, **means, **figures},
        )
