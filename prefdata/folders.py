"""Folders that one spec fills: a table's partition, a model, an export. What made it is said first, success last."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from prefdata.disk import refused, sync_folder, write_atomically, written_by_the_living
from prefdata.errors import InputError, SpecConflict
from prefdata.ids import digest
from prefdata.reports import Report
from prefdata.specs import Spec, difference

State = Literal["absent", "unfinished", "finished"]

SPEC_FILE = "_spec.json"
SUCCESS_FILE = "_SUCCESS"

Said = TypeVar("Said", bound=BaseModel)

_LEFT = re.compile(r"_(?:tmp|new|old)-(\d+)")


class Lineage(BaseModel):
    """Where rows came from: what every footer and `_spec.json` say.

    `spec` is the spec's identity, `parents` maps what was read (`candidates/policy`, or a file) to its content's id.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    spec: dict[str, Any]
    fingerprint: str
    parents: dict[str, str] = {}
    versions: dict[str, str] = Field(default_factory=lambda: {"prefdata": version("prefdata")})

    @classmethod
    def of(
        cls,
        spec: Spec,
        parents: dict[str, str] | None = None,
        *,
        resolved: dict[str, Any] | None = None,
        **versions: str,
    ) -> Lineage:
        """The lineage of what `spec` makes from `parents`; `versions` are those of the libraries that matter.

        `resolved` replaces or adds to the spec's identity what was only known at run time: a model's weights for its
        path, the engine that `auto` meant.
        """
        identity = {**spec.identity(), **(resolved or {})}
        return cls(
            step=spec.step,
            spec=identity,
            fingerprint=digest({"step": spec.step, **spec.essence(identity)}),
            parents=parents or {},
            versions={"prefdata": version("prefdata"), **versions},
        )

    @property
    def format(self) -> int:
        """The version of what a model's identity was made of (`ids.FORMAT`)."""
        return int(self.spec.get("format", 1))

    def versions_text(self) -> str:
        """The libraries' versions on one line."""
        return ", ".join(f"{name} {said}" for name, said in self.versions.items())

    @property
    def content(self) -> str:
        """The id of what this lineage makes: the steps are deterministic, so spec and inputs name the result."""
        return digest({"fingerprint": self.fingerprint, "parents": self.parents})


class Success(BaseModel):
    """What `_SUCCESS` says: the step's Report, the content's id and when it was finished.

    `seen` is how what was read lay on disk then (`Partition.as_it_lies`), by name, where the step has looked: what lies
    as it did is what it was.
    """

    model_config = ConfigDict(frozen=True)

    report: Report
    content: str
    finished: str
    seen: dict[str, str] = {}


@dataclass(frozen=True)
class Outcome:
    """What a command did: the Report, where the result lies, and how it came about.

    made: from nothing; continued: what was missing was added; remade: made anew, because its inputs changed; replaced:
    made anew because that was asked for; kept: it was there already and nothing was done.
    """

    report: Report
    path: Path
    did: Literal["made", "continued", "remade", "replaced", "kept"]


class Folder:
    """A folder that one spec fills: a table's partition, a model, an export."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def state(self) -> State:
        """absent, unfinished (begun, no `_SUCCESS`) or finished."""
        if (self.path / SUCCESS_FILE).exists():
            return "finished"
        return "unfinished" if (self.path / SPEC_FILE).exists() else "absent"

    def lineage(self) -> Lineage | None:
        """What the folder is being or was made from, or None where it was not begun."""
        return _load(self.path / SPEC_FILE, Lineage)

    def success(self) -> Success | None:
        """What `_SUCCESS` says, or None where the folder is not finished."""
        return _load(self.path / SUCCESS_FILE, Success)

    def check(self, lineage: Lineage) -> State:
        """The folder's state, when it is free for `lineage` or was made by the same spec; touches nothing.

        Raises:
            SpecConflict: it was made by another spec; the message shows the difference.
            InputError: it holds files that prefdata did not write.
        """
        there = self.lineage()
        if there is None:
            if self.path.is_dir() and any(not f.name.startswith("_") for f in self.path.iterdir()):
                raise InputError(f"{self.path} holds files that prefdata did not write. Choose another folder or name.")
            return "absent"
        if there.fingerprint != lineage.fingerprint:
            raise SpecConflict(f"{self.path} {_why_other(there, lineage)}")
        return self.state

    def begin(self, lineage: Lineage, *, replace: bool = False, revise: bool = False) -> State:
        """Make the folder ready to be filled; returns the state that it was in.

        With `replace` whatever was there, by whatever spec, is removed first; with `revise` it stays, and is to be
        continued as what `lineage` says.

        Raises:
            SpecConflict, InputError: as `check`.
            StorageError: the folder cannot be written.
        """
        state: State = "absent" if replace else self.state if revise else self.check(lineage)
        with refused(self.path):
            if replace and self.path.exists():
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            self._sweep()
            if state == "absent" or self.lineage() != lineage:
                self.write_text(SPEC_FILE, lineage.model_dump_json(indent=2))
        return state

    def reopen(self) -> None:
        """Take `_SUCCESS` back, because more is to be added."""
        with refused(self.path):
            (self.path / SUCCESS_FILE).unlink(missing_ok=True)

    def finish(self, report: Report, seen: Mapping[str, str] | None = None) -> None:
        """Write `_SUCCESS`, last of all; what processes that died meanwhile left goes."""
        self._sweep()
        lineage = self.lineage()
        assert lineage is not None, f"{self.path} was finished before it was begun"
        now = datetime.now(UTC).isoformat("T", "seconds")
        success = Success(report=report, content=lineage.content, finished=now, seen=dict(seen or {}))
        self.write_text(SUCCESS_FILE, success.model_dump_json(indent=2))

    def unchanged(self, lineage: Lineage, seen: Mapping[str, str]) -> Outcome | None:
        """What was made before, if it was by the same spec and from what lies as it did: there is nothing to do.

        Only the spec of `lineage` counts. Where nothing was looked at, or files were copied, it takes reading them to
        know (`remake`).
        """
        success, there = self.success(), self.lineage()
        if success is None or there is None or there.fingerprint != lineage.fingerprint:
            return None
        return Outcome(success.report, self.path, "kept") if seen and success.seen == dict(seen) else None

    def rebuild(
        self, lineage: Lineage, fill: Callable[[Path], Report], *, seen: Mapping[str, str] | None = None
    ) -> Report:
        """Make the whole folder at once: filled beside by `fill`, which gets its path, then renamed into place."""
        building = Folder(self.path.parent / f"_new-{os.getpid()}-{self.path.name}")
        began = time.monotonic()
        with refused(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for left in self.path.parent.glob(f"_*-{self.path.name}"):
                if _LEFT.match(left.name) and not written_by_the_living(left.name):
                    if left.name.startswith("_old-") and not self.path.exists():  # killed before the new one was there
                        left.rename(self.path)
                    else:
                        shutil.rmtree(left)
            try:
                building.begin(lineage, replace=True)
                report = fill(building.path)
                report = report if report.seconds else report.timed(time.monotonic() - began)
                building.finish(report, seen)
                self._swap(building.path)
            finally:
                shutil.rmtree(building.path, ignore_errors=True)
        return report

    def remake(
        self,
        lineage: Lineage,
        fill: Callable[[Path], Report],
        *,
        replace: bool = False,
        seen: Mapping[str, str] | None = None,
    ) -> Outcome:
        """`rebuild`, unless the folder is that already; with `replace` whatever it is, were it damaged.

        The same spec with other inputs makes it anew: it is derived, and what was there would be stale.

        Raises:
            SpecConflict, InputError: as `check`, unless `replace`.
        """
        state = self.state if replace else self.check(lineage)
        success = None if replace else self.success()
        if success is not None and self.lineage() == lineage:
            return Outcome(success.report, self.path, "kept")
        report = self.rebuild(lineage, fill, seen=seen)
        return Outcome(report, self.path, "made" if state == "absent" else "replaced" if replace else "remade")

    def _swap(self, new: Path) -> None:
        old = self.path.parent / f"_old-{os.getpid()}-{self.path.name}"
        try:
            if self.path.exists():
                self.path.rename(old)
            new.rename(self.path)
        except BaseException:  # Ctrl-C as well
            if old.exists() and not self.path.exists():
                old.rename(self.path)
            raise
        sync_folder(self.path.parent)
        shutil.rmtree(old, ignore_errors=True)

    def write_text(self, name: str, text: str) -> None:
        """Write one small file atomically."""
        write_atomically(self.path / name, lambda file: file.write(text.encode()))

    def _sweep(self) -> None:
        # Temporary files of processes that died; those of living ones carry a living pid.
        for left in self.path.glob("_tmp-*"):
            if not written_by_the_living(left.name):
                left.unlink(missing_ok=True)


def _why_other(there: Lineage, lineage: Lineage) -> str:
    if there.step == lineage.step and there.format != lineage.format:
        return (
            f"was made by another version of prefdata (identity format {there.format}, here {lineage.format}), whose "
            "ids, seeds and scores differ: it can be read as it is, and not continued. Give the new one another name "
            "(--name, for train --out), or --replace the old one."
        )
    changed = difference({"step": there.step, **there.spec}, {"step": lineage.step, **lineage.spec})
    return f"was made with other settings ({changed}). Give the new one another name, or --replace the old one."


def _load(path: Path, kind: type[Said]) -> Said | None:
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return kind.model_validate(json.loads(text))
    except ValueError as error:
        raise InputError(
            f"{path} is not as prefdata writes it ({error}). Make its folder anew with --replace."
        ) from None
