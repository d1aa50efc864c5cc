"""The specs of rank: one for each kind of scorer, chosen by the flag that names the scorer.

`prefdata.scorers.open.SCORERS` says what each kind does. A setting is a field of the kinds that use it; help lists the
settings of all kinds by group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator
from pydantic.fields import FieldInfo

from prefdata.errors import UsageError
from prefdata.specs.base import Group, Spec, changes_nothing, flag_of, identity_field, runtime_field
from prefdata.specs.sample import EngineSpec, HardwareSpec, VllmSpec

KINDS: dict[str, type[RankSpec]] = {}
"""Every kind of scorer by the field that names it; filled by the classes below."""

_REFERENCE = identity_field(
    None,
    "implicit: the reference policy. similarity states: the model whose hidden states are compared.",
    group=Group.LIKELIHOOD,
)
_SEED = identity_field(
    0,
    "Seed of the schedule and of random orders, of a judge's retries, and of the bootstrap of --comparisons.",
    ge=0,
    group=Group.COMPARISONS,
)


class RankSpec(Spec):
    """`prefdata rank`: candidates in, scores (or comparisons) out.

    `RankSpec(reward_model="…")` is a `RewardModelSpec`, `RankSpec(function="…")` a `FunctionSpec`, and so on.
    """

    step: ClassVar[str] = "rank"
    kind: ClassVar[str]
    """The field that names the scorer."""

    name: str | None = runtime_field(
        None, "Name of this scorer or judge (default: the model folder's or function's).", group=Group.OUTPUT
    )

    def __new__(cls, **values: Any) -> Self:
        """Create an instance of the kind that `values` name.

        Raises:
            UsageError: they name no kind, or several.
        """
        return super().__new__(cls._of(values) if cls is RankSpec else cls)  # type: ignore[return-value]

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if "kind" in vars(cls):
            KINDS[cls.kind] = cls

    @classmethod
    def settings(cls) -> dict[str, FieldInfo]:
        """All settings of this kind; of `RankSpec` itself those of every kind."""
        if cls is not RankSpec:
            return super().settings()
        scorers = {name: kind.model_fields[name] for name, kind in KINDS.items()}
        return {**scorers, **{name: field for kind in KINDS.values() for name, field in kind.model_fields.items()}}

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str | None = None, flags: bool = False) -> Self:
        """Read the spec of the kind that `values` name, as `Spec.parse`.

        Raises:
            UsageError: they name no kind or several, or a setting does not fit.
        """
        if cls is not RankSpec:
            return super().parse(values, where=where, flags=flags)
        try:
            kind = cls._of(values)
        except UsageError as error:
            raise UsageError(f"{where or cls.step}: {error}") from None
        return kind.parse(values, where=where, flags=flags)  # type: ignore[return-value]

    @classmethod
    def _of(cls, values: Mapping[str, Any]) -> type[RankSpec]:
        """Return the kind that `values` name; None and an empty list name nothing."""
        named = [name for name in KINDS if _is_given(values.get(name))]
        if len(named) != 1:
            given = " and ".join(map(flag_of, named)) or "none"
            raise UsageError(f"name one scorer (--reward-model M, --function FILE.py:NAME, --judge M, …), not {given}")
        return KINDS[named[0]]

    @model_validator(mode="before")
    @classmethod
    def _has_these_settings(cls, data: Any) -> Any:
        """Drop settings of other kinds that are not given, and refuse those that are."""
        if not isinstance(data, Mapping):
            return data
        foreign = [name for name in data if name not in cls.model_fields and name in RankSpec.settings()]
        for name in foreign:
            if _is_given(data[name]):
                kinds = [flag_of(kind) for kind, spec in KINDS.items() if name in spec.model_fields]
                raise ValueError(changes_nothing(name, kinds))
        return {name: value for name, value in data.items() if name not in foreign}


def _is_given(value: Any) -> bool:
    return value is not None and value != () and value != []


class CandidatesSpec(RankSpec):
    """A scorer that reads candidates, not scores."""

    sampler: tuple[str, ...] = runtime_field((), "Only candidates of these samplers (default: all).", group=Group.INPUT)


class ClassifierSpec(VllmSpec):
    """A sequence-classification model: which label is read, of which text."""

    label: str | None = identity_field(
        None,
        "reward model: which label, by name or number; all makes a scorer of each. "
        "pairwise: which of two labels means that the first response is better (default: the first).",
        group=Group.CLASSIFIER,
    )
    text_format: str | None = identity_field(
        None,
        "A file with the text to score. reward model: {prompt} and {response} in it. "
        "pairwise: {prompt}, {first} and {second}.",
        group=Group.CLASSIFIER,
    )

    @model_validator(mode="after")
    def _needs_logits(self) -> Self:
        if self.engine == "openai":
            raise ValueError("--engine openai goes with --judge: a server returns text, not logits")
        if self.template_choice and self.text_format is not None:
            raise ValueError("--text-format uses no chat template: leave out --chat-template and --chat-template-arg")
        return self


class RubricSpec(Spec):
    """A question to a language model, or instructions for a judge."""

    rubric: str | None = identity_field(
        None, "A YAML file, or the name of a built-in one (templates/rubrics).", group=Group.LANGUAGE_MODEL
    )


class CompareSpec(CandidatesSpec):
    """A scorer that compares two responses: the schedule, and the order."""

    schedule: Literal["all", "first-round", "tournament"] = identity_field(
        "first-round",
        "Which responses are compared: all pairs, n/2 disjoint random pairs, or n-1 by knock-out.",
        group=Group.COMPARISONS,
    )
    order: Literal["both", "flip"] = identity_field(
        "both", "Compare in both orders, or in one at random (RSO).", group=Group.COMPARISONS
    )
    seed: int = _SEED


class RewardModelSpec(ClassifierSpec, CandidatesSpec):
    """A reward model: the logit of a sequence-classification model."""

    kind = "reward_model"

    reward_model: str = identity_field(..., "A sequence-classification model: folder or hub name.", group=Group.SCORER)
    activation: Literal["logit", "probability"] = identity_field(
        "logit", "reward model: the raw logit, or the probability.", group=Group.CLASSIFIER
    )


class FunctionSpec(CandidatesSpec):
    """A Python function of the user."""

    kind = "function"

    function: str = identity_field(
        ..., "FILE.py:NAME of a function (prompt messages, response) -> number or None.", group=Group.SCORER
    )


class PointwiseSpec(RubricSpec, HardwareSpec, CandidatesSpec):
    """The probability by which a language model finds a response good (SLiC-HF)."""

    kind = "pointwise"

    pointwise: str = identity_field(
        ..., "A language model asked whether a response is good: the score is P(good).", group=Group.SCORER
    )


class PairwiseSpec(RubricSpec, ClassifierSpec, CompareSpec):
    """The probability by which a model prefers one response to another."""

    kind = "pairwise"

    pairwise: str = identity_field(
        ...,
        "A language model asked which of two responses is better, or a classifier that reads both: comparisons.",
        group=Group.SCORER,
    )


class JudgeSpec(RubricSpec, EngineSpec, CompareSpec):
    """An LLM judge: by its rubric it rates responses or compares two."""

    kind = "judge"

    judge: str = identity_field(
        ..., "LLM-as-a-judge: a language model that judges by a --rubric: scores or comparisons.", group=Group.SCORER
    )
    judge_tokens: int = identity_field(512, "judge: maximum tokens of a judgment.", ge=1, group=Group.LANGUAGE_MODEL)
    judge_tries: int = identity_field(
        3, "judge: retries of a reply that cannot be read.", ge=1, group=Group.LANGUAGE_MODEL
    )


class ImplicitSpec(HardwareSpec, CandidatesSpec):
    """DPO's implicit reward: beta (ln p - ln p_ref)."""

    kind = "implicit"

    implicit: str = identity_field(
        ..., "A policy whose implicit reward against --reference, beta ln p/p_ref, is the score.", group=Group.SCORER
    )
    reference: str | None = _REFERENCE
    beta: float = identity_field(0.1, "implicit: the factor of the log-ratio.", gt=0, group=Group.LIKELIHOOD)

    @model_validator(mode="after")
    def _has_a_reference(self) -> Self:
        if self.reference is None:
            raise ValueError("--implicit needs a --reference model to compare with")
        return self


class MeanLogprobSpec(HardwareSpec, CandidatesSpec):
    """The mean log-probability of a response's tokens (RRHF)."""

    kind = "mean_logprob"

    mean_logprob: str = identity_field(
        ..., "A model under which the mean ln p of the response's tokens is the score.", group=Group.SCORER
    )


class SimilaritySpec(HardwareSpec, CandidatesSpec):
    """The similarity of a response to the prompt's reference response."""

    kind = "similarity"

    similarity: Literal["exact", "rouge-l", "states"] = identity_field(
        ...,
        "Similarity to the prompt's reference response; states compares hidden states of --reference.",
        group=Group.SCORER,
    )
    reference: str | None = _REFERENCE

    @model_validator(mode="after")
    def _has_a_reference(self) -> Self:
        model = ("reference", *HardwareSpec.model_fields)
        self.require_default_unless("similarity", **dict.fromkeys(model, ("states",)))
        if self.similarity == "states" and self.reference is None:
            raise ValueError("--similarity states needs a --reference model to compare with")
        return self


class VerifierSpec(CandidatesSpec):
    """Whether a response is right, 1 or 0, by a rule."""

    kind = "verifier"

    verifier: str = identity_field(
        ...,
        "number, choice, regex:PATTERN, json-schema:FILE or FILE.py:NAME: whether the response is right, 1 or 0.",
        group=Group.SCORER,
    )
    time_limit: float = identity_field(
        5.0, "regex, json-schema and FILE.py:NAME: seconds that one response may take.", gt=0, group=Group.VERIFIER
    )
    workers: int = runtime_field(2, "regex, json-schema and FILE.py:NAME: processes.", ge=1, group=Group.VERIFIER)

    @model_validator(mode="after")
    def _limits_what_may_hang(self) -> Self:
        if not (
            self.verifier.startswith(("regex:", "json-schema:")) or self.verifier.rpartition(":")[0].endswith(".py")
        ):
            for name in ("time_limit", "workers"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        changes_nothing(name, ["--verifier regex:PATTERN", "json-schema:FILE", "FILE.py:NAME"])
                    )
        return self


class AggregateSpec(RankSpec):
    """Scores from comparisons."""

    kind = "comparisons"

    comparisons: tuple[str, ...] = identity_field(
        ..., "Judges whose comparisons become scores, by --aggregate.", min_length=1, group=Group.SCORER
    )
    aggregate: Literal["bradley-terry", "elo", "borda", "copeland"] = identity_field(
        "bradley-terry", "How comparisons become scores.", group=Group.AGGREGATE
    )
    prior: float = identity_field(
        0.5,
        "bradley-terry: wins and losses against an average response that each starts with.",
        ge=0,
        group=Group.AGGREGATE,
    )
    seed: int = _SEED

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        self.require_default_unless("aggregate", prior=("bradley-terry",), seed=("bradley-terry", "elo"))
        return self


class CombineSpec(RankSpec):
    """A combination of several scorers."""

    kind = "combine"

    combine: str = identity_field(
        ..., 'A combination of other scorers, such as "0.7*helpful + 0.3*safe" or "min(a, b)".', group=Group.SCORER
    )
    normalize: Literal["none", "z", "z-prompt", "rank", "quantile"] = identity_field(
        "none", "How each scorer's scores are normalised first.", group=Group.COMBINE
    )


class CalibrateSpec(RankSpec):
    """A scorer's scores, corrected for length or by a temperature."""

    kind = "calibrate"

    calibrate: str = identity_field(
        ...,
        "A scorer whose scores are corrected for --length, or by the --labelled pairs.",
        group=Group.SCORER,
    )
    length: Literal["none", "penalty", "rc-mean", "rc-lwr"] = identity_field(
        "none", "How the effect of length is removed.", group=Group.CALIBRATE
    )
    length_weight: float = identity_field(
        0.001, "penalty: what is subtracted for each character.", ge=0, group=Group.CALIBRATE
    )
    labelled: str | None = identity_field(
        None, "Pairs of the run whose labels are correct; the temperature is fitted on them.", group=Group.CALIBRATE
    )

    @model_validator(mode="after")
    def _corrects(self) -> Self:
        self.require_default_unless("length", length_weight=("penalty",))
        if self.length == "none" and self.labelled is None:
            raise ValueError("--calibrate corrects for --length or by --labelled pairs: give one of them")
        return self
