"""Scorers: reward models, language models, rules and functions behind one protocol. Importing this imports no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdata.chat.clock import dated
from prefdata.chat.template import template_identity
from prefdata.errors import InputError, UsageError
from prefdata.ids import FORMAT, ID_DIGITS
from prefdata.model_files import ModelFiles, identify, label_names
from prefdata.model_identity import adapter_id
from prefdata.specs import EngineSpec, ModelSpec, RankSpec

if TYPE_CHECKING:
    from prefdata.engines.protocol import Generator
    from prefdata.scorers.classifier import Classifier
    from prefdata.scorers.protocol import Comparer, Scorer
    from prefdata.scorers.rubrics import Rubric


_QUESTIONS = {"pointwise": "good-or-bad", "pairwise": "a-or-b"}
_RUBRIC = "helpful"
"""What is asked unless a --rubric says otherwise."""


def compares(spec: RankSpec) -> bool:
    """Whether a spec asks for comparisons of two answers, and not for scores.

    Raises:
        UsageError, InputError: its rubric is not as it should be.
    """
    return spec.pairwise is not None or (spec.judge is not None and _rubric(spec).kind == "pairwise")


def open_scorer(spec: RankSpec) -> Scorer:
    """The scorer that a spec names, loaded.

    Raises:
        ModelError: the model cannot be used.
        InputError: the function, the verifier's file or the format cannot be found or loaded.
        UsageError: settings that do not go together.
    """
    if spec.function is not None:
        from prefdata.scorers.function import FunctionScorer

        return FunctionScorer(spec.function)
    if spec.verifier is not None:
        from prefdata.scorers.verifiers import open_verifier

        return open_verifier(spec.verifier, time_limit=spec.time_limit, workers=spec.workers)
    where = _settings(spec)
    if spec.pointwise is not None:
        from prefdata.scorers.pointwise import Pointwise
        from prefdata.scorers.rubrics import load_question

        question = load_question(spec.rubric or _QUESTIONS["pointwise"], "pointwise-labels")
        return Pointwise(_language_model(spec.pointwise), question, **where)
    if spec.judge is not None:
        from prefdata.scorers.judge import AbsoluteJudge

        return AbsoluteJudge(_generator(spec), _rubric(spec), **_manner(spec))
    if spec.similarity is not None:
        return _similarity(spec, where)
    if spec.mean_logprob is not None:
        from prefdata.scorers.likelihood import MeanLogprob

        return MeanLogprob(_language_model(spec.mean_logprob), **where)
    if spec.implicit is not None:
        from prefdata.scorers.likelihood import ImplicitReward

        return ImplicitReward(_language_model(spec.implicit), _language_model(_reference(spec)), spec.beta, **where)
    return _reward_model(spec, where)


def outputs_of(spec: RankSpec) -> tuple[str, ...]:
    """The names of a scorer's outputs, known before it is loaded; `("",)` where it has one."""
    if spec.reward_model is None or spec.label != "all":
        return ("",)
    names = label_names(identify(spec.reward_model, "reward-model").config)
    return ("",) if "all" in names else names


def identity_of(spec: RankSpec) -> dict[str, Any]:
    """Return what a scorer is, apart from its settings: ids of models and of files' contents, in their paths' place.

    Raises:
        ModelError: there is no such model, or it is of another kind.
        InputError: there is no such file.
    """
    models = models_of(spec)
    found: dict[str, Any] = {"format": FORMAT}
    for name, files in models.items():
        tokenizer = "reference_tokenizer" if name == "reference" else "tokenizer"
        found |= {name: files.revision or files.name}
        found |= {tokenizer: files.text_revision} if files.path or files.revision else {}
    if spec.function is not None:
        found["function"] = function_identity(spec.function)
    if spec.verifier is not None:
        found["verifier"] = _verifier_identity(spec.verifier)
    if spec.kind in _QUESTIONS and not (spec.kind == "pairwise" and _classifies(models["pairwise"])):
        from prefdata.scorers.rubrics import load_question

        found["rubric"] = load_question(spec.rubric or _QUESTIONS[spec.kind]).fingerprint()
    if spec.judge is not None:
        from prefdata.engines import choose_engine

        found |= {"engine": choose_engine(spec.engine)[0], "rubric": _rubric(spec).fingerprint()}
    if spec.lora is not None:
        found["lora"] = adapter_id(Path(spec.lora).expanduser())
    found |= template_identity(spec)
    if spec.text_format is not None:
        found["text_format"] = file_identity(spec.text_format)
    return found


def dated_scorer(spec: RankSpec, began: str | None = None) -> RankSpec:
    """Return the spec with the date that its models' chat templates read, if one of them reads the clock.

    `began` is the date of the scores or comparisons that are continued.

    Raises:
        ModelError: there is no such model, or it is of another kind.
        UsageError: a date is given, and no template has a use for it.
    """
    server = spec.engine == "openai" and spec.tokenizer is None
    rendered = spec.text_format is None and not spec.raw and not server
    return dated(spec, models_of(spec, weights=False).values() if rendered else [], began)


def models_of(spec: RankSpec, *, weights: bool = True) -> dict[str, ModelFiles]:
    """Find the models that a scorer is made of, by the setting that names each; a server's without a revision.

    Without `weights` their revisions are those of their configs.

    Raises:
        ModelError: there is no such model, or it is of another kind.
        UsageError: a setting is for another kind of model.
    """
    found: dict[str, ModelFiles] = {}
    if spec.reward_model is not None:
        found["reward_model"] = identify(spec.reward_model, "reward-model", weights=weights)
    if spec.pairwise is not None:
        found["pairwise"] = _pairwise_files(spec, weights)
    if spec.judge is not None:
        found["judge"] = _judge_files(spec, weights)
    for name in ("mean_logprob", "implicit", "pointwise", "reference"):
        if (model := getattr(spec, name)) is not None:
            found[name] = _language_model(model, weights)
    return found


def function_identity(named: str) -> str:
    """The id of a function `FILE.py:NAME`: its name and its file's content.

    Raises:
        InputError: there is no such file.
    """
    from prefdata.scorers.function import file_and_name

    file, name = file_and_name(named)
    return f"{name} of {file_identity(str(file))}"


def file_identity(file: str) -> str:
    """The id of a file's content.

    Raises:
        InputError: there is no such file.
    """
    if not Path(file).is_file():
        raise InputError(f"there is no file {file}.")
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:ID_DIGITS]


def _settings(spec: RankSpec) -> dict[str, Any]:
    """How a model is loaded and by which chat template it reads."""
    return {
        "device": spec.device,
        "dtype": spec.dtype,
        "batch_tokens": spec.batch_tokens,
        "choice": spec.template_choice,
    }


def _reward_model(spec: RankSpec, where: dict[str, Any]) -> Scorer:
    text_format = None if spec.text_format is None else Path(spec.text_format)
    files = identify(str(spec.reward_model), "reward-model")
    return _classifier(spec, files, where, label=spec.label, activation=spec.activation, text_format=text_format)


def _classifier(spec: RankSpec, files: ModelFiles, where: dict[str, Any], **read: Any) -> Classifier:
    """A classifier on its engine; `read` says what is read, and how."""
    from prefdata.engines import refuse_foreign

    refuse_foreign(spec, "vllm" if spec.engine == "vllm" else "transformers")
    if spec.engine == "vllm":
        from prefdata.scorers.pooling import PoolingRewardModel

        return PoolingRewardModel(files, spec, choice=spec.template_choice, **read)
    from prefdata.scorers.reward_model import RewardModel

    return RewardModel(files, **where, **read)


def _generator(spec: RankSpec) -> Generator:
    """The judge on its engine, raised when it dies."""
    from prefdata.engines import choose_engine, open_generator
    from prefdata.engines.revive import revived

    asked, files, (engine, _) = _judge_model(spec), _judge_files(spec), choose_engine(spec.engine)
    return revived(lambda: open_generator(asked, files, engine))


def _judge_model(spec: RankSpec) -> ModelSpec:
    return ModelSpec(model=str(spec.judge), **{name: getattr(spec, name) for name in EngineSpec.model_fields})


def _judge_files(spec: RankSpec, weights: bool = True) -> ModelFiles:
    from prefdata.engines import served

    return served(_judge_model(spec)) if spec.engine == "openai" else _language_model(str(spec.judge), weights)


def _rubric(spec: RankSpec) -> Rubric:
    from prefdata.scorers.rubrics import load_rubric

    return load_rubric(spec.rubric or _RUBRIC)


def _manner(spec: RankSpec) -> dict[str, Any]:
    return {"max_tokens": spec.judge_tokens, "tries": spec.judge_tries, "seed": spec.seed}


def _similarity(spec: RankSpec, where: dict[str, Any]) -> Scorer:
    from prefdata.scorers.similarity import ReferenceScorer, exact_match, rouge_l, span_f

    if spec.similarity == "states":
        from prefdata.scorers.states import StateSimilarity

        return StateSimilarity(_language_model(_reference(spec)), span_f, **where)
    return ReferenceScorer(exact_match if spec.similarity == "exact" else rouge_l)


def _language_model(model: str, weights: bool = True) -> ModelFiles:
    return identify(model, "causal-lm", weights=weights)


def _reference(spec: RankSpec) -> str:
    if spec.reference is None:
        raise UsageError(f"--{spec.kind.replace('_', '-')} needs a --reference model to compare with.")
    return spec.reference


def _verifier_identity(named: str) -> str:
    kind, colon, argument = named.partition(":")
    if kind == "json-schema" and colon:
        return f"{kind} {file_identity(argument)}"
    return function_identity(named) if named.rpartition(":")[0].endswith(".py") else named


def open_comparer(spec: RankSpec) -> Comparer:
    """The judge of two answers that a spec names, loaded.

    Raises:
        ModelError: the model cannot be used.
    """
    if spec.judge is not None:
        from prefdata.scorers.judge import PairwiseJudge

        return PairwiseJudge(_generator(spec), _rubric(spec), annotator=spec.name, **_manner(spec))
    files = _pairwise_files(spec)
    where = _settings(spec)
    if _classifies(files):
        from prefdata.scorers.pairwise_reward import PairwiseReward, first_label

        first_label(files, spec.label)  # before the weights are read
        text_format = None if spec.text_format is None else Path(spec.text_format)
        read: dict[str, Any] = {"label": spec.label, "text_format": text_format, "annotator": spec.name}
        return PairwiseReward(_classifier(spec, files, where, label="0"), files, **read)
    from prefdata.scorers.pairwise import Pairwise
    from prefdata.scorers.rubrics import load_question

    question = load_question(spec.rubric or _QUESTIONS["pairwise"], "pairwise-labels")
    return Pairwise(files, question, annotator=spec.name, **where)


def _pairwise_files(spec: RankSpec, weights: bool = True) -> ModelFiles:
    """The model that compares, a language model or a classifier.

    Raises:
        ModelError: it is neither.
        UsageError: a setting is for the other kind.
    """
    files = identify(str(spec.pairwise), "comparer", weights=weights)
    if spec.engine == "vllm" and not _classifies(files):
        raise UsageError(
            f"{files.name} is a language model, and its labels are weighed on transformers: leave --engine vllm out. "
            "On vLLM it can judge in words (--judge)."
        )
    settings = ("rubric",) if _classifies(files) else ("label", "text_format")
    if given := next((name for name in settings if getattr(spec, name) is not None), None):
        kind, instead = ("classifier", "--text-format") if given == "rubric" else ("language model", "--rubric")
        raise UsageError(
            f"{files.name} is a {kind}, and --{given.replace('_', '-')} is for the other kind that compares. "
            f"Leave it out, or say by {instead} what it reads."
        )
    return files


def _classifies(files: ModelFiles) -> bool:
    return files.architecture.endswith("ForSequenceClassification")
