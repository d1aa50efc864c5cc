"""Sources of training data: a run directory, or any input that `ingest` reads (an export, files, the hub).

Rows of the split `test` are never trained on: they are for evaluation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefdata.errors import InputError, NotReady
from prefdata.formats.dataset_info import NAME as INFO
from prefdata.formats.files import RawRow
from prefdata.formats.readers import HubName, hub_fingerprint, input_files, read
from prefdata.formats.reading import Reader, ReadOptions
from prefdata.ids import ID_DIGITS, digest, without_nulls
from prefdata.storage.artifact import Artifact
from prefdata.storage.lineage import SUCCESS_FILE
from prefdata.storage.run import Partition, Run
from prefdata.storage.schemas import TABLES
from prefdata.train.parsing import ItemStream, Kind, Needs

LABEL = ("margin", "probability", "weight", "verdict")
"""Columns of a run's pairs about their labels."""


@dataclass(frozen=True)
class DataSource:
    """An opened source of training data.

    Attributes:
        name: its name in messages.
        parents: the hashes of its content, by name.
        read: returns an iterator over its rows; may be called several times.
        run: its run directory, or None.
    """

    name: str
    parents: dict[str, str]
    read: Callable[[], Iterator[RawRow]]
    run: Path | None = None

    def items(self, needs: Needs, options: ReadOptions | None = None) -> ItemStream:
        """Read the data as training items, one at a time."""
        options = replace(options or ReadOptions(), want=needs.want)
        return ItemStream(Reader([self.name], options, read=lambda _: self.read()), needs, self.name)


def open_source(
    data: Path | str, kind: Kind, *, part: str | None = None, demonstrations: str | None = None
) -> DataSource:
    """Open the data at `data` without reading its rows.

    Args:
        data: a run directory, an export's folder, or whatever `ingest` reads: files, a pattern, a name for `datasets`.
        kind: the kind of data to read.
        part: name of the pairing (preferences), selector (demonstrations), labels or groups of a run.
        demonstrations: name of demonstrations of a run, instead of a selector.

    Raises:
        InputError: nothing is there, or it is none of these.
        NotReady: a run directory has no pairs yet.
    """
    name = str(Path(data).expanduser()) if str(data).startswith("~") else str(data)
    path = Path(name)
    if path.is_dir() and any((path / table).is_dir() for table in TABLES):
        run = Run(path)
        if kind == "demonstrations":
            return _demonstrations(run, part, demonstrations)
        return {"preferences": _preferences, "unpaired": _unpaired}.get(kind, _groups)(run, part)
    files = _in_order(path) if path.is_dir() else input_files(name)
    if path.is_dir() and not files:
        raise InputError(
            f"{path} is neither a run directory (it has no {', '.join(TABLES)}) nor an export or a folder of data. "
            "Give one of these, or a file."
        )
    if path.is_dir():
        _refuse_changed_export(path)
    if not files:
        read(name).close()  # type: ignore[attr-defined] # raises if the name is wrong
        hub = HubName.of(name)
        parents = {name: hub_fingerprint(hub)} if hub is not None else {name: digest(_hash_of_rows(read(name)))}
        return DataSource(name, parents, lambda: read(name))
    # A dataset_info.json next to the files names their columns, so it is part of the content.
    beside = [info for folder in dict.fromkeys(file.parent for file in files) if (info := folder / INFO).is_file()]
    return DataSource(name, {path.name: _hash([*files, *beside])}, lambda: read(name))


def _refuse_changed_export(path: Path) -> None:
    """Refuse an export whose data is not what was written.

    Raises:
        InputError: a file of the export is damaged, was changed or is missing.
    """
    export = Artifact(path)
    wrong = [name for name in (*export.changed(), *export.missing()) if name.startswith("data/")]
    if wrong:
        raise InputError(
            f"{path / wrong[0]} is not what `prefdata export` wrote: it is damaged, was changed or is missing. Export "
            f"it again with --replace, or delete {path / SUCCESS_FILE} if you changed it on purpose."
        )


def _in_order(folder: Path) -> list[Path]:
    """List the data files of a folder; of an export, the training split first."""
    files = input_files(str(folder))
    return sorted(files, key=lambda file: (not file.name.startswith("train-"), file))


def _hash_of_rows(rows: Iterator[RawRow]) -> list[str]:
    return [digest([row.row, str(row.values)]) for row in rows]


def _preferences(run: Run, pairing: str | None) -> DataSource:
    pairs = run.only("pairs", pairing)

    def read() -> Iterator[RawRow]:
        rows = pairs.read(["pair_id", "prompt_id", "chosen_id", "rejected_id", *LABEL])
        rows = rows.sort_by([("prompt_id", "ascending"), ("pair_id", "ascending")])  # the order of exports
        prompts, texts = _prompts(run), _texts(run)
        asked = _look_up(rows["prompt_id"], prompts, "prompt_id", pairs)
        sides = [
            _look_up(rows[side], texts, "candidate_id", pairs)[column]
            for side in ("chosen_id", "rejected_id")
            for column in ("text", "message")
        ]
        columns = (asked["messages"], asked["tools"], asked["split"], *sides, *(rows[name] for name in LABEL))
        for number, (messages, tools, split, *said, of_margin, sure, weight, verdict) in enumerate(_zip(columns), 1):
            label = dict(zip(LABEL, (of_margin, sure, weight, verdict), strict=True))
            values = {"prompt": without_nulls(messages), "tools": tools, **label}
            values |= {"chosen": turns_of(*said[:2]), "rejected": turns_of(*said[2:]), "split": split}
            yield RawRow(str(pairs), number, values)

    return DataSource(str(pairs.path), {str(pairs): pairs.content}, read, run.path)


def _unpaired(run: Run, name: str | None) -> DataSource:
    part = run.only("unpaired", name)

    def read() -> Iterator[RawRow]:
        rows = part.read(["candidate_id", "prompt_id", "good", "weight"])
        rows = rows.sort_by([("prompt_id", "ascending"), ("candidate_id", "ascending")])
        asked = _look_up(rows["prompt_id"], _prompts(run), "prompt_id", part)
        texts = _look_up(rows["candidate_id"], _texts(run), "candidate_id", part)
        made = _imitate(str(part), asked, texts, rows["weight"])
        for row, label in zip(made, rows["good"].to_pylist(), strict=True):
            yield RawRow(row.file, row.row, {**row.values, "label": label})

    return DataSource(str(part.path), {str(part): part.content}, read, run.path)


def _groups(run: Run, name: str | None) -> DataSource:
    part = run.only("groups", name)

    def read() -> Iterator[RawRow]:
        rows = part.read(["prompt_id", "candidate_ids", "scores"]).sort_by("prompt_id")
        asked = _look_up(rows["prompt_id"], _prompts(run), "prompt_id", part)
        ids = pa.chunked_array([rows["candidate_ids"].combine_chunks().flatten()])
        texts = _look_up(ids, _texts(run), "candidate_id", part)
        responses = (turns_of(*said) for said in _zip((texts["text"], texts["message"])))
        columns = (asked["messages"], asked["tools"], asked["split"], rows["scores"])
        for number, (messages, tools, split, scores) in enumerate(_zip(columns), 1):
            values = {"prompt": without_nulls(messages), "tools": tools, "split": split, "scores": scores}
            yield RawRow(str(part), number, {**values, "completions": [next(responses) for _ in scores]})

    return DataSource(str(part.path), {str(part): part.content}, read, run.path)


def _demonstrations(run: Run, selector: str | None, name: str | None) -> DataSource:
    unnamed = selector is None and name is None and not run.partitions("selections")
    if name is not None or (unnamed and run.partitions("demonstrations")):
        part, of_part = run.only("demonstrations", name), _all
    elif unnamed:
        return _references(run)
    else:
        part, of_part = run.only("selections", selector), _best

    def read() -> Iterator[RawRow]:
        rows = of_part(part)
        asked = _look_up(rows["prompt_id"], _prompts(run), "prompt_id", part)
        texts = _look_up(rows["candidate_id"], _texts(run), "candidate_id", part)
        yield from _imitate(str(part), asked, texts, rows["weight"] if "weight" in rows.column_names else None)

    return DataSource(str(part.path), {str(part): part.content}, read, run.path)


def _all(part: Partition) -> pa.Table:
    rows = part.read(["candidate_id", "prompt_id", "rank", "weight"])
    return rows.sort_by([("prompt_id", "ascending"), ("rank", "ascending")])


def _best(part: Partition) -> pa.Table:
    """Keep the row with the highest score per prompt (RSO's ranks are an order of acceptance, not of quality)."""
    order = [("prompt_id", "ascending"), ("score", "descending"), ("rank", "ascending")]
    rows = part.read(["candidate_id", "prompt_id", "score", "rank"]).sort_by(order)
    others = rows["prompt_id"].combine_chunks()
    first = pa.concat_arrays([pa.array([True]), pc.not_equal(others[1:], others[:-1])])
    return rows.filter(first) if rows.num_rows else rows


def _references(run: Run) -> DataSource:
    sources = run.all("prompts")

    def read() -> Iterator[RawRow]:
        prompts = _prompts(run)
        prompts = prompts.filter(prompts["reference"].is_valid())
        first = pc.index_in(pc.unique(prompts["prompt_id"]), value_set=prompts["prompt_id"])
        prompts = prompts.take(first).sort_by("prompt_id")
        if not prompts.num_rows:
            raise NotReady(
                f"no prompt of {run} has a reference response to imitate: run `prefdata select {run} …` first."
            )
        references = pa.table({"text": prompts["reference"], "message": pa.nulls(prompts.num_rows, pa.string())})
        yield from _imitate("prompts", prompts, references)

    return DataSource(f"{run.path}/prompts", {str(source): source.content for source in sources}, read, run.path)


def _imitate(
    file: str, asked: pa.Table, responses: pa.Table, weights: pa.ChunkedArray | None = None
) -> Iterator[RawRow]:
    weights = pa.chunked_array([pa.repeat(1.0, asked.num_rows)]) if weights is None else weights
    columns = (asked["messages"], asked["tools"], asked["split"], responses["text"], responses["message"], weights)
    for number, (messages, tools, split, text, message, weight) in enumerate(_zip(columns), 1):
        values = {"prompt": without_nulls(messages), "completion": turns_of(text, message), "tools": tools}
        yield RawRow(file, number, {**values, "weight": weight, "split": split})


def turns_of(text: str, message: str | None) -> list[dict[str, Any]]:
    """Return a candidate's response as messages."""
    turns = {"role": "assistant", "content": text} if message is None else json.loads(message)
    return turns if isinstance(turns, list) else [turns]


def _zip(columns: tuple[pa.ChunkedArray, ...]) -> Iterator[tuple[Any, ...]]:
    return zip(*(column.to_pylist() for column in columns), strict=True)


def _prompts(run: Run) -> pa.Table:
    """Read the prompts of all sources, in the order of ingestion."""
    columns = ["prompt_id", "messages", "tools", "reference", "split", "source_number"]
    tables = [part.read(columns) for part in run.partitions("prompts")]
    tables.sort(key=lambda rows: (rows.num_rows and rows["source_number"][0].as_py()) or 0)
    return pa.concat_tables(tables) if tables else TABLES["prompts"].empty().select(columns)


def _texts(run: Run) -> pa.Table:
    tables = [part.read(["candidate_id", "text", "message"]) for part in run.partitions("candidates")]
    return pa.concat_tables(tables) if tables else TABLES["candidates"].empty()


def _look_up(ids: pa.ChunkedArray, rows: pa.Table, key: str, wanted_by: Partition) -> pa.Table:
    """Return the rows of those ids, in their order."""
    found = pc.index_in(ids, value_set=rows[key])
    if found.null_count:
        lost = ids.filter(found.is_null())[0].as_py()
        raise InputError(f"{wanted_by} names {key} {lost}, which is not in the run. Make its parent tables again.")
    return rows.take(found)


def _hash(files: list[Path]) -> str:
    sha = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            sha.update(hashlib.file_digest(stream, "sha256").digest())
    return sha.hexdigest()[:ID_DIGITS]
