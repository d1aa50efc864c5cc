"""Where training data comes from: a run directory, an export, a file, or a `datasets` name; all become rows.

Rows of the split `test` are never trained on: they are what is evaluated.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefdata.errors import BadRow, InputError, NotReady
from prefdata.folders import Folder
from prefdata.ids import ID_DIGITS, digest
from prefdata.lineage import SUCCESS_FILE
from prefdata.store import Partition, Run
from prefdata.tables import TABLES
from prefdata.train.layouts import Kind, Row

LABEL = ("margin", "probability", "weight", "verdict")
"""What a run's pairs say of their labels."""

SUFFIXES = (".parquet", ".jsonl", ".json")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Source:
    """Data that was found.

    Attributes:
        name: as messages call it.
        parents: what it is, by name, and the id of its content.
        read: its rows, and the lines that are broken.
        run: the run directory that it is, or None.
    """

    name: str
    parents: dict[str, str]
    read: Callable[[], Iterator[Row | BadRow]]
    run: Path | None = None


def find(data: Path | str, kind: Kind, *, part: str | None = None, demonstrations: str | None = None) -> Source:
    """The data at `data`, without reading its rows.

    Args:
        data: a run directory, an export's folder, a Parquet, JSONL or JSON file, or a name for `datasets`.
        kind: what is wanted of it.
        part: which pairing (preferences) or selector (demonstrations) of a run.
        demonstrations: which demonstrations of a run, instead of a selector.

    Raises:
        InputError: there is no such thing, or it is none of these.
        NotReady: a run directory has no pairs yet.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        if any((path / table).is_dir() for table in TABLES):
            run = Run(path)
            return _preferences(run, part) if kind == "preferences" else _demonstrations(run, part, demonstrations)
        return _export(path)
    if path.is_file():
        return Source(str(path), {path.name: _hash([path])}, lambda: _file_rows(path, None))
    if path.suffix in SUFFIXES or path.is_absolute() or not _HUB_NAME.fullmatch(str(data)):
        raise InputError(f"there is no file or folder {data}. Check the path.")
    return _hub(str(data))


def _export(path: Path) -> Source:
    files = {split: sorted(path.glob(f"data/{split}-*.parquet")) for split in ("train", "test")}
    if not files["train"]:
        raise InputError(
            f"{path} is neither a run directory (it has no {', '.join(TABLES)}) nor an export (it has no "
            "data/train-*.parquet). Give one of these, or a Parquet or JSONL file."
        )

    export = Folder(path)
    wrong = [*export.changed(), *export.missing()]
    if wrong := [name for name in wrong if name.startswith("data/")]:
        raise InputError(
            f"{path / wrong[0]} is not what `prefdata export` wrote: it is damaged, was changed or is missing. Export "
            f"it again with --replace, or delete {path / SUCCESS_FILE} if you changed it on purpose."
        )

    def read() -> Iterator[Row | BadRow]:
        for split, parts in files.items():
            for part in parts:
                yield from _file_rows(part, split)

    return Source(str(path), {path.name: _hash([*files["train"], *files["test"]])}, read)


def _file_rows(path: Path, split: str | None) -> Iterator[Row | BadRow]:
    readers = {".parquet": _parquet, ".jsonl": _jsonl, ".json": _json}
    if path.suffix not in readers:
        raise InputError(f"{path}: training data is read from {', '.join(SUFFIXES)}. Convert it, or ingest it first.")
    for number, values in readers[path.suffix](path):
        if isinstance(values, str):
            yield BadRow(path.name, number, values)
        else:
            yield Row(path.name, number, split or str(values.get("split") or "train"), values)


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        number = 0
        for batch in pq.ParquetFile(path).iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield number, values
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a Parquet file that can be read ({error}). Write it again.") from None


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _object(line)


def _object(line: bytes) -> Any:
    try:
        value = json.loads(line)
    except ValueError as error:
        return f"not JSON: {error}"
    return value if isinstance(value, dict) else "not a JSON object"


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}). One object a line is JSONL: name it .jsonl.") from None
    if not isinstance(values, list):
        raise InputError(f"{path} should hold a list of objects.")
    for number, value in enumerate(values, 1):
        yield number, value if isinstance(value, dict) else "not a JSON object"


def _hub(name: str) -> Source:
    try:
        import datasets
    except ModuleNotFoundError:
        raise InputError(
            f"there is no file or folder {name}, and a name for `datasets` needs that library. "
            "Check the path, or pip install 'prefdata[datasets]'."
        ) from None
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"there is no file or folder {name}, and datasets cannot load it ({said}).") from None
    splits = {split: loaded[split] for split in ("train", "test") if split in loaded}
    if "train" not in splits:
        raise InputError(f"{name} has the splits {', '.join(loaded)}, and none is named train.")

    def read() -> Iterator[Row | BadRow]:
        for split, rows in splits.items():
            yield from (Row(f"{name}[{split}]", i, split, values) for i, values in enumerate(rows, 1))

    return Source(name, {name: digest([rows._fingerprint for rows in splits.values()])}, read)


def _preferences(run: Run, pairing: str | None) -> Source:
    pairs = run.only("pairs", pairing)

    def read() -> Iterator[Row | BadRow]:
        rows = pairs.read(["pair_id", "prompt_id", "chosen_id", "rejected_id", *LABEL])
        rows = rows.sort_by([("prompt_id", "ascending"), ("pair_id", "ascending")])  # as exports have them
        prompts, texts = _prompts(run), _texts(run)
        asked = _look_up(rows["prompt_id"], prompts, "prompt_id", pairs)
        sides = [_look_up(rows[side], texts, "candidate_id", pairs)["text"] for side in ("chosen_id", "rejected_id")]
        columns = (asked["messages"], asked["tools"], asked["split"], *sides, *(rows[name] for name in LABEL))
        for number, (messages, tools, split, chosen, rejected, *label) in enumerate(_zip(columns), 1):
            values = {"prompt": messages, "tools": tools, **dict(zip(LABEL, label, strict=True))}
            values |= {"chosen": [_said(chosen)], "rejected": [_said(rejected)]}
            yield Row(str(pairs), number, split, values)

    return Source(str(pairs.path), {str(pairs): pairs.content}, read, run.path)


def _demonstrations(run: Run, selector: str | None, name: str | None) -> Source:
    unnamed = selector is None and name is None and not run.partitions("selections")
    if name is not None or (unnamed and run.partitions("demonstrations")):
        part, of_part = run.only("demonstrations", name), _all
    elif unnamed:
        return _references(run)
    else:
        part, of_part = run.only("selections", selector), _best

    def read() -> Iterator[Row | BadRow]:
        rows = of_part(part)
        asked = _look_up(rows["prompt_id"], _prompts(run), "prompt_id", part)
        texts = _look_up(rows["candidate_id"], _texts(run), "candidate_id", part)["text"]
        yield from _imitate(str(part), asked, texts, rows["weight"] if "weight" in rows.column_names else None)

    return Source(str(part.path), {str(part): part.content}, read, run.path)


def _all(part: Partition) -> pa.Table:
    rows = part.read(["candidate_id", "prompt_id", "rank", "weight"])
    return rows.sort_by([("prompt_id", "ascending"), ("rank", "ascending")])


def _best(part: Partition) -> pa.Table:
    """The row of each prompt with the highest score (RSO's ranks are an order of acceptance, not of merit)."""
    order = [("prompt_id", "ascending"), ("score", "descending"), ("rank", "ascending")]
    rows = part.read(["candidate_id", "prompt_id", "score", "rank"]).sort_by(order)
    others = rows["prompt_id"].combine_chunks()
    first = pa.concat_arrays([pa.array([True]), pc.not_equal(others[1:], others[:-1])])
    return rows.filter(first) if rows.num_rows else rows


def _references(run: Run) -> Source:
    sources = run.all("prompts")

    def read() -> Iterator[Row | BadRow]:
        prompts = _prompts(run)
        prompts = prompts.filter(prompts["reference"].is_valid()).sort_by("prompt_id")
        if not prompts.num_rows:
            raise NotReady(
                f"no prompt of {run} has a reference answer to imitate: run `prefdata select {run} …` first."
            )
        yield from _imitate("prompts", prompts, prompts["reference"])

    return Source(f"{run.path}/prompts", {str(source): source.content for source in sources}, read, run.path)


def _imitate(
    file: str, asked: pa.Table, texts: pa.ChunkedArray, weights: pa.ChunkedArray | None = None
) -> Iterator[Row]:
    weights = pa.chunked_array([pa.repeat(1.0, asked.num_rows)]) if weights is None else weights
    columns = (asked["messages"], asked["tools"], asked["split"], texts, weights)
    for number, (messages, tools, split, text, weight) in enumerate(_zip(columns), 1):
        values = {"prompt": messages, "completion": [_said(text)], "tools": tools, "weight": weight}
        yield Row(file, number, split, values)


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _zip(columns: tuple[pa.ChunkedArray, ...]) -> Iterator[tuple[Any, ...]]:
    return zip(*(column.to_pylist() for column in columns), strict=True)


def _prompts(run: Run) -> pa.Table:
    tables = [part.read(["prompt_id", "messages", "tools", "reference", "split"]) for part in run.partitions("prompts")]
    return pa.concat_tables(tables) if tables else TABLES["prompts"].empty()


def _texts(run: Run) -> pa.Table:
    tables = [part.read(["candidate_id", "text"]) for part in run.partitions("candidates")]
    return pa.concat_tables(tables) if tables else TABLES["candidates"].empty()


def _look_up(ids: pa.ChunkedArray, rows: pa.Table, key: str, wanted_by: Partition) -> pa.Table:
    """The rows of those ids, in their order."""
    found = pc.index_in(ids, value_set=rows[key])
    if found.null_count:
        lost = ids.filter(found.is_null())[0].as_py()
        raise InputError(f"{wanted_by} names {key} {lost}, which the run does not hold. Make its parent tables again.")
    return rows.take(found)


def _hash(files: list[Path]) -> str:
    sha = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            sha.update(hashlib.file_digest(stream, "sha256").digest())
    return sha.hexdigest()[:ID_DIGITS]
