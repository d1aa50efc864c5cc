"""What files hold, as it is read: each prompt and each response once, numbered, and the rows that came again counted.

A prompt or a response is known again by eight bytes of its hash, so that memory grows by some hundred bytes a row and
not by its texts, which wait on disk (`spool`). What later rows add to a prompt is put into it when it is written.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefdata import ids
from prefdata.errors import BadRow
from prefdata.formats.records import Record, Response
from prefdata.prompts.spool import Spool
from prefdata.storage.schemas import CANDIDATES, PROMPTS

Prompts = Callable[[], Iterator[str]]
"""Gives the prompts' ids by the number of the response."""

NAMED = 1000
"""Duplicates that are named at most; the others are counted."""

_SPLITS = ("train", "test")


class Content:
    """The id of a set of rows, added one at a time in any order: the sum of their hashes."""

    def __init__(self) -> None:
        self._sum = self._rows = 0

    def add(self, *values: Any) -> None:
        """Take one row of texts, numbers and nulls."""
        self.add_hash(hashlib.blake2b(repr(values).encode("utf-8", "surrogatepass"), digest_size=16).digest(), 0)

    def add_hash(self, hashed: bytes, place: int) -> None:
        """Take one row by a hash of 16 bytes, and its place among the rows of that hash."""
        self._sum += int.from_bytes(hashed, "big") * (2 * place + 1)
        self._rows += 1

    @property
    def id(self) -> str:
        """20 hexadecimal digits."""
        return ids.digest([str(self._sum % 2**128), self._rows])


def short_hash(*values: str | None) -> int:
    """64 bits of a hash, signed, to know texts again by."""
    hashed = hashlib.blake2b("\0".join(value or "" for value in values).encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(hashed.digest(), "big", signed=True)


def text_of_prompt(prompt_id: str, text: str, message: str | None) -> int:
    """64 bits of the hash of a response to a prompt."""
    return short_hash(prompt_id, message or text)


@dataclass
class _More:
    """What later rows add to a prompt."""

    tags: list[str] = field(default_factory=list)
    references: list[dict[str, Any]] = field(default_factory=list)
    metadata: str | None = None
    split: str | None = None


class PromptCollector:
    """The prompts of a reading.

    Attributes:
        twice: rows whose prompt an earlier row has.
        counts: conflicts between rows of one prompt.
        content: the id of what was collected.
    """

    def __init__(self, folder: Path, *, seed: int, test: float, source_number: int | None = None) -> None:
        """Collect on the disk of `folder`; `seed` and `test` split prompts whose rows do not say."""
        self.twice: list[BadRow] = []
        self.rows_again = 0
        self.counts: Counter[str] = Counter()
        self._seed, self._test, self._source_number = seed, test, source_number
        self._numbers: dict[bytes, int] = {}
        self._places: dict[int, str] = {}
        self._spool = Spool(pa.schema([field for field in PROMPTS.schema if field.name != "reference"]), folder)
        self._metadata, self._tags, self._references = array("q"), array("q"), array("q")
        self._given, self._is_test = bytearray(), bytearray()
        self._more: dict[int, _More] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, record: Record, key: str, *, remember_place: bool = False, kept_elsewhere: bool = False) -> int:
        """Take a row's prompt, whose id is `key`; returns its number.

        With `kept_elsewhere` the row's metadata are stored beside its response or pair as well.
        """
        metadata = json.dumps(record.metadata, ensure_ascii=False) if record.metadata else None
        references = [{"text": text, "source": source} for text, source in record.references]
        number = self._numbers.setdefault(bytes.fromhex(key), len(self._numbers))
        if number < len(self._given):
            lost = self._again(number, record, metadata, references)
            self.counts["metadata_not_kept"] += lost and not kept_elsewhere
            return number
        split = record.split or self._split_of(key)
        if remember_place:
            self._places[number] = record.place
        self._given.append(1 + _SPLITS.index(record.split) if record.split else 0)
        self._metadata.append(short_hash(metadata) if metadata else 0)
        self._tags.append(short_hash(*record.tags) if record.tags else 0)
        self._references.append(_hash_of(references))
        self._is_test.append(split == "test")
        of_prompt = (references or None, record.tags, metadata, split, self._source_number)
        self._spool.add(key, record.messages, record.tools, *of_prompt)
        return number

    def first_place(self, number: int) -> str:
        """Where a prompt was first, if that was to be remembered."""
        return self._places[number]

    def _split_of(self, key: str) -> str:
        return "test" if ids.unit_uniform(self._seed, "split", key) < self._test else "train"

    def _again(self, number: int, record: Record, metadata: str | None, references: list[dict[str, Any]]) -> bool:
        """Take what another row says of a prompt; whether its metadata are lost."""
        self.rows_again += 1
        lost = False
        if metadata is not None and (hashed := short_hash(metadata)) != self._metadata[number]:
            lost = bool(self._metadata[number])
            if not lost:
                self._metadata[number] = hashed
                self._change(number).metadata = metadata
        if references and _hash_of(references) != self._references[number]:
            self._references[number] = self._references[number] or _hash_of(references)
            self._change(number).references += references
        if record.tags and short_hash(*record.tags) != self._tags[number]:
            self._change(number).tags += record.tags
        if record.split is not None:
            code = 1 + _SPLITS.index(record.split)
            if not self._given[number]:
                self._given[number] = code
                self._is_test[number] = record.split == "test"
                self._change(number).split = record.split
            elif self._given[number] != code:
                self.counts["split_conflicts"] += 1
        return lost

    def _change(self, number: int) -> _More:
        return self._more.setdefault(number, _More())

    def tables(self) -> Iterator[pa.Table]:
        """Yield the prompts to write, in batches, in the order of first appearance."""
        start = 0
        for batch in self._spool.batches():
            numbers = range(start, start + batch.num_rows)
            start += batch.num_rows
            rows = _with_reference(pa.Table.from_batches([batch]))
            changed = {number - numbers[0]: self._more[number] for number in numbers if number in self._more}
            yield _changed(rows, changed) if changed else rows

    def content(self) -> str:
        """Return the id of the collected content: the prompts and their attributes."""
        return self._summary[0]

    def splits(self) -> dict[str, int]:
        """How many prompts each split has."""
        return self._summary[1]

    @cached_property
    def _summary(self) -> tuple[str, dict[str, int]]:
        """By the hashes that are kept of each prompt: its id covers messages and tools."""
        content = Content()
        columns = (self._numbers, self._references, self._tags, self._metadata, self._is_test)
        for number, values in enumerate(zip(*columns, strict=True)):
            content.add(*values, *([self._more[number]] if number in self._more else []))
        splits = Counter("test" if is_test else "train" for is_test in self._is_test)
        return content.id, dict(sorted(splits.items()))

    def close(self) -> None:
        """Give the memory and the file back."""
        self._spool.close()


def _hash_of(references: Sequence[Mapping[str, Any]]) -> int:
    return short_hash(*(one[key] for one in references for key in ("text", "source"))) if references else 0


def _with_reference(rows: pa.Table) -> pa.Table:
    """Return the rows with their first reference, where they have one."""
    references = rows["references"].combine_chunks()
    at = PROMPTS.schema.get_field_index("reference")
    return rows.add_column(at, PROMPTS.schema.field(at), pc.struct_field(pc.list_element(references, 0), "text"))


def _changed(rows: pa.Table, changes: Mapping[int, _More]) -> pa.Table:
    listed = {name: rows[name].to_pylist() for name in ("reference", "references", "tags", "metadata", "split")}
    for place, more in changes.items():
        references = list(
            {one["text"]: one for one in [*(listed["references"][place] or []), *more.references][::-1]}.values()
        )
        listed["references"][place] = references[::-1] or None
        listed["reference"][place] = references[-1]["text"] if references else None
        listed["tags"][place] = list(dict.fromkeys([*listed["tags"][place], *more.tags]))
        listed["metadata"][place] = listed["metadata"][place] or more.metadata
        listed["split"][place] = more.split or listed["split"][place]
    for name, values in listed.items():
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(at), pa.array(values, rows.schema.field(at).type))
    return rows


_RESPONSE = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),
        ("text", pa.string()),
        ("message", pa.string()),
        ("model", pa.string()),
        ("metadata", pa.string()),
    ]
)


class ResponseCollector:
    """The responses of a reading that become the candidates of one sampler.

    The same response, by the same model, of another row with the same prompt is a duplicate; within one row equal
    responses are samples of their own, unless `once`.

    Attributes:
        twice: the rows with duplicates, the first of them.
        scores_not_kept: duplicates that were scored otherwise than the response that is kept.
        texts: 64 bits of each response's hash, to find it among others' (`text_of_prompt`).
    """

    def __init__(self, folder: Path, columns: int = 0, *, once: bool = False, remember_places: bool = False) -> None:
        """Collect on the disk of `folder`, with so many columns of scores."""
        self.twice: list[BadRow] = []
        self.duplicates = 0
        self.scores_not_kept = 0
        self._once = once
        self._places: list[str] | None = [] if remember_places else None
        self._spool = Spool(_RESPONSE, folder)
        self._numbers: dict[bytes, int] = {}
        self.texts: array[int] = array("q")
        self._rows: array[int] = array("q")
        self._samples: array[int] = array("i")
        self._scores = [array("d") for _ in range(columns)]
        self._content = Content()
        self._names: list[str] | None = None

    def __len__(self) -> int:
        return self._spool.rows

    def add(
        self,
        record: Record,
        row: int,
        prompt: tuple[int, str],
        response: Response,
        scores: Sequence[float | None] = (),
        *,
        model: str | None = None,
        metadata: str | None = None,
    ) -> int:
        """Take a response to the prompt of this number and id, from the `row`-th row; returns its number."""
        number, key = prompt
        text, message = response.text, response.message
        identity = f"{key}{len(text)}\0{text}\0{message or ''}\0{model or ''}\0"
        hashed = hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=16)
        known = self._numbers.setdefault(hashed.digest()[:8], len(self._rows))
        if known < len(self._rows):
            if self._once or self._rows[known] != row:
                self._again(record, row, known, response, scores)
                return known
            known = len(self._rows)
        while len(self._samples) <= number:
            self._samples.append(0)
        index = self._samples[number]
        self._samples[number] += 1
        self._rows.append(row)
        if self._places is not None:
            self._places.append(record.place)
        self.texts.append(text_of_prompt(key, text, message))
        for column, score in zip(self._scores, scores, strict=True):
            column.append(float("nan") if score is None else score)
        self._spool.add(key, index, text, message, model, metadata)
        hashed.update((metadata or "").encode("utf-8", "surrogatepass"))
        self._content.add_hash(hashed.digest(), index)
        return known

    def _again(self, record: Record, row: int, known: int, response: Response, scores: Sequence[float | None]) -> None:
        if self._rows[known] != row:
            self.duplicates += 1
            if self._places is not None and len(self.twice) < NAMED:
                problem = f"the same {response.kind} as {self._places[known]}"
                self.twice.append(BadRow(record.file, record.row, problem))
        for column, score in zip(self._scores, scores, strict=True):
            before = column[known]
            if score is not None and before != before:
                column[known] = score
            elif score is not None and score != before:
                self.scores_not_kept += 1

    @property
    def content(self) -> str:
        """The id of the responses, whatever the order of the prompts."""
        return self._content.id

    def candidates(self, sampler: str, known: Mapping[int, str] = MappingProxyType({})) -> Iterator[pa.Table]:
        """Yield the responses as candidates, with ids from the sampler's fingerprint; those in `known` are left out."""
        start = 0
        for batch in self._spool.batches():
            numbered = enumerate(batch.to_pylist(), start)
            yield CANDIDATES.from_rows([self._candidate(row, sampler) for n, row in numbered if n not in known])
            start += batch.num_rows

    @staticmethod
    def _candidate(row: dict[str, Any], sampler: str) -> dict[str, Any]:
        key = ids.candidate_id(row["prompt_id"], sampler, row["sample_index"])
        return {**row, "candidate_id": key, "status": "ok", "engine": "ingest", "round": 0}

    def names(self, sampler: str) -> list[str]:
        """Return the candidates' ids, by number."""
        if self._names is None:
            self._names = [
                ids.candidate_id(prompt, sampler, index)
                for batch in self._spool.batches()
                for prompt, index in zip(batch["prompt_id"].to_pylist(), batch["sample_index"].to_pylist(), strict=True)
            ]
        return self._names

    def scored(self, column: int, sampler: str, fingerprint: str) -> Iterator[list[dict[str, Any]]]:
        """Yield a column's values for the responses as rows of scores, in batches."""
        names, start = self.names(fingerprint), 0
        for batch in self._spool.batches():
            rows = []
            columns = ["prompt_id", "sample_index", "text", "message"]
            for number, row in enumerate(batch.select(columns).to_pylist(), start):
                score = self._scores[column][number]
                missing = score != score
                content = row["text"] if row["message"] is None else row["message"]
                rows.append(
                    {
                        "candidate_id": names[number],
                        "prompt_id": row["prompt_id"],
                        "score": None if missing else score,
                        "reason": "not_given" if missing else None,
                        "sampler": sampler,
                        "sample_index": row["sample_index"],
                        "round": 0,
                        "text_key": ids.text_key(content),
                        "chars": ids.chars(content),
                        "text_hash": None if missing else ids.text_hash(row["text"]),
                    }
                )
            start += batch.num_rows
            yield rows

    def score_content(self, column: int) -> str:
        """Return the id of a column's scores: which candidate has which."""
        content = Content()
        start = 0
        for batch in self._spool.batches():
            keys = zip(batch["prompt_id"].to_pylist(), batch["sample_index"].to_pylist(), strict=True)
            for number, (prompt, index) in enumerate(keys, start):
                content.add(prompt, index, self._scores[column][number])
            start += batch.num_rows
        return content.id

    def missing(self, column: int) -> int:
        """How many responses have no score by a column."""
        return sum(score != score for score in self._scores[column])

    def prompt_ids(self) -> Iterator[str]:
        """Yield the prompts' ids, by number of the response."""
        for batch in self._spool.batches():
            yield from batch["prompt_id"].to_pylist()

    def close(self) -> None:
        """Give the memory and the file back."""
        self._spool.close()
