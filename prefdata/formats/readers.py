"""Inputs by name: a file, a folder of files, a dataset saved by `datasets`, a dataset on the hub."""

from __future__ import annotations

import difflib
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from prefdata.errors import InputError
from prefdata.formats.files import BATCH, READERS, RawRow, arrow_rows, numbered, reader

__all__ = ["RawRow", "read", "split_of"]

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?")
_SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)(?![a-z])", re.IGNORECASE)
_NOT_DATA = re.compile(r"([._].*|README.*|LICENSE.*|dataset_infos?\.json)", re.IGNORECASE)


def read(path: str) -> Iterator[RawRow]:
    """The rows of a file, of a folder of files, or of a dataset on the hub, in their order.

    A file is read by its extension (`READERS`, also with `.gz`). A folder is a dataset that `datasets` saved, or holds
    such files at any depth, read in the order of their paths; names that start with a dot or an underscore, READMEs and
    licences are passed over. `org/name` or `org/name:config` that is no file is a dataset on the hub. Where a dataset
    or a folder has several splits (train, test, …), a row that does not say its own gets a `split` value.

    Raises:
        InputError: there is no such file, its extension is not known, it cannot be read or holds no row.
    """
    where = Path(path)
    if where.is_dir():
        rows = _folder(where)
    elif where.exists():
        rows = reader(where)(where)
    elif _HUB_NAME.fullmatch(path) and where.suffix not in READERS and not where.parent.is_dir():
        rows = _hub(path)
    else:
        raise _missing(where)
    return _not_empty(path, _told(path, rows))


def split_of(name: str) -> str | None:
    """Whether a split is train or test, by its name (`validation`) or its file's (`train-00000-of-00002.parquet`)."""
    found = _SPLIT.match(name)
    if found is None:
        return None
    return "train" if found[1].lower() == "train" else "test"


def _missing(path: Path) -> InputError:
    folder = path.parent
    names = sorted(f.name for f in folder.iterdir()) if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    if not folder.is_dir():
        return InputError(f"{path}: no such file, and no folder {folder}.")
    return InputError(f"{path}: no such file." + (f' Did you mean "{folder / near[0]}"?' if near else ""))


def _told(path: str, rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """`rows`, with what the libraries below say put in our words."""
    try:
        yield from rows
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: broken gzip file ({error}). Copy it again.") from None
    except pa.ArrowException as error:
        raise InputError(f"{path}: not readable as Parquet or Arrow ({str(error).splitlines()[0]}).") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: holds text that is not UTF-8 ({error.reason}). Save it as UTF-8.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from None


def _not_empty(path: str, rows: Iterator[RawRow]) -> Iterator[RawRow]:
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise InputError(f"{path}: it is empty, there is no row in it.")


def _folder(path: Path) -> Iterator[RawRow]:
    if (path / "dataset_dict.json").is_file():
        names = json.loads((path / "dataset_dict.json").read_text())["splits"]
        return _with_splits([(name, _saved(path / name)) for name in names])
    if (path / "state.json").is_file():
        return _saved(path)
    inside = [f for f in path.rglob("*") if f.is_file()]
    files = sorted(f for f in inside if not any(_NOT_DATA.fullmatch(part) for part in f.relative_to(path).parts))
    return _with_splits([(f.name, reader(f)(f)) for f in files])


def _saved(folder: Path) -> Iterator[RawRow]:
    """A dataset as `Dataset.save_to_disk` leaves it: Arrow streams named by `state.json`."""
    for file in json.loads((folder / "state.json").read_text())["_data_files"]:
        yield from arrow_rows(folder / file["filename"])


def _with_splits(sources: list[tuple[str, Iterator[RawRow]]]) -> Iterator[RawRow]:
    # One split alone is no split: a dataset that has not been divided is called "train" everywhere.
    several = len({split_of(name) for name, _ in sources} - {None}) > 1
    for name, rows in sources:
        split = split_of(name) if several else None
        for row in rows:
            if split is None or row.problem or row.values.get("split") is not None:
                yield row
            else:
                yield RawRow(row.file, row.row, {**row.values, "split": split})


def _hub(name: str) -> Iterator[RawRow]:
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{name}: no such file; to read it as a dataset from the hub, pip install 'prefdata[datasets]'."
        ) from None
    repository, _, config = name.partition(":")
    try:
        found = datasets.load_dataset(repository, config or None)
    except Exception as error:  # the library has no base class for what can go wrong on the way
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{name}: no such file, and the hub has no such dataset or cannot be reached ({said[0]}). "
            "Check the name (org/name or org/name:config) and the network, or give a file."
        ) from None
    return _with_splits([(split, numbered(f"{name}/{split}", _batches(rows))) for split, rows in found.items()])


def _batches(rows: Any) -> Iterator[list[dict[str, Any]]]:
    return (batch.to_pylist() for batch in rows.with_format("arrow").iter(BATCH))
