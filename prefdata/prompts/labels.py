"""Which responses are good and which bad, and which are to be imitated, as rows say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa

from prefdata.formats.records import Record
from prefdata.prompts.collect import Prompts, short_hash
from prefdata.specs import IngestSpec
from prefdata.storage.report import nonzero
from prefdata.storage.schemas import DEMONSTRATIONS, UNPAIRED


class LabelCollector:
    """Which responses are good and which bad, as rows say; chosen ones are good and rejected ones bad."""

    def __init__(self) -> None:
        self.said = 0
        self.dropped: Counter[str] = Counter()
        self._labels: dict[int, int] = {}
        self._texts: dict[int, int] = {}
        self._weights: dict[int, float] = {}

    def add(self, record: Record, prompt_id: str, numbers: Sequence[int]) -> None:
        """Take a row's labels of its responses, which have these numbers."""
        for number, response in zip(numbers, record.responses, strict=True):
            label = response.label
            if label is None and response.kind in ("chosen", "rejected"):
                label = response.kind == "chosen"
            if label is None:
                continue
            self.said += 1
            if response.empty:
                self.dropped["empty"] += 1
                continue
            before = self._labels.get(number)
            code = 1 if label else 2
            if before is not None and before & code:
                self.dropped["duplicate"] += 1
            self._labels[number] = (before or 0) | code
            self._texts[number] = short_hash(prompt_id, response.key)
            if record.weight is not None:
                self._weights.setdefault(number, record.weight)

    def settle(self, spec: IngestSpec) -> None:
        """Leave out responses that some rows call good and others bad; white space does not tell two apart."""
        codes: dict[int, int] = {}
        for number, code in self._labels.items():
            codes[self._texts[number]] = codes.get(self._texts[number], 0) | code
        both = [number for number in self._labels if codes[self._texts[number]] == 3]
        self.contradictions = len({self._texts[number] for number in both})
        for number in both:
            code = self._labels.pop(number)
            self.dropped["contradiction"] += 2 if code == 3 else 1

    @property
    def kept(self) -> int:
        """How many labels there are."""
        return len(self._labels)

    def figures(self) -> dict[str, int]:
        """How many of them are good, how many bad, and how many responses have both labels."""
        good = sum(code == 1 for code in self._labels.values())
        return {"good": good, "bad": self.kept - good, **nonzero({"contradictions": self.contradictions})}

    def tables(self, names: Sequence[str], prompts: Prompts, source: str) -> Iterator[pa.Table]:
        """Yield the labels in the order of the responses; see `Given`."""
        rows = [
            {
                "candidate_id": names[number],
                "prompt_id": prompt,
                "good": self._labels[number] == 1,
                "score": None,
                "weight": self._weights.get(number, 1.0),
                "scorer": source,
            }
            for number, prompt in enumerate(prompts())
            if number in self._labels
        ]
        yield UNPAIRED.from_rows(rows)

    def close(self) -> None:
        """Do nothing: all is in memory."""


class DemonstrationCollector:
    """Which responses are to be imitated."""

    def __init__(self) -> None:
        self.said = 0
        self.dropped: Counter[str] = Counter()
        self._worse = 0
        self._weights: dict[int, float] = {}

    def add(self, record: Record, prompt_id: str, numbers: Sequence[int]) -> None:
        """Take a row's responses, which have these numbers: all but those to which it prefers another."""
        worse = record.worse()
        self._worse += len(worse)
        for place, (number, response) in enumerate(zip(numbers, record.responses, strict=True)):
            if place in worse:
                continue
            self.said += 1
            if response.empty:
                self.dropped["empty"] += 1
            elif response.label is False:
                self.dropped["labelled_bad"] += 1
            elif number in self._weights:
                self.dropped["duplicate"] += 1
            else:
                turn = response.turns[-1].get("weight")
                weight = record.weight if record.weight is not None else turn
                self._weights[number] = 1.0 if weight is None else weight

    @property
    def kept(self) -> int:
        """How many demonstrations there are."""
        return len(self._weights)

    def settle(self, spec: IngestSpec) -> None:
        """Do nothing: the same response twice is one demonstration."""

    def figures(self) -> dict[str, int]:
        """How many responses are none because their row prefers another one."""
        return nonzero({"worse_responses": self._worse})

    def tables(self, names: Sequence[str], prompts: Prompts, source: str) -> Iterator[pa.Table]:
        """Yield the demonstrations in the order of the responses; see `Given`."""
        ranks: Counter[str] = Counter()
        rows = []
        for number, prompt in enumerate(prompts()):
            if number not in self._weights:
                continue
            ranks[prompt] += 1
            rows.append(
                {
                    "candidate_id": names[number],
                    "prompt_id": prompt,
                    "score": None,
                    "rank": ranks[prompt],
                    "weight": self._weights[number],
                    "scorer": source,
                }
            )
        yield DEMONSTRATIONS.from_rows(rows)

    def close(self) -> None:
        """Do nothing: all is in memory."""
