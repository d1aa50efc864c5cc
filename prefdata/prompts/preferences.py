"""Which of two responses is preferred, as rows say: pairs, and comparisons with their annotators."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefdata import ids
from prefdata.formats.casts import number_of
from prefdata.formats.records import Record, Verdict, no_pair
from prefdata.prompts.collect import Prompts, short_hash
from prefdata.prompts.spool import Spool
from prefdata.specs import IngestSpec
from prefdata.storage.report import nonzero
from prefdata.storage.schemas import COMPARISONS, PAIRS


class PairCollector:
    """Which response is preferred to which, as rows say.

    A row that several annotators judge is one pair, whose probability is their share. A pair and its reverse contradict
    each other; so do rows that say both of a tie and of a preference.
    """

    def __init__(self, folder: Path) -> None:
        """Collect on the disk of `folder`."""
        self.said = 0
        self.dropped: Counter[str] = Counter()
        self._chosen, self._rejected = array("q"), array("q")
        self._hashes = array("q"), array("q")
        self._ties = bytearray()
        self._numbers = array("d"), array("d"), array("d"), array("d"), array("d")
        self._details = Spool(pa.schema([("prompt_id", pa.string()), ("details", pa.string())]), folder)

    def add(self, record: Record, prompt_id: str, numbers: Sequence[int]) -> None:
        """Take what a row says of its responses, which have these numbers."""
        scores = _own_scores(record)
        if record.undecided:
            self.said += 1
            self.dropped["no_verdict"] += 1
        for joint, verdicts in record.preferences():
            self.said += 1
            self._put(record, prompt_id, joint, numbers, verdicts, scores)

    def _put(
        self, record: Record, prompt_id: str, joint: Verdict, numbers: Sequence[int], verdicts: Sequence[Verdict],
        scores: Sequence[float | None],
    ) -> None:  # fmt: skip
        sides = (joint.first, joint.second) if joint.probability >= 0.5 else (joint.second, joint.first)
        chosen, rejected = (record.responses[side] for side in sides)
        if reason := no_pair(chosen, rejected):
            self.dropped[reason] += 1
            return
        own = [scores[side] if scores else None for side in sides]
        margin = record.margin
        if margin is None and None not in own:
            margin = own[0] - own[1]  # type: ignore[operator]
        self._chosen.append(numbers[sides[0]])
        self._rejected.append(numbers[sides[1]])
        for hashes, one in zip(self._hashes, (chosen, rejected), strict=True):
            hashes.append(short_hash(prompt_id, one.key))
        weight = 1.0 if record.weight is None else record.weight
        self._ties.append(joint.probability == 0.5)
        values = (record.certainty(joint), margin, weight, *own)
        for column, value in zip(self._numbers, values, strict=True):
            column.append(float("nan") if value is None else value)
        self._details.add(prompt_id, _details(record, verdicts))

    def settle(self, spec: IngestSpec) -> None:
        """Decide which of what rows say becomes a pair; the others are counted in `dropped`."""
        on_contradiction, keep_ties = spec.on_contradiction, spec.ties == "keep"
        first, second = (
            np.frombuffer(hashes, np.int64) if len(hashes) else np.empty(0, np.int64) for hashes in self._hashes
        )
        self._tie = np.array(self._ties, bool)
        keep = np.ones(len(first), bool)
        if not keep_ties:
            self._drop(keep, self._tie, "tie")
        low, high = np.minimum(first, second), np.maximum(first, second)
        # The verdict on the two texts in a fixed order: 1, -1 or 0.
        sign = np.where(self._tie, 0, np.where(first == low, 1, -1))
        order = np.lexsort((np.arange(len(low)), high, low))
        order = order[keep[order]]
        new = np.ones(len(order), bool)
        new[1:] = (low[order][1:] != low[order][:-1]) | (high[order][1:] != high[order][:-1])
        group = np.cumsum(new) - 1
        contradicted = self._contradicted(order, group, sign, new)
        again = self._again(order, group, sign)
        self._drop(keep, again, "duplicate")
        self.contradictions = int((contradicted & keep).sum())
        if on_contradiction == "drop":
            self._drop(keep, contradicted, "contradiction")
        elif on_contradiction == "tie":
            firsts = np.zeros(len(first), bool)
            firsts[order[new]] = True
            self._drop(keep, contradicted & ~firsts, "contradiction")
            made = contradicted & keep
            self._tie |= made
            if not keep_ties:
                self._drop(keep, made, "tie")
        self._keep = keep

    @staticmethod
    def _contradicted(
        order: NDArray[np.intp], group: NDArray[np.intp], sign: NDArray[np.int64], new: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        found = np.zeros(len(sign), bool)
        if len(order):
            starts = np.flatnonzero(new)
            low, high = np.minimum.reduceat(sign[order], starts), np.maximum.reduceat(sign[order], starts)
            found[order] = (low != high)[group]
        return found

    @staticmethod
    def _again(order: NDArray[np.intp], group: NDArray[np.intp], sign: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Mark the rows that repeat an earlier one."""
        found = np.ones(len(sign), bool)
        found[order[np.unique(group * 3 + sign[order] + 1, return_index=True)[1]]] = False
        return found

    def _drop(self, keep: NDArray[np.bool_], which: NDArray[np.bool_], reason: str) -> None:
        self.dropped[reason] += int((keep & which).sum())
        keep &= ~which

    @property
    def kept(self) -> int:
        """How many pairs there are."""
        return int(self._keep.sum())

    def figures(self) -> dict[str, int]:
        """How many of them are preferences, and how many pairs contradicted each other."""
        preferences = int((self._keep & ~self._tie).sum())
        return {"preferences": preferences, **nonzero({"contradictions": self.contradictions})}

    def tables(self, names: Sequence[str], prompts: Prompts, source: str) -> Iterator[pa.Table]:
        """Yield the pairs, in batches; see `Given`."""
        start = 0
        for batch in self._details.batches():
            rows = [
                self._row(start + place, names, source, said)
                for place, said in enumerate(batch.to_pylist())
                if self._keep[start + place]
            ]
            start += batch.num_rows
            yield PAIRS.from_rows(rows)

    def _row(self, number: int, names: Sequence[str], source: str, said: dict[str, Any]) -> dict[str, Any]:
        chosen, rejected = names[self._chosen[number]], names[self._rejected[number]]
        values = [column[number] for column in self._numbers]
        probability, margin, weight, *scores = (None if value != value else value for value in values)
        tie = bool(self._tie[number])
        return {
            **said,
            "pair_id": ids.pair_id(chosen, rejected),
            "chosen_id": chosen,
            "rejected_id": rejected,
            "chosen_score": scores[0],
            "rejected_score": scores[1],
            "margin": None if tie else margin,
            "probability": 0.5 if tie else probability,
            "weight": weight,
            "scorer": source,
            "verdict": "tie" if tie else "chosen",
        }

    def close(self) -> None:
        """Give the memory and the file back."""
        self._details.close()


def _details(record: Record, verdicts: Sequence[Verdict]) -> str:
    """Return a pair's file, row and annotations, as JSON."""
    details: dict[str, Any] = {"file": record.file, "row": record.row}
    for name in ("annotator", "strength", "rationale"):
        values = [value for one in verdicts if (value := getattr(one, name)) is not None]
        if values:
            details[name] = values[0] if len(values) == 1 else values
    if record.metadata:
        details["metadata"] = record.metadata
    return json.dumps(details, ensure_ascii=False)


def _own_scores(record: Record) -> list[float | None]:
    """Return each response's score, if any: the first of the attributes score, rating and reward."""
    names = next(
        (name for name in ("score", "rating", "reward") if any(name in r.attributes for r in record.responses)), None
    )
    return [number_of(response.attributes.get(names)) if names else None for response in record.responses]


class ComparisonCollector:
    """Verdicts on two responses each, one for each annotator and order; of two that disagree the first stands."""

    def __init__(self) -> None:
        self.said = 0
        self.dropped: Counter[str] = Counter()
        self._rows: dict[tuple[int, int, str, str], dict[str, Any]] = {}

    def add(self, record: Record, prompt_id: str, numbers: Sequence[int]) -> None:
        """Take a row's verdicts on its responses, which have these numbers."""
        if record.undecided:
            self.said += 1
            self.dropped["no_verdict"] += 1
        for verdict in record.relations():
            self.said += 1
            first, second = numbers[verdict.first], numbers[verdict.second]
            order, annotator = verdict.order or "first-second", verdict.annotator or ""
            row = {
                "order": order,
                "prompt_id": prompt_id,
                "probability": verdict.probability,
                "verdict": "tie" if verdict.probability == 0.5 else "first" if verdict.probability > 0.5 else "second",
                "strength": verdict.strength,
                "rationale": verdict.rationale,
            }
            before = self._rows.setdefault((first, second, order, annotator), row)
            if before is not row:
                self.dropped["duplicate" if before["probability"] == row["probability"] else "contradiction"] += 1

    @property
    def kept(self) -> int:
        """How many comparisons there are."""
        return len(self._rows)

    def settle(self, spec: IngestSpec) -> None:
        """Do nothing: the first verdict is kept."""

    def figures(self) -> dict[str, int]:
        """How many verdicts there are of each kind, and annotators."""
        verdicts = Counter(row["verdict"] for row in self._rows.values())
        counts = {name: verdicts[name] for name in ("first", "second", "tie") if verdicts[name]}
        return {**counts, "annotators": len({annotator for _, _, _, annotator in self._rows})}

    def tables(self, names: Sequence[str], prompts: Prompts, source: str) -> Iterator[pa.Table]:
        """Yield the comparisons; see `Given`."""
        rows = (
            {**row, "annotator": annotator or source, "first_id": names[first], "second_id": names[second]}
            for (first, second, _, annotator), row in self._rows.items()
        )
        yield COMPARISONS.from_rows(list(rows))

    def close(self) -> None:
        """Do nothing: all is in memory."""
