"""Folders that one spec fills: a table's partition, a model, an export. The lineage is written first, success last.

Whatever replaces a folder removes only what prefdata wrote there (`contents`), and is whole when it takes its place
(`swaps`): a kill at any moment leaves the old one or the new one.
"""

from __future__ import annotations

import copy
import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self, TypeVar

from prefdata.errors import InputError, SpecConflict
from prefdata.specs import Spec, describe_changes
from prefdata.storage import checksums
from prefdata.storage.atomic import is_abandoned, is_temporary, storage_errors, temporaries, temporary_name
from prefdata.storage.exchange import refuse_place, settle, swap
from prefdata.storage.lineage import (
    SPEC_FILE,
    SUCCESS_FILE,
    FileRecord,
    Lineage,
    Outcome,
    Success,
    read_json,
    write_json,
)
from prefdata.storage.report import Report

State = Literal["absent", "unfinished", "finished"]

S = TypeVar("S", bound=Spec)

log = logging.getLogger("prefdata.storage")


class Artifact:
    """A folder that one spec fills: a table's partition, a model, an export.

    Whatever replaces it removes only what prefdata wrote there: what `_SUCCESS` lists and was not changed since, and
    the names in `working`. Other files stay (`.git`, LICENSE, notes).
    """

    def __init__(self, path: Path, working: Collection[str] = ()) -> None:
        """Open the folder at `path`; `working` names what prefdata keeps there besides until it is finished."""
        self.path = path
        self.working = working

    @property
    def state(self) -> State:
        """absent, unfinished (begun, no `_SUCCESS`) or finished."""
        settle(self.path)
        if (self.path / SUCCESS_FILE).exists():
            return "finished"
        return "unfinished" if (self.path / SPEC_FILE).exists() else "absent"

    @property
    def intact(self) -> bool:
        """Whether it is finished, and every file that `_SUCCESS` lists is there; what they hold is not read."""
        return self.success() is not None and not self.missing()

    def lineage(self) -> Lineage | None:
        """Read what the folder is being or was made from; None where it was not begun."""
        settle(self.path)
        return read_json(self.path / SPEC_FILE, Lineage)

    def success(self) -> Success | None:
        """Read `_SUCCESS`; None where the folder is not finished."""
        settle(self.path)
        return read_json(self.path / SUCCESS_FILE, Success)

    def check(self, lineage: Lineage, *, replace: bool = False) -> State:
        """Return the folder's state, if `lineage` may fill, continue or, with `replace`, replace it; touches nothing.

        Raises:
            SpecConflict: it was made by another spec; the message shows the difference.
            InputError: it holds files that prefdata did not write.
        """
        if replace:
            self._refuse_to_replace(lineage)
            return self.state
        there = self.lineage()
        if there is None:
            self._refuse_foreign()
            return "absent"
        if there.fingerprint != lineage.fingerprint:
            raise SpecConflict(f"{self.path} {_why_other(there, lineage)}")
        self._refuse_mixed(there, lineage)
        return self.state

    def begin(self, lineage: Lineage, *, replace: bool = False, revise: bool = False) -> State:
        """Make the folder ready to be filled; returns the state that it was in.

        With `replace` an empty one takes the place of what was there, by whatever spec; with `revise` that stays, and
        is to be continued as what `lineage` says.

        Raises:
            SpecConflict, InputError: as `check`.
            StorageError: the folder cannot be written.
        """
        state = self.state if revise else self.check(lineage, replace=replace)
        if revise and (there := self.lineage()) is not None:
            self._refuse_mixed(there, lineage)
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._clean_up()
            if replace:
                self._put(self._built(lineage))
                return "absent"
            self.path.mkdir(exist_ok=True)
            with suppress(InputError):  # damaged, and known from elsewhere
                if read_json(self.path / SPEC_FILE, Lineage) == lineage:
                    return state
            write_json(self.path / SPEC_FILE, lineage)
        return state

    def reopen(self) -> None:
        """Take `_SUCCESS` back, because more is to be added."""
        with storage_errors(self.path):
            (self.path / SUCCESS_FILE).unlink(missing_ok=True)

    def finish(self, report: Report, seen: Mapping[str, str] | None = None) -> None:
        """Write `_SUCCESS`, last of all; what processes that died meanwhile left goes."""
        self._sweep()
        lineage = self.lineage()
        assert lineage is not None, f"{self.path} was finished before it was begun"
        now = datetime.now(UTC).isoformat("T", "seconds")
        with storage_errors(self.path):
            files = self._record()
            success = Success(report=report, content=lineage.content, finished=now, files=files, seen=dict(seen or {}))
            write_json(self.path / SUCCESS_FILE, success)

    def unchanged(self, lineage: Lineage, seen: Mapping[str, str]) -> Outcome | None:
        """Return the earlier outcome if spec and input files are unchanged, else None.

        Only the spec of `lineage` counts. Where nothing was looked at, or files were copied, it takes reading them to
        know (`remake`).
        """
        success, there = self.success(), self.lineage()
        if success is None or there is None or there.fingerprint != lineage.fingerprint or not self.intact:
            return None
        return Outcome(success.report, self.path, "kept") if seen and success.seen == dict(seen) else None

    def rebuild(
        self, lineage: Lineage, fill: Callable[[Path], Report], *, seen: Mapping[str, str] | None = None
    ) -> Report:
        """Make the whole folder at once: filled beside by `fill`, which gets its path, then put into its place.

        Raises:
            InputError: what is there may not be replaced.
        """
        self._refuse_to_replace(lineage)
        began = time.monotonic()
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._clean_up()
            building = self._built(lineage)
            try:
                report = fill(building.path)
                report = report if report.seconds else report.timed(time.monotonic() - began)
                building.finish(report, seen)
                self._put(building)
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
        """`rebuild`, unless the folder is that already; with `replace` in any case, also where it is damaged.

        With the same spec and other inputs it is derived again: what was there is out of date.

        Raises:
            SpecConflict, InputError: as `check`.
        """
        state = self.check(lineage, replace=replace)
        success = None if replace else self.success()
        if success is not None and self.intact and self.lineage() == lineage:
            return Outcome(success.report, self.path, "kept")
        report = self.rebuild(lineage, fill, seen=seen)
        return Outcome(report, self.path, "made" if state == "absent" else "replaced" if replace else "remade")

    def remove(self) -> None:
        """Remove what prefdata wrote here, and the folder unless something else is in it."""
        old = temporary_name(self.path, "old")
        with storage_errors(self.path):
            self.path.rename(old)
            self._dispose(old)

    def changed(self) -> list[str]:
        """List the files that `_SUCCESS` lists and that hold something else now; not those that are gone."""
        return checksums.changed(self.path, self._files())

    def missing(self) -> list[str]:
        """List the files that `_SUCCESS` lists and that are gone."""
        return checksums.missing(self.path, self._files())

    def problems(self) -> Iterator[str]:
        """Everything that is not as prefdata wrote it, a line each; all files are read."""
        yield from self._json_problems()
        yield from (f"{self.path / name} is missing." for name in self.missing())
        yield from (f"{self.path / name} is damaged, or was changed after it was written." for name in self.changed())

    def _json_problems(self) -> Iterator[str]:
        for name, kind in ((SPEC_FILE, Lineage), (SUCCESS_FILE, Success)):
            try:
                found = read_json(self.path / name, kind)
            except InputError as error:
                yield str(error)
            else:
                if found is None and name == SPEC_FILE:
                    yield f"{self.path / name} is missing."
                if isinstance(found, Success) and found.files is None:
                    yield f"{self.path} was made by prefdata 0.1, without checksums: what is damaged cannot be found."

    def _refuse_to_replace(self, lineage: Lineage) -> None:
        refuse_place(self.path)
        if (step := self._made_by()) is None:
            self._refuse_foreign()
        elif not self._is_like(step, lineage.step):
            raise InputError(
                f"{self.path} holds what `prefdata {step}` made, and `prefdata {lineage.step}` does not replace that. "
                "Choose another folder."
            )
        if changed := self.changed():
            raise InputError(
                f"{self.path / changed[0]} was changed since prefdata wrote it, and making {self.path} again would "
                "lose that. Rename the file to keep it, or delete it, and run the same command again."
            )

    def _refuse_foreign(self) -> None:
        if foreign := list(checksums.foreign(self.path, self._files(), self._is_own)):
            some = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
            raise InputError(
                f"{self.path} holds files that prefdata did not write ({some}), and --replace does not remove those. "
                "Choose another folder or name."
            )

    def _refuse_mixed(self, there: Lineage, lineage: Lineage) -> None:
        """Refuse to continue in another precision what was begun in one: its numbers would be of two kinds."""
        old, new = (one.computed.get("dtype") for one in (there, lineage))
        if old and new and old != new:
            raise SpecConflict(
                f"{self.path} was begun in {old} on {there.computed.get('device')}, and this is {new}. "
                f"Continue it with --dtype auto, which keeps to {old}; or give the new one another name, or --replace "
                "the old one."
            )

    def _made_by(self) -> str | None:
        """Return the step that made the folder, if prefdata did; either of its two files names it.

        Raises:
            InputError: both are damaged, or one is and the other is not there.
        """
        try:
            there = self.lineage()
        except InputError as error:
            success = self._success_if_whole()
            if success is None:
                raise InputError(f"{error} Nothing else shows what made {self.path}: remove it yourself.") from None
            return success.report.step
        return there.step if there else None

    def _is_like(self, step: str, other: str) -> bool:
        """Whether what one step made may be replaced by what another makes: a model by a model."""
        return step.split()[0] == other.split()[0]

    def _success_if_whole(self) -> Success | None:
        with suppress(InputError):
            return self.success()
        return None

    def _files(self) -> dict[str, FileRecord]:
        success = self._success_if_whole()
        return (success.files if success else None) or {}

    def _is_own(self, name: str) -> bool:
        return name in (SPEC_FILE, SUCCESS_FILE, *self.working) or is_temporary(name)

    def _record(self) -> dict[str, FileRecord]:
        return checksums.record(self.path)

    def _at(self, path: Path) -> Self:
        """Return the same folder at another path: while it is built, or after it was replaced."""
        other = copy.copy(self)
        other.path = path
        return other

    def _built(self, lineage: Lineage) -> Self:
        """Begin an empty folder beside this one, and return it."""
        building = self._at(temporary_name(self.path, "new"))
        building.path.mkdir()
        write_json(building.path / SPEC_FILE, lineage)
        return building

    def _put(self, new: Artifact) -> None:
        """Put what was built beside into its place; what prefdata did not write there stays there."""
        if old := swap(new.path, self.path):
            self._dispose(old, keep=True)

    def _dispose(self, old: Path, *, keep: bool = False) -> None:
        """Remove what was here and is now at `old`; with `keep` what prefdata did not write comes back."""
        files = self._at(old)._files()
        if keep:
            checksums.move_foreign(old, self.path, files, self._is_own)
        checksums.remove_own(old, files, self._is_own)
        if old.exists():
            log.warning("what prefdata did not write in %s, or was changed there since, is now in %s", self.path, old)

    def _clean_up(self) -> None:
        """Remove what dead processes left, here and beside; put back what one had in its hands."""
        settle(self.path)
        for left in temporaries(self.path, "new", "old"):
            if is_abandoned(left) and left.name.startswith("_new-"):
                shutil.rmtree(left, ignore_errors=True)
            elif is_abandoned(left):
                self._dispose(left, keep=True)
        self._sweep()

    def _sweep(self) -> None:
        """Remove what dead processes were writing in this folder."""
        for file in self.path.glob("_tmp-*"):
            if is_abandoned(file):
                file.unlink(missing_ok=True)


def in_the_same_precision(spec: S, folders: Iterable[Artifact]) -> S:
    """Return the spec with the `dtype` in which the first of these folders was begun, where its own is `auto`."""
    if getattr(spec, "dtype", None) != "auto":
        return spec
    begun = (lineage.computed.get("dtype") for folder in folders if (lineage := folder.lineage()) is not None)
    return spec.model_copy(update={"dtype": next(filter(None, begun), "auto")})


def _why_other(there: Lineage, lineage: Lineage) -> str:
    if there.step == lineage.step and there.format != lineage.format:
        return (
            f"was made by another version of prefdata (identity format {there.format}, here {lineage.format}), whose "
            "ids, seeds and scores differ: it can be read as it is, and not continued. Give the new one another name "
            "(--name, for train --out), or --replace the old one."
        )
    if there.step != lineage.step:
        return (
            f"was made by `prefdata {there.step}`, and this is `prefdata {lineage.step}`. Give the new one another "
            "name, or --replace the old one."
        )
    changed = describe_changes(there.spec, lineage.spec)
    return f"was made with other settings ({changed}). Give the new one another name, or --replace the old one."
