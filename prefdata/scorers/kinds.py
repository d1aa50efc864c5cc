"""How each kind of scorer is opened, and what identifies it. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefdata.errors import UsageError
from prefdata.models.files import ModelFiles, identify, label_names
from prefdata.models.identity import adapter_id
from prefdata.scorers.rules.function import file_identity, function_identity
from prefdata.specs import EngineSpec, HardwareSpec, ModelSpec, RankSpec, VllmSpec
from prefdata.specs import rank as specs

if TYPE_CHECKING:
    from prefdata.engines.protocol import Generator
    from prefdata.scorers.classifier.base import Classifier
    from prefdata.scorers.judge.rubrics import Question, Rubric
    from prefdata.scorers.protocol import Comparer, Deriver, Scorer

Makes = Literal["scores", "comparisons"]
Models = dict[str, ModelFiles]
"""Models by the setting that names each; a server's has no revision."""


# Reward models


def open_reward_model(spec: specs.RewardModelSpec) -> Scorer:
    """Load the classifier, for the label that is read."""
    files = identify(spec.reward_model, "reward-model")
    return _classifier(spec, files, label=spec.label, activation=spec.activation, text_format=_path(spec.text_format))


def find_reward_model(spec: specs.RewardModelSpec, weights: bool) -> Models:
    """Find the classifier."""
    return {"reward_model": identify(spec.reward_model, "reward-model", weights=weights)}


def reward_model_outputs(spec: specs.RewardModelSpec) -> tuple[str, ...]:
    """Return the names of the labels where all are read, else `("",)`."""
    if spec.label != "all":
        return ("",)
    names = label_names(identify(spec.reward_model, "reward-model").config)
    return ("",) if "all" in names else names


def _classifier(spec: VllmSpec, files: ModelFiles, **read: Any) -> Classifier:
    """Load a classifier on its engine; `read` selects the label and the text."""
    from prefdata.engines.open import reject_unsupported_settings

    reject_unsupported_settings(spec, "vllm" if spec.engine == "vllm" else "transformers")
    if spec.engine == "vllm":
        from prefdata.scorers.classifier.vllm import PoolingRewardModel

        return PoolingRewardModel(files, spec, choice=spec.template_choice, **read)
    from prefdata.scorers.classifier.hf import RewardModel

    return RewardModel(files, context_length=spec.max_model_len, **_settings(spec), **read)


def text_format_id(spec: specs.ClassifierSpec) -> dict[str, str]:
    """Return the id of the text format, where there is one."""
    return {} if spec.text_format is None else {"text_format": file_identity(spec.text_format)}


# Pairwise models: language models and classifiers


def open_pairwise(spec: specs.PairwiseSpec) -> Comparer:
    """Load the model, a language model or a classifier."""
    files = _pairwise_files(spec)
    if not _classifies(files):
        from prefdata.scorers.causal_lm.pairwise import Pairwise

        return Pairwise(files, _question(spec, "pairwise-labels"), annotator=spec.name, **_settings(spec))
    from prefdata.scorers.classifier.pairwise import PairwiseReward, first_label

    first_label(files, spec.label)  # before the weights are read
    classifier = _classifier(spec, files, label="0")
    return PairwiseReward(classifier, files, label=spec.label, text_format=_path(spec.text_format), annotator=spec.name)


def find_pairwise(spec: specs.PairwiseSpec, weights: bool) -> Models:
    """Find the model."""
    return {"pairwise": _pairwise_files(spec, weights)}


def pairwise_reads(spec: specs.PairwiseSpec) -> dict[str, Any]:
    """Return the id of the question, or of a classifier's text format."""
    if _classifies(_pairwise_files(spec, weights=False)):
        return text_format_id(spec)
    return {"rubric": _question(spec, "pairwise-labels").fingerprint()}


def _pairwise_files(spec: specs.PairwiseSpec, weights: bool = True) -> ModelFiles:
    """Find the model that compares, a language model or a classifier.

    Raises:
        ModelError: it is neither.
        UsageError: a setting is for the other kind.
    """
    files = identify(spec.pairwise, "comparer", weights=weights)
    if spec.engine == "vllm" and not _classifies(files):
        raise UsageError(
            f"{files.name} is a language model, and the probabilities of its labels are computed by transformers: "
            "leave --engine vllm out. On vLLM it can be an LLM judge (--judge)."
        )
    settings = ("rubric",) if _classifies(files) else ("label", "text_format")
    if given := next((name for name in settings if getattr(spec, name) is not None), None):
        kind, instead = ("classifier", "--text-format") if given == "rubric" else ("language model", "--rubric")
        raise UsageError(
            f"{files.name} is a {kind}, and --{given.replace('_', '-')} is for the other kind of pairwise model. "
            f"Leave it out; {instead} says what it reads."
        )
    return files


def _classifies(files: ModelFiles) -> bool:
    return files.architecture.endswith("ForSequenceClassification")


# Language models


def open_pointwise(spec: specs.PointwiseSpec) -> Scorer:
    """Load the language model, with its question."""
    from prefdata.scorers.causal_lm.pointwise import Pointwise

    return Pointwise(_language_model(spec.pointwise), _question(spec, "pointwise-labels"), **_settings(spec))


def pointwise_reads(spec: specs.PointwiseSpec) -> dict[str, Any]:
    """Return the id of the question."""
    return {"rubric": _question(spec, "pointwise-labels").fingerprint()}


def _question(spec: specs.RubricSpec, kind: Literal["pointwise-labels", "pairwise-labels"]) -> Question:
    from prefdata.scorers.judge.rubrics import load_question

    return load_question(spec.rubric or {"pointwise-labels": "good-or-bad", "pairwise-labels": "a-or-b"}[kind], kind)


def open_mean_logprob(spec: specs.MeanLogprobSpec) -> Scorer:
    """Load the language model."""
    from prefdata.scorers.causal_lm.likelihood import MeanLogprob

    return MeanLogprob(_language_model(spec.mean_logprob), **_settings(spec))


def open_implicit(spec: specs.ImplicitSpec) -> Scorer:
    """Load the policy and its reference."""
    from prefdata.scorers.causal_lm.likelihood import ImplicitReward

    reference = _language_model(str(spec.reference))
    return ImplicitReward(_language_model(spec.implicit), reference, spec.beta, **_settings(spec))


def find_language_models(*names: str) -> Callable[[RankSpec, bool], Models]:
    """Return what finds the language models in some fields of a spec, where they are given."""

    def models(spec: RankSpec, weights: bool) -> Models:
        given = {name: getattr(spec, name) for name in names}
        return {name: _language_model(model, weights) for name, model in given.items() if model is not None}

    return models


def _language_model(model: str, weights: bool = True) -> ModelFiles:
    return identify(model, "causal-lm", weights=weights)


def _settings(spec: HardwareSpec) -> dict[str, Any]:
    """How a model is loaded by transformers, and by which chat template it reads."""
    return {
        "device": spec.device,
        "dtype": spec.dtype,
        "batch_tokens": spec.batch_tokens,
        "choice": spec.template_choice,
    }


# Judges


def open_judge(spec: specs.JudgeSpec) -> Scorer | Comparer:
    """Start the judge that its rubric asks for, of single responses or of two."""
    from prefdata.scorers.judge.judge import AbsoluteJudge, PairwiseJudge

    rubric = _rubric(spec)
    asked: dict[str, Any] = {"max_tokens": spec.judge_tokens, "tries": spec.judge_tries, "seed": spec.seed}
    if rubric.kind == "pairwise":
        return PairwiseJudge(_generator(spec), rubric, annotator=spec.name, **asked)
    return AbsoluteJudge(_generator(spec), rubric, **asked)


def find_judge(spec: specs.JudgeSpec, weights: bool) -> Models:
    """Find the judge's model."""
    return {"judge": _judge_files(spec, weights)}


def judge_reads(spec: specs.JudgeSpec) -> dict[str, Any]:
    """Return the engine, the id of the rubric and that of an adapter."""
    from prefdata.engines.open import choose_engine

    lora = {} if spec.lora is None else {"lora": adapter_id(Path(spec.lora).expanduser())}
    return {"engine": choose_engine(spec.engine)[0], "rubric": _rubric(spec).fingerprint(), **lora}


def judge_makes(spec: specs.JudgeSpec) -> Makes:
    """Return what the rubric makes.

    Raises:
        UsageError: settings of comparisons with a rubric that makes scores.
    """
    if _rubric(spec).kind == "pairwise":
        return "comparisons"
    for name in ("schedule", "order"):
        if getattr(spec, name) != specs.CompareSpec.model_fields[name].default:
            raise UsageError(f"--{name} is for a pairwise rubric, and {spec.rubric or 'helpful'} is absolute.")
    return "scores"


def _rubric(spec: specs.JudgeSpec) -> Rubric:
    from prefdata.scorers.judge.rubrics import load_rubric

    return load_rubric(spec.rubric or "helpful")


def _generator(spec: specs.JudgeSpec) -> Generator:
    """Load the judge's model on its engine; it is restarted when it crashes."""
    from prefdata.engines.open import choose_engine, open_generator
    from prefdata.engines.restart import with_restart

    model, files, (engine, _) = _judge_model(spec), _judge_files(spec), choose_engine(spec.engine)
    return with_restart(lambda: open_generator(model, files, engine))


def _judge_model(spec: specs.JudgeSpec) -> ModelSpec:
    return ModelSpec(model=spec.judge, **{name: getattr(spec, name) for name in EngineSpec.model_fields})


def _judge_files(spec: specs.JudgeSpec, weights: bool = True) -> ModelFiles:
    from prefdata.engines.open import remote_model_files

    return remote_model_files(_judge_model(spec)) if spec.engine == "openai" else _language_model(spec.judge, weights)


# Rules


def open_function(spec: specs.FunctionSpec) -> Scorer:
    """Load the function."""
    from prefdata.scorers.rules.function import FunctionScorer

    return FunctionScorer(spec.function)


def function_reads(spec: specs.FunctionSpec) -> dict[str, str]:
    """Return the id of the function."""
    return {"function": function_identity(spec.function)}


def open_verifier(spec: specs.VerifierSpec) -> Scorer:
    """Open the rule."""
    from prefdata.scorers.rules.verifiers import open_verifier

    return open_verifier(spec.verifier, time_limit=spec.time_limit, workers=spec.workers)


def verifier_reads(spec: specs.VerifierSpec) -> dict[str, str]:
    """Return the rule, with the id of its file."""
    kind, colon, argument = spec.verifier.partition(":")
    if kind == "json-schema" and colon:
        return {"verifier": f"{kind} {file_identity(argument)}"}
    is_function = spec.verifier.rpartition(":")[0].endswith(".py")
    return {"verifier": function_identity(spec.verifier) if is_function else spec.verifier}


def open_similarity(spec: specs.SimilaritySpec) -> Scorer:
    """Open the measure; `states` loads the model."""
    from prefdata.scorers.rules.reference import MEASURES, ReferenceScorer, span_f

    if spec.similarity == "states":
        from prefdata.scorers.causal_lm.hidden_states import StateSimilarity

        return StateSimilarity(_language_model(str(spec.reference)), span_f, **_settings(spec))
    return ReferenceScorer(MEASURES[spec.similarity])


def _path(file: str | None) -> Path | None:
    return None if file is None else Path(file)


# Scores from tables of the run


def open_aggregate(spec: specs.AggregateSpec) -> Deriver:
    """Return the aggregation of comparisons into scores."""
    from prefdata.scorers.derived import aggregated

    return partial(aggregated, spec)


def open_combine(spec: specs.CombineSpec) -> Deriver:
    """Return the combination of several scorers."""
    from prefdata.scorers.derived import combined

    return partial(combined, spec)


def open_calibrate(spec: specs.CalibrateSpec) -> Deriver:
    """Return the calibration of scores."""
    from prefdata.scorers.derived import calibrated

    return partial(calibrated, spec)
