"""check run: compare every byte of a run with what prefdata wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prefdata.errors import InputError
from prefdata.explore.status import existing
from prefdata.storage.artifact import Artifact
from prefdata.storage.atomic import checksum, is_temporary
from prefdata.storage.lineage import SPEC_FILE, SUCCESS_FILE
from prefdata.storage.run import Run, folders
from prefdata.storage.schemas import TABLES


def check_run(path: Path) -> Iterator[str]:
    """Find what is damaged, missing or changed in a run, or in one folder that prefdata made; a line for each fault.

    Every table's parts are compared with their checksums and with `_SUCCESS`; the files of models and exports with
    those that `_SUCCESS` lists; the cached log-probabilities of DPO's reference with their names.

    Raises:
        NotReady: there is no folder at that path.
        InputError: nothing in it was written by prefdata.
    """
    found = _artifacts(path)
    if not found:
        raise InputError(f"{path} is not a run, a model or an export: it holds nothing that prefdata made.")
    for folder in found:
        yield from folder.problems()
    for cache in (path / "_reference", *(folder.path / "_reference" for folder in found)):
        for file in sorted(cache.glob("*.parquet")):
            if checksum(file) != file.stem.rpartition("-")[2]:
                yield f"{file} is damaged. It is computed again when it is needed."


def unfinished(path: Path) -> list[str]:
    """List the folders of a run without `_SUCCESS`, which no step has finished: they may lack rows."""
    return [str(folder.path) for folder in _artifacts(path) if not (folder.path / SUCCESS_FILE).exists()]


def leftovers(path: Path) -> list[str]:
    """List the temporary files and folders in a run: of processes at work, or left by dead ones."""
    return sorted(str(found) for found in path.rglob("_*") if is_temporary(found.name))


def _artifacts(path: Path) -> list[Artifact]:
    run = existing(Run(path))
    found: list[Artifact] = [partition for table in TABLES for partition in run.partitions(table)]
    found += [Artifact(path / side / name) for side in ("models", "exports") for name in folders(path / side)]
    return [*found, Artifact(path)] if (path / SPEC_FILE).exists() else found
