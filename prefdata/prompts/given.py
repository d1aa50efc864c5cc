"""What rows say of responses, collected for the table that was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from prefdata.formats.records import Record
from prefdata.prompts.collect import Prompts
from prefdata.prompts.labels import DemonstrationCollector, LabelCollector
from prefdata.prompts.preferences import ComparisonCollector, PairCollector
from prefdata.specs import IngestSpec


class Given(Protocol):
    """Collects what rows say, and makes a table of it.

    Attributes:
        said: how many statements rows made.
        dropped: those that are not in the table, by reason.
    """

    said: int
    dropped: Counter[str]

    def add(self, record: Record, prompt_id: str, numbers: Sequence[int]) -> None:
        """Take what a row says of its responses, which have these numbers."""

    def settle(self, spec: IngestSpec) -> None:
        """Decide what is in the table, once all rows were read."""

    @property
    def kept(self) -> int:
        """How many rows the table has."""

    def figures(self) -> dict[str, int]:
        """Return further figures for the report."""

    def tables(self, names: Sequence[str], prompts: Prompts, source: str) -> Iterator[pa.Table]:
        """Yield the table, in batches of rows.

        Args:
            names: the candidates' ids, by the number of the response.
            prompts: gives the prompts' ids by the number of the response, each time it is called.
            source: what the files are called.
        """

    def close(self) -> None:
        """Give memory and temporary files back."""


def given_for(kind: str, folder: Path) -> Given | None:
    """Return the collector of the table of that name, or None; `folder` is on the disk that takes large files."""
    if kind == "pairs":
        return PairCollector(folder)
    makers: dict[str, Any] = {
        "unpaired": LabelCollector,
        "demonstrations": DemonstrationCollector,
        "comparisons": ComparisonCollector,
    }
    maker = makers.get(kind)
    return None if maker is None else maker()
