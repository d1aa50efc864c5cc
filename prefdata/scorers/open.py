"""The registry of scorers: a kind is one entry of `SCORERS`. Importing this imports no torch.

An entry defines the settings of the kind, how it is opened, what identifies it apart from its settings, and whether it
makes scores or comparisons. Everything else (flags, help, messages, steps) follows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from prefdata.chat.clock import dated
from prefdata.chat.template import template_identity
from prefdata.ids import FORMAT
from prefdata.scorers import kinds
from prefdata.scorers.kinds import Makes, Models
from prefdata.specs import EngineSpec, RankSpec
from prefdata.specs import rank as specs
from prefdata.specs.chat import ChatSpec

if TYPE_CHECKING:
    from prefdata.scorers.protocol import Comparer, Deriver, Scorer

S = TypeVar("S", bound=RankSpec)


@dataclass(frozen=True)
class Kind(Generic[S]):
    """One kind of scorer.

    Attributes:
        spec: its settings.
        open: loads it.
        models: its models, by the setting that names each; without weights (False) their revisions
            are those of their configs, and a server's model has none.
        files: what else decides its numbers, apart from its settings: the ids of a function, a rubric, a text format.
        makes: scores or comparisons.
        outputs: the names of its outputs, known before it is loaded; `("",)` where it has one.
    """

    spec: type[S]
    open: Callable[[S], Scorer | Comparer | Deriver]
    models: Callable[[S, bool], Models] = lambda _, weights: {}
    files: Callable[[S], Mapping[str, Any]] = lambda _: {}
    makes: Callable[[S], Makes] = lambda _: "scores"
    outputs: Callable[[S], tuple[str, ...]] = lambda _: ("",)


def open_scorer(spec: RankSpec) -> Scorer:
    """Load the scorer that a spec names.

    Raises:
        ModelError: the model cannot be used.
        InputError: the function, the verifier's file or the format cannot be found or loaded.
        UsageError: settings that do not go together.
    """
    return cast("Scorer", _kind(spec).open(spec))


def open_comparer(spec: RankSpec) -> Comparer:
    """Load the pairwise judge that a spec names; raises as `open_scorer`."""
    return cast("Comparer", _kind(spec).open(spec))


def open_deriver(spec: RankSpec) -> Deriver:
    """Return what makes scores from scores or comparisons; raises as `open_scorer`."""
    return cast("Deriver", _kind(spec).open(spec))


def is_pairwise(spec: RankSpec) -> bool:
    """Whether a spec makes comparisons of two responses, not scores.

    Raises:
        UsageError, InputError: its rubric cannot be used.
    """
    return _kind(spec).makes(spec) == "comparisons"


def scorer_outputs(spec: RankSpec) -> tuple[str, ...]:
    """Return the names of a scorer's outputs, known before it is loaded; `("",)` where it has one."""
    return _kind(spec).outputs(spec)


def scorer_identity(spec: RankSpec) -> dict[str, Any]:
    """Return what a scorer is, apart from its settings: ids of models and of files' contents, in place of their paths.

    Raises:
        ModelError: there is no such model, or it is of another kind.
        InputError: there is no such file.
    """
    kind = _kind(spec)
    found: dict[str, Any] = {"format": FORMAT, **kind.files(spec)}
    for name, files in kind.models(spec, True).items():
        tokenizer = "reference_tokenizer" if name == "reference" else "tokenizer"
        found[name] = files.revision or files.name
        found |= {tokenizer: files.text_revision} if files.path or files.revision else {}
    return found | (template_identity(spec) if isinstance(spec, ChatSpec) else {})


def scorer_models(spec: RankSpec) -> Models:
    """Return the models that a scorer is made of, by the setting that names each; raises as `scorer_identity`."""
    return _kind(spec).models(spec, False)


def dated_scorer(spec: S, began: str | None = None) -> S:
    """Return the spec with the date that its models' chat templates read, if one of them reads the clock.

    `began` is the date of the scores or comparisons that are continued.

    Raises:
        ModelError: there is no such model, or it is of another kind.
        UsageError: a date is given, and no template has a use for it.
    """
    if not isinstance(spec, ChatSpec):
        return spec
    return dated(spec, _kind(spec).models(spec, False).values() if _renders(spec) else [], began)


def _renders(spec: ChatSpec) -> bool:
    """Whether what the models read is rendered here, by a chat template."""
    if isinstance(spec, specs.ClassifierSpec) and spec.text_format is not None:
        return False
    server = isinstance(spec, EngineSpec) and spec.engine == "openai" and spec.tokenizer is None
    return not server and not (isinstance(spec, EngineSpec) and spec.raw)


def _kind(spec: RankSpec) -> Kind[Any]:
    return SCORERS[spec.kind]


SCORERS: dict[str, Kind[Any]] = {
    kind.spec.kind: kind
    for kind in (
        Kind(
            specs.RewardModelSpec,
            kinds.open_reward_model,
            kinds.find_reward_model,
            kinds.text_format_id,
            outputs=kinds.reward_model_outputs,
        ),
        Kind(specs.FunctionSpec, kinds.open_function, files=kinds.function_reads),
        Kind(specs.PointwiseSpec, kinds.open_pointwise, kinds.find_language_models("pointwise"), kinds.pointwise_reads),
        Kind(
            specs.PairwiseSpec,
            kinds.open_pairwise,
            kinds.find_pairwise,
            kinds.pairwise_reads,
            makes=lambda _: "comparisons",
        ),
        Kind(specs.JudgeSpec, kinds.open_judge, kinds.find_judge, kinds.judge_reads, makes=kinds.judge_makes),
        Kind(specs.ImplicitSpec, kinds.open_implicit, kinds.find_language_models("implicit", "reference")),
        Kind(specs.MeanLogprobSpec, kinds.open_mean_logprob, kinds.find_language_models("mean_logprob")),
        Kind(specs.SimilaritySpec, kinds.open_similarity, kinds.find_language_models("reference")),
        Kind(specs.VerifierSpec, kinds.open_verifier, files=kinds.verifier_reads),
        Kind(specs.AggregateSpec, kinds.open_aggregate),
        Kind(specs.CombineSpec, kinds.open_combine),
        Kind(specs.CalibrateSpec, kinds.open_calibrate),
    )
}
"""Every kind of scorer, by the field of its spec that names the scorer."""
