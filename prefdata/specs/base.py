"""Specs: the settings of a step, defined once.

A spec is a frozen, strict pydantic model. The same class gives the command's flags and their help, the keys of the YAML
file, the keyword arguments in Python, and the JSON in every footer. Fields come in two kinds: those that decide the
result (the spec's identity: they enter the fingerprint), and those that only set how it is computed or how much (batch
sizes, devices, the number of candidates), declared with `runtime_field`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from prefdata.errors import UsageError
from prefdata.ids import digest
from prefdata.specs.other_names import hint


class Group(StrEnum):
    """Titles under which help lists the options of a command, in this order."""

    SETTINGS = "Settings"
    SCORER = "Scorer (name exactly one)"
    CLASSIFIER = "Reward models (--reward-model, and --pairwise with a classifier)"
    LANGUAGE_MODEL = "Language models and judges (--judge, --pointwise, --pairwise)"
    COMPARISONS = "Comparisons (--pairwise, and --judge with a pairwise rubric)"
    LIKELIHOOD = "Likelihood and similarity (--implicit, --similarity states)"
    VERIFIER = "Verifiers (--verifier)"
    AGGREGATE = "Scores from comparisons (--comparisons)"
    COMBINE = "Combined scores (--combine)"
    CALIBRATE = "Corrected scores (--calibrate)"
    INPUT = "Input"
    MODEL = "Model"
    SAMPLING = "Sampling"
    PROMPTS = "Prompts"
    METHOD = "Method"
    POOL = "Rounds and samplers"
    DIVERSITY = "Diversity"
    FILTERS = "Filters"
    LABELS = "Labels and weights"
    LIMITS = "Limits"
    LOSS = "Loss"
    ADAPTER = "Adapter (LoRA)"
    OPTIMISER = "Optimiser"
    LENGTH = "Length"
    CHAT = "Chat template"
    ENGINE = "Engine"
    TRANSFORMERS = "Engine: transformers"
    VLLM = "Engine: vllm"
    OPENAI = "Engine: openai (any OpenAI-compatible server)"
    HARDWARE = "Hardware"
    CHECKPOINTS = "Checkpoints and logs"
    OUTPUT = "Output"
    GENERAL = "General"


def identity_field(default: Any = ..., description: str = "", *, group: Group = Group.SETTINGS, **bounds: Any) -> Any:
    """Declare a field that decides the result; it enters the fingerprint. `group` is its title in help."""
    return Field(default, description=description, json_schema_extra={"group": group}, **bounds)


def runtime_field(default: Any = ..., description: str = "", *, group: Group = Group.SETTINGS, **bounds: Any) -> Any:
    """Declare a field that sets how, or how much, but never which result; it is not in the fingerprint.

    With `repr=False` its value may hold a secret, and no message shows it.
    """
    return Field(default, description=description, json_schema_extra={"group": group, "how": True}, **bounds)


def flag_of(name: str) -> str:
    """Return the option of a field: `--batch-tokens`, or `-k` for a name of one letter."""
    return f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"


def group_of(field: FieldInfo) -> Group:
    """Return the title under which help lists a field."""
    extra = field.json_schema_extra
    return Group(str(extra["group"])) if isinstance(extra, dict) and "group" in extra else Group.SETTINGS


def _no_empty_condition(text: str | None) -> str | None:
    if text is not None and not text.strip():
        raise ValueError("the condition is empty: give one, or leave it out")
    return text


Condition = Annotated[str | None, AfterValidator(_no_empty_condition)]
"""An SQL condition that is not empty, or none."""


class Spec(BaseModel):
    """The base of all specs.

    `step` names the command that the spec belongs to, as typed (`"sample"`, `"train dpo"`); `may_be_empty` the
    texts that may be empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, ser_json_inf_nan="constants")
    step: ClassVar[str]
    may_be_empty: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, data: Any) -> Any:
        # YAML and JSON have lists only; frozen specs hold tuples.
        if isinstance(data, Mapping):
            return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        return data

    @field_validator("*")
    @classmethod
    def _no_empty_texts(cls, value: Any, info: ValidationInfo) -> Any:
        # Taken for "not given", it would hide an unset shell variable.
        empty = value == "" or (isinstance(value, tuple) and "" in value)
        if empty and info.field_name not in cls.may_be_empty:
            raise ValueError("should not be an empty text: give one, or leave it out")
        return value

    @classmethod
    def settings(cls) -> dict[str, FieldInfo]:
        """All settings that a command with this spec has, by field name."""
        return dict(cls.model_fields)

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str | None = None, flags: bool = False) -> Self:
        """Build the spec from plain values; `where` names their source in the message, which names `flags` or keys.

        Raises:
            UsageError: an unknown key (with the nearest known one) or a value that does not fit, all of them at once.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise UsageError(f"{where or cls.step}: {cls._problems(error, flags)}") from None

    @classmethod
    def _problems(cls, error: ValidationError, flags: bool) -> str:
        return "; ".join(cls._problem(one, flags) for one in error.errors())

    @classmethod
    def _problem(cls, error: Mapping[str, Any], flags: bool) -> str:
        name = ".".join(str(part) for part in error["loc"])
        if flags and name:
            name = flag_of(name)
        if error["type"] == "extra_forbidden":
            return f'unknown key "{name}".{hint(name, cls.settings())}'
        if error["type"] == "missing":
            return f"{name} is needed"
        message = str(error["msg"]).removeprefix("Value error, ")
        if error["type"] == "value_error":
            return f"{name}: {message}" if name else message
        if error["type"] == "tuple_type":
            message = "should be a list, [a, b, …]"
        field = cls.model_fields.get(str(error["loc"][0])) if error["loc"] else None
        if field is not None and not field.repr:  # it may hold a secret
            return f"{name}: {message.replace('Input should be ', 'should be ', 1)}"
        given = list(error["input"]) if isinstance(error["input"], tuple) else error["input"]  # as YAML has it
        return f"{name}: {message.replace('Input should be ', 'should be ', 1)}, not {given!r}"

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide the result, as JSON values."""
        fields = type(self).model_fields
        values = self.model_dump(mode="json")
        return {name: _plain(value) for name, value in values.items() if not _is_how(fields[name])}

    def require_default_unless(self, decider: str, **goes_with: tuple[str, ...]) -> None:
        """Check that settings which only some values of the field `decider` use are at their defaults elsewhere.

        Raises:
            ValueError: one is given where it would change nothing.
        """
        chosen, fields = getattr(self, decider), type(self).model_fields
        for name, values in goes_with.items():
            if chosen not in values and getattr(self, name) != fields[name].default:
                flag = flag_of(fields[decider].alias or decider)
                raise ValueError(changes_nothing(name, [f"{flag} {value}" for value in values]))

    @classmethod
    def from_identity(cls, identity: Mapping[str, Any]) -> Self:
        """Rebuild the spec from a lineage; what was known only at run time is left out."""
        fields = cls.model_fields
        known = {name: value for name, value in identity.items() if name in fields}
        infinite = {name: float(value) for name, value in known.items() if value in ("inf", "-inf")}
        try:
            return cls.model_validate({**known, **infinite}, by_name=True, by_alias=False)
        except ValidationError as error:
            problems = cls._problems(error, flags=False)
            raise UsageError(
                f"it was made with settings that this prefdata refuses ({problems}). Make it again with --replace."
            ) from None

    def fingerprint(self) -> str:
        """Return the id of the spec's identity: equal fingerprints, equal results from equal inputs."""
        return digest({"step": self.step, **self.non_default_identity(self.identity())})

    @classmethod
    def non_default_identity(cls, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Return an identity without the settings that are at their defaults: the basis of fingerprints and seeds.

        A setting that a later version adds, off by default, thus changes no fingerprint and no candidate; in return a
        default that decides a result never changes.
        """
        defaults = {name: _plain(field.get_default()) for name, field in cls.model_fields.items()}
        defaults = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
        return {name: value for name, value in identity.items() if name not in defaults or value != defaults[name]}


def changes_nothing(name: str, goes_with: Sequence[str]) -> str:
    """Return the message for a setting that has no effect here; `goes_with` are the flags that it belongs to."""
    return f"{flag_of(name)} goes with {' or '.join(goes_with)}, and changes nothing here: leave it out"


def _plain(value: Any) -> Any:
    # JSON has no infinity; an infinite beta is a setting like any other.
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _is_how(field: Any) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("how"))


def describe_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Describe what changed between two specs' identities, one `key: old -> new` after another."""
    keys = [*old, *(key for key in new if key not in old)]
    changed = [key for key in keys if old.get(key) != new.get(key)]
    return ", ".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in changed)
