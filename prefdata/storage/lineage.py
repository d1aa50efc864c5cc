"""What a folder says of itself: `_spec.json` is there before anything else, `_SUCCESS` after everything else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from prefdata.errors import InputError
from prefdata.ids import canonical_json, digest
from prefdata.specs import Spec
from prefdata.storage.atomic import atomic_write
from prefdata.storage.report import Report

SPEC_FILE = "_spec.json"
SUCCESS_FILE = "_SUCCESS"

Model = TypeVar("Model", bound=BaseModel)


class Lineage(BaseModel):
    """Where rows came from: what every footer and `_spec.json` say.

    `spec` is the spec's identity, `parents` maps what was read (`candidates/policy`, or a file) to its content's id.
    `computed` is in and on what a model computed: `dtype` (float32, bfloat16, …) and `device`; empty where none did.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    spec: dict[str, Any]
    fingerprint: str
    parents: dict[str, str] = {}
    versions: dict[str, str] = Field(default_factory=lambda: {"prefdata": version("prefdata")})
    computed: dict[str, str] = {}

    @classmethod
    def of(
        cls,
        spec: Spec,
        parents: dict[str, str] | None = None,
        *,
        resolved: dict[str, Any] | None = None,
        **versions: str,
    ) -> Lineage:
        """Return the lineage of what `spec` makes from `parents`; `versions` are those of the libraries that matter.

        `resolved` replaces or adds to the spec's identity what was only known at run time: a model's weights for its
        path, the engine that `auto` meant.
        """
        identity = {**spec.identity(), **(resolved or {})}
        return cls(
            step=spec.step,
            spec=identity,
            fingerprint=digest({"step": spec.step, **spec.non_default_identity(identity)}),
            parents=parents or {},
            versions={"prefdata": version("prefdata"), **versions},
        )

    def computing(self, computed: Mapping[str, str]) -> Lineage:
        """Return the same lineage with how its rows are computed."""
        return self.model_copy(update={"computed": dict(computed)})

    @property
    def format(self) -> int:
        """The version of what a model's identity was made of (`ids.FORMAT`)."""
        return int(self.spec.get("format", 1))

    def versions_text(self) -> str:
        """Return the libraries' versions on one line."""
        return ", ".join(f"{name} {version}" for name, version in self.versions.items())

    @property
    def content(self) -> str:
        """The id of what this lineage makes: the steps are deterministic, so spec and inputs name the result."""
        return digest({"fingerprint": self.fingerprint, "parents": self.parents})


class FileRecord(BaseModel):
    """What `_SUCCESS` records of a file: its checksum (`disk.checksum`), its size in bytes, and a part's rows."""

    model_config = ConfigDict(frozen=True)

    xxh3: str
    bytes: int
    rows: int | None = None


class Success(BaseModel):
    """What `_SUCCESS` says: the step's Report, the content's id, when it was finished, and every file that it is of.

    `files` are named relative to the folder; None is what prefdata 0.1 wrote, without checksums. `seen` has the
    `Partition.stat_fingerprint` of each input, by name, where the step has looked: an input with an equal one has not
    changed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    report: Report
    content: str
    finished: str
    files: dict[str, FileRecord] | None = None
    seen: dict[str, str] = {}


@dataclass(frozen=True)
class Outcome:
    """What a command did: the Report, the result's folder, and what was done.

    made: from nothing; continued: what was missing was added; remade: derived again, because its inputs or its files
    changed; replaced: made again because that was asked for; kept: it was there already and nothing was done.
    """

    report: Report
    path: Path
    did: Literal["made", "continued", "remade", "replaced", "kept"]


def write_json(path: Path, model: BaseModel) -> None:
    """Write one of these files atomically, with a checksum of its own in it."""
    values = json.loads(model.model_dump_json())
    text = json.dumps({**values, "checksum": _checksum(values)}, indent=2, ensure_ascii=False)
    atomic_write(path, lambda file: file.write(text.encode()))


def _checksum(values: dict[str, Any]) -> str:
    import xxhash

    return xxhash.xxh3_64_hexdigest(canonical_json(values))


def read_json(path: Path, kind: type[Model]) -> Model | None:
    """Read one of these files; None where it is not there.

    Raises:
        InputError: it is damaged, or of another version of prefdata.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        checksum = values.pop("checksum", None)
        before = checksum is None and "files" not in values  # prefdata 0.1 wrote neither
        if not before and checksum != _checksum(values):
            raise ValueError("its checksum is of something else")
        return kind.model_validate(values)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        why = " ".join(str(error).split())
        todo = "Remove it and run" if path.name == SUCCESS_FILE else "Run"
        with_replace = "" if path.name == SUCCESS_FILE else ", with --replace"
        raise InputError(
            f"{path} is damaged, or of another version of prefdata ({why}). "
            f"{todo} the command again that made its folder{with_replace}."
        ) from None
