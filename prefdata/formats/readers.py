"""Inputs by name, as raw rows: files, folders, globs, standard input, datasets saved by `datasets` or on the hub."""

from __future__ import annotations

import difflib
import glob
import gzip
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from prefdata.errors import InputError
from prefdata.formats.files import BATCH, COMPRESSED, READERS, RawRow, arrow_rows, numbered, reader, refuse_endless
from prefdata.ids import digest

__all__ = ["HubName", "RawRow", "hub_fingerprint", "input_files", "input_name", "read", "split_of"]

STDIN = "-"

_HUB_NAME = re.compile(
    r"(?P<repository>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[^:\s]+))?(:(?P<config>[\w.-]*))?(:(?P<split>[^:\s]+))?"
)
_NOT_DATA = re.compile(r"([._].*|README.*|LICENSE.*|dataset_infos?\.json|.*\.(ya?ml|log))", re.IGNORECASE)

_TRAIN = ("train", "training")
_TEST = ("test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation", "heldout", "holdout")
SPLIT_NAMES = "train, test, validation, valid, val, dev, eval, holdout (also as test_prefs, valid1, …)"


@dataclass(frozen=True, slots=True)
class HubName:
    """A dataset on the hub: `org/name`, `org/name@revision`, `org/name:config` or `org/name:config:split`."""

    repository: str
    revision: str | None
    config: str | None
    split: str | None

    @classmethod
    def of(cls, name: str) -> HubName | None:
        """Parse a name; None if it is not a hub name, or looks like a file's."""
        found = _HUB_NAME.fullmatch(name)
        path = Path(name)
        if found is None or path.suffix in READERS or path.parent.is_dir():
            return None
        return cls(found["repository"], found["revision"], found["config"] or None, found["split"])


def read(name: str) -> Iterator[RawRow]:
    """Read the rows of an input, in their order.

    A file is read by its extension (`READERS`, also with .gz or .zst). A folder is a dataset that `datasets` saved, or
    holds such files at any depth, read in the order of their paths; names that start with a dot or an underscore,
    READMEs, licences, YAML files and logs are skipped. `*`, `?` and `[…]` are wildcards. `-` is standard input.
    `org/name[@revision][:config[:split]]` is a dataset on the hub, unless such a file exists. If a dataset or a folder
    has several splits (train, test, …), a row without a `split` gets that of its file.

    Raises:
        InputError: the file does not exist, its extension is unknown, it cannot be read or has no row.
    """
    path = Path(name)
    hub = HubName.of(name)
    if name == STDIN:
        rows = _standard_input()
    elif path.is_dir():
        rows = _folder(path)
    elif path.exists():
        rows = reader(path)(path)
    elif found := _glob(name):
        rows = _with_splits([(file.relative_to(_fixed_part(path)), reader(file)(file)) for file in found])
    elif hub is not None:
        rows = _hub(name, hub)
    else:
        raise _missing(path)
    return _not_empty(name, _in_our_words(name, rows))


def input_files(name: str) -> list[Path]:
    """List the files of an input, for hashing; none for standard input and the hub."""
    path = Path(name)
    if path.is_dir():
        return _files_within(path)
    refuse_endless(path)
    return [path] if path.exists() else _glob(name)


def input_name(name: str) -> str:
    """Name an input without its folder and extensions: the default name of a source."""
    path = Path(name)
    if name == STDIN:
        return "stdin"
    for extension in COMPRESSED:
        path = path.with_suffix("") if path.suffix == extension else path
    return path.stem if path.suffix in READERS else path.name


def hub_fingerprint(hub: HubName) -> str:
    """Return the id of a dataset's content in `datasets`."""
    found = _load(str(hub), hub)
    splits = [found[split] for split in ("train", "test") if split in found] if isinstance(found, dict) else [found]
    return digest([rows._fingerprint for rows in splits])


def split_of(name: str) -> str | None:
    """Tell whether a split is train or test, by its name (`validation`) or a file's (`train-00000-of-00002.parquet`).

    A word of the name decides; None if it has no such word, or both.
    """
    words = {word for word in re.split(r"[^a-z]+", name.lower()) if word}
    found = [split for split, names in (("train", _TRAIN), ("test", _TEST)) if words & {*names}]
    return found[0] if len(found) == 1 else None


def _glob(name: str) -> list[Path]:
    found = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 (a pattern may be absolute)
    return [path for path in map(Path, found) if path.is_file()]


def _fixed_part(pattern: Path) -> Path:
    """Return the folders of a pattern before its first wildcard."""
    parts = itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parent.parts)
    return Path(*parts)


def _missing(path: Path) -> InputError:
    folder = path.parent
    names = sorted(f.name for f in folder.iterdir()) if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    if not folder.is_dir():
        return InputError(f"{path}: no such file, and no folder {folder}.")
    return InputError(f"{path}: no such file." + (f' Did you mean "{folder / near[0]}"?' if near else ""))


def _in_our_words(name: str, rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """Iterate over `rows`, with the libraries' errors converted to input errors."""
    try:
        yield from rows
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{name}: broken gzip file ({error}). Copy it again.") from None
    except pa.ArrowException as error:
        raise InputError(f"{name}: not readable as Parquet or Arrow ({str(error).splitlines()[0]}).") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: holds text that is not UTF-8 ({error.reason}). Save it as UTF-8.") from None
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror or error}).") from None


def _not_empty(name: str, rows: Iterator[RawRow]) -> Iterator[RawRow]:
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise InputError(f"{name}: it is empty: it has no rows.")


def _standard_input() -> Iterator[RawRow]:
    """Read standard input, kept in a temporary file, since some layouts are read twice."""
    path = _spooled()
    yield from (replace(row, file=STDIN) for row in reader(path)(path))


def _spooled() -> Path:
    if not _SPOOLED:
        _SPOOLED.append(tempfile.TemporaryDirectory(prefix="prefdata-stdin-"))  # deleted when the process exits
        path = Path(_SPOOLED[0].name) / "stdin"
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        with path.open("rb") as file:
            start = file.read(4)
        suffix = {b"PAR1": ".parquet", b"ARRO": ".arrow", b"\xff\xff\xff\xff": ".arrow"}.get(start, ".jsonl")
        path.rename(path.with_suffix(suffix))
    return next(Path(_SPOOLED[0].name).iterdir())


_SPOOLED: list[tempfile.TemporaryDirectory[str]] = []


def _folder(path: Path) -> Iterator[RawRow]:
    if (path / "dataset_dict.json").is_file():
        names = _listed(path / "dataset_dict.json", "splits")
        return _with_splits([(name, _saved(_within(path, name))) for name in names])
    if (path / "state.json").is_file():
        return _saved(path)
    return _with_splits([(f.relative_to(path), reader(f)(f)) for f in _files_within(path)])


def _files_within(path: Path) -> list[Path]:
    inside = [f for f in path.rglob("*") if f.is_file()]
    return sorted(f for f in inside if not any(_NOT_DATA.fullmatch(part) for part in f.relative_to(path).parts))


def _saved(folder: Path) -> Iterator[RawRow]:
    """Read a dataset written by `Dataset.save_to_disk`: Arrow streams named by `state.json`."""
    for file in _listed(folder / "state.json", "_data_files"):
        yield from arrow_rows(_within(folder, file.get("filename") if isinstance(file, dict) else None))


def _listed(file: Path, key: str) -> list[Any]:
    """Return the list under a key of a file written by `datasets`."""
    try:
        found = json.loads(file.read_text("utf-8"))[key]
    except (ValueError, KeyError, TypeError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise InputError(f"{file}: `datasets` did not write it: it has no list {key!r}. Save the dataset again.")
    return found


def _within(folder: Path, name: Any) -> Path:
    """Resolve a file name that a file in the folder gives; it may not point outside the folder."""
    root = os.path.normpath(folder)
    path = Path(os.path.normpath(f"{root}/{name}")) if isinstance(name, str) and "\0" not in name else None
    if path is None or Path(str(name)).is_absolute() or not path.is_relative_to(root) or path == Path(root):
        raise InputError(f"{folder}: it names {str(name)[:100]!r}, which is not a file in it. Save the dataset again.")
    return path


def _with_splits(sources: list[tuple[str | Path, Iterator[RawRow]]]) -> Iterator[RawRow]:
    splits = [_split_of_path(Path(name)) for name, _ in sources]
    # A single split is ignored: datasets without splits are named "train".
    several = len({*splits} - {None}) > 1
    for split, (_, rows) in zip(splits, sources, strict=True):
        for row in rows:
            if not several or split is None or row.problem or row.values.get("split") is not None:
                yield row
            else:
                yield RawRow(row.file, row.row, {**row.values, "split": split})


def _split_of_path(path: Path) -> str | None:
    """Detect the split from a file's name, or from the nearest folder whose name is a split."""
    return next((split for part in path.parts[::-1] if (split := split_of(part))), None)


def _hub(name: str, hub: HubName) -> Iterator[RawRow]:
    found = _load(name, hub)
    if not isinstance(found, dict):
        return numbered(name, _batches(found))
    return _with_splits([(split, numbered(f"{name}/{split}", _batches(rows))) for split, rows in found.items()])


def _load(name: str, hub: HubName) -> Any:
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"{name}: no such file; to read it as a dataset from the hub, pip install 'prefdata[datasets]'."
        ) from None
    try:
        return datasets.load_dataset(hub.repository, hub.config, split=hub.split, revision=hub.revision)
    except Exception as error:  # the library's errors have no base class
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{name}: no such file, and the hub has no such dataset or cannot be reached ({lines[0]}). "
            "Check the name (org/name[@revision][:config[:split]]) and the network, or give a file."
        ) from None


def _batches(rows: Any) -> Iterable[pa.RecordBatch]:
    tables = rows.with_format("arrow").iter(BATCH)
    return (batch for table in tables for batch in table.to_batches())
