"""Specs: what a step is asked to do, said once.

A spec is a frozen, strict pydantic model. The same class gives the command's flags and their help, the keys of the YAML
file, the keyword arguments in Python, and the JSON in every footer. Fields come in two kinds: those that decide the
result (the spec's identity: they enter the fingerprint), and those that only say how it is computed or how far (batch
sizes, devices, the number of candidates), declared with `how`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prefdata.errors import UsageError, did_you_mean
from prefdata.ids import digest
from prefdata.spreads import Count, CountOrNone, NotNegative, Penalty, Positive, Share, ShareOrNone


def what(default: Any = ..., description: str = "", **bounds: Any) -> Any:
    """A field that decides the result; it enters the fingerprint."""
    return Field(default, description=description, **bounds)


def how(default: Any = ..., description: str = "", **bounds: Any) -> Any:
    """A field that says how, or how much, but never which result; it stays out of the fingerprint."""
    return Field(default, description=description, json_schema_extra={"how": True}, **bounds)


class Spec(BaseModel):
    """The base of all specs.

    `step` names the command that the spec belongs to, in words as typed (`"sample"`, `"train dpo"`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, ser_json_inf_nan="constants")
    step: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, data: Any) -> Any:
        # YAML and JSON have lists only; frozen specs hold tuples.
        if isinstance(data, Mapping):
            return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        return data

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str | None = None) -> Self:
        """The spec from plain values; `where` says where they came from (a file, "the flags") in the message.

        Raises:
            UsageError: an unknown key (with the nearest known one) or a value that does not fit, all of them at once.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            problems = "; ".join(cls._problem(e) for e in error.errors())
            raise UsageError(f"{where or cls.step}: {problems}") from None

    @classmethod
    def _problem(cls, error: Mapping[str, Any]) -> str:
        name = ".".join(str(part) for part in error["loc"])
        if error["type"] == "extra_forbidden":
            return f'unknown key "{name}".{did_you_mean(name, cls.model_fields)}'
        if error["type"] == "missing":
            return f"{name} is needed"
        said = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
        if not name:
            return said
        return f"{name}: {'should be ' if said != error['msg'] and 'Value' not in error['msg'] else ''}{said}" + (
            "" if error["type"] == "value_error" else f", not {error['input']!r}"
        )

    def identity(self) -> dict[str, Any]:
        """The fields that decide the result, as JSON values."""
        fields = type(self).model_fields
        said = self.model_dump(mode="json")
        return {name: _plain(value) for name, value in said.items() if not _is_how(fields[name])}

    def fingerprint(self) -> str:
        """The id of the spec's identity: equal fingerprints, equal results from equal inputs."""
        return digest({"step": self.step, **self.essence(self.identity())})

    @classmethod
    def essence(cls, identity: Mapping[str, Any]) -> dict[str, Any]:
        """An identity without the settings that are at their defaults: what fingerprints and seeds are made from.

        So a setting that a later version adds, off by default, changes no fingerprint and no candidate. In return a
        default that decides a result never changes.
        """
        defaults = {name: _plain(field.get_default()) for name, field in cls.model_fields.items()}
        defaults = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
        return {name: value for name, value in identity.items() if name not in defaults or value != defaults[name]}


def _plain(value: Any) -> Any:
    # JSON has no infinity; an infinite beta is a setting like any other.
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _is_how(field: Any) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("how"))


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What changed between two specs' identities, one `key: old -> new` after another."""
    keys = [*old, *(key for key in new if key not in old)]
    changed = [key for key in keys if old.get(key) != new.get(key)]
    return ", ".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in changed)


class IngestSpec(Spec):
    """`prefdata ingest`: files in, prompts out, and with `--as candidates` the answers that exist already."""

    model_config = ConfigDict(populate_by_name=True)
    step: ClassVar[str] = "ingest"

    kind: Literal["prompts", "candidates", "comparisons"] = what(
        "prompts",
        "What to read: the prompts alone, with them the answers that the rows hold, or verdicts on two answers.",
        alias="as",
    )
    layout: str | None = what(None, "How a row says its prompt (found out from the columns unless named).")
    test: float = what(0.1, "Share of prompts that go to the test split where the rows do not say.", ge=0, le=1)
    seed: int = what(0, "Seed of the split and of the instructions.", ge=0)
    system: str | None = what(None, "A system message put before every prompt that has none.")
    instructions: str | None = what(
        None, "Put an instruction into each first user turn, for Ghost Attention: a YAML file, or gatt."
    )
    on_duplicates: Literal["merge", "error"] = what(
        "merge", "What to do with a prompt that occurs twice (as candidates: with an answer that does)."
    )
    on_bad_rows: Literal["error", "drop"] = what("error", "What to do with a row that cannot be used.")
    source: str | None = how(None, "Name of this set of prompts (the first file's name unless given).")

    @model_validator(mode="after")
    def _instructed_prompts_have_no_answers_yet(self) -> Self:
        if self.instructions is not None and self.kind == "candidates":
            raise ValueError("--instructions is for prompts: answers that exist already heed none of them")
        return self


class EngineSpec(Spec):
    """Behind which engine a generating model runs, and how: what every step with such a model shares."""

    engine: Literal["auto", "vllm", "transformers", "openai"] = what(
        "auto",
        "auto takes vllm where it is installed and a GPU is there, else transformers; openai is any such server.",
    )
    raw: bool = what(False, "Continue the plain text of a single user message; no chat template.")
    dtype: str = what(
        "auto", "float32, bfloat16, … or auto (float32 on a CPU; on CUDA bfloat16, with vllm the model's own)."
    )
    max_model_len: int | None = what(
        None, "Use less of the context (prompt and answer, tokens) than the model was made for.", ge=2
    )
    lora: str | None = what(None, "A LoRA adapter to put on the model: its folder.")
    quantization: str | None = what(None, "vllm: how the weights are quantised (fp8, awq, gptq, bitsandbytes, …).")
    engine_option: tuple[str, ...] = what(
        (), "vllm: any other of its engine's settings, as KEY=VALUE (VALUE in JSON, or text)."
    )
    tensor_parallel_size: int = how(1, "vllm: GPUs that share the model.", ge=1)
    gpu_memory_utilization: float | None = how(None, "vllm: share of a GPU's memory to take.", gt=0, le=1)
    enable_prefix_caching: bool | None = how(None, "vllm: compute shared beginnings of prompts once.")
    max_num_seqs: int | None = how(None, "vllm: requests computed at a time.", ge=1)
    device: str | None = how(None, "transformers: cpu, cuda, cuda:1, …; the best there is unless given.")
    batch_tokens: int | None = how(
        None, "transformers: rows times positions of a batch (made for the device unless given).", ge=1
    )
    base_url: str | None = how(None, "openai: where the server is, as http://HOST:PORT/v1.")
    tokenizer: str | None = how(
        None, "openai: the model's own folder or hub name; prompts are then rendered here and sent as token ids."
    )
    api_key_env: str = how("OPENAI_API_KEY", "openai: the environment variable that holds the key; it is never stored.")
    concurrency: int = how(64, "openai: requests under way at a time.", ge=1)
    timeout: float = how(600.0, "openai: seconds to wait for an answer.", gt=0)
    retries: int = how(6, "openai: how often a request is tried again after 429, 5xx and timeouts.", ge=0)


class ModelSpec(EngineSpec):
    """A generating model on its engine."""

    model: str = what(..., "The policy: a Hugging Face folder or hub name; for openai the name that the server knows.")


class SampleSpec(ModelSpec):
    """`prefdata sample`: prompts in, candidates out."""

    step: ClassVar[str] = "sample"

    n: int = how(16, "Candidates a prompt; raising it later adds the missing ones.", ge=1)
    temperature: NotNegative = what(
        1.0,
        "Sampling temperature; 0 is greedy. This and the next seven: one value, a list (a,b,c) or a range (low:high).",
    )
    top_p: Share = what(1.0, "Nucleus: the smallest set of tokens with this total probability.")
    top_k: CountOrNone = what(0, "The k most probable tokens only; 0 is all.")
    min_p: ShareOrNone = what(0.0, "Only tokens at least this share as probable as the likeliest; 0 is all.")
    repetition_penalty: Positive = what(
        1.0, "Divides (or multiplies, below zero) the logits of tokens that occurred in prompt or answer; 1 is none."
    )
    presence_penalty: Penalty = what(0.0, "Taken off the logits of tokens that occurred in the answer; 0 is none.")
    max_tokens: Count = what(512, "The longest answer, in tokens.")
    min_tokens: CountOrNone = what(0, "The shortest answer, in tokens: before it no end token is drawn.")
    stop: tuple[str, ...] = what((), "Text that ends an answer and is cut off; may be given several times.")
    search: Literal["sample", "beam", "diverse-beam"] = what(
        "sample", "sample draws; beam and diverse-beam search for the N likeliest answers (transformers only)."
    )
    diversity_penalty: float = what(
        1.0, "diverse-beam: taken off tokens that earlier beams took at the same step.", ge=0
    )
    seed: int = what(0, "The run's seed; every candidate has its own, made from it.", ge=0)
    round: int = what(0, "The round of an iterative run.", ge=0)
    preprompts: str | None = what(
        None, "A YAML file of preprompts with weights: each candidate is drawn with one, and trained on without it."
    )
    ghost_attention: bool = what(
        False, "Repeat the instruction that `ingest --instructions` put into the first user turn on every user turn."
    )
    on_long: Literal["skip", "error", "truncate-left"] = what(
        "skip", "Prompts without room for an answer: a row with a status, an error, or cut from the left."
    )
    logprobs: bool = what(False, "Store the log-probability of every token, and not only their sum.")
    split: Literal["all", "train", "test"] = how("all", "Which prompts.")
    where: str | None = how(None, "Only prompts for which this SQL condition on the prompts table holds.")
    limit: int | None = how(None, "Only this many prompts: a fair sample, the same every time.", ge=1)
    sweep: tuple[str, ...] = how((), "One sampler for each value, as SETTING=A,B,C; several sweeps are crossed.")
    retry_truncated: bool = how(False, "Draw again, with the larger --max-tokens, what the smaller one cut off.")
    name: str | None = how(None, "Name of this sampler (the model folder's name unless given).")


class RankSpec(EngineSpec):
    """`prefdata rank`: candidates in, scores (or comparisons) out. Exactly one of `SCORERS` is given."""

    step: ClassVar[str] = "rank"

    reward_model: str | None = what(None, "A sequence-classification model: folder or hub name.")
    function: str | None = what(None, "FILE.py:NAME of a function (prompt messages, response) -> number or None.")
    pointwise: str | None = what(None, "A language model asked whether an answer is good: the score is P(good).")
    pairwise: str | None = what(None, "A language model asked which of two answers is better: makes comparisons.")
    judge: str | None = what(None, "A language model that judges in words, by a --rubric: makes scores or comparisons.")
    implicit: str | None = what(
        None, "A policy whose implicit reward against --reference, beta ln p/p_ref, is the score."
    )
    mean_logprob: str | None = what(None, "A model under which the mean ln p of the answer's tokens is the score.")
    similarity: Literal["exact", "rouge-l", "states"] | None = what(
        None, "How near the answer is to the prompt's reference answer; states compares hidden states of --reference."
    )
    verifier: str | None = what(
        None, "number, choice, regex:PATTERN, json-schema:FILE or FILE.py:NAME: whether the answer is right, 1 or 0."
    )
    comparisons: tuple[str, ...] = what((), "Judges whose comparisons become scores, by --aggregate.")
    combine: str | None = what(None, 'Other scorers as one, as in "0.7*helpful + 0.3*safe" or "min(a, b)".')
    calibrate: str | None = what(
        None, "A scorer whose scores are to be corrected, by --length or by pairs that are --labelled."
    )

    label: str | None = what(None, "reward model: which label, by name or number; all makes a scorer of each.")
    activation: Literal["logit", "probability"] = what("logit", "reward model: the raw logit, or the probability.")
    text_format: str | None = what(None, "reward model: a file with the text to score, {prompt} and {response} in it.")
    reference: str | None = what(None, "implicit: the reference policy; states: the model whose states are compared.")
    beta: float = what(0.1, "implicit: the factor of the log-ratio.", gt=0)
    rubric: str | None = what(None, "judge, pointwise, pairwise: a YAML file, or the name of a built-in one.")
    judge_tokens: int = what(512, "judge: the longest judgement, in tokens.", ge=1)
    judge_tries: int = what(3, "judge: how often an answer that cannot be read is asked for.", ge=1)
    schedule: Literal["all", "first-round", "tournament"] = what(
        "first-round", "Which two answers are compared: every two, n/2 disjoint random ones, or n-1 by knock-out."
    )
    order: Literal["both", "flip"] = what("both", "Compare in both orders, or in one by a coin (RSO).")
    aggregate: Literal["bradley-terry", "elo", "borda", "copeland"] = what(
        "bradley-terry", "comparisons: how they become scores."
    )
    prior: float = what(0.5, "bradley-terry: wins and losses against an average answer that each starts with.", ge=0)
    normalize: Literal["none", "z", "z-prompt", "rank", "quantile"] = what(
        "none", "combine: what is done to each scorer's scores first."
    )
    length: Literal["none", "penalty", "rc-mean", "rc-lwr"] = what("none", "calibrate: how length is taken out.")
    length_weight: float = what(0.001, "calibrate: what penalty takes off for each character.", ge=0)
    labelled: str | None = what(None, "calibrate: which pairs of the run are the truth for the temperature.")
    seed: int = what(0, "Seed of the schedule and of flipped orders.", ge=0)
    time_limit: float = what(5.0, "verifier with a function: seconds that one answer may take.", gt=0)
    workers: int = how(2, "verifier with a function: processes.", ge=1)
    name: str | None = how(None, "Name of this scorer or judge (the model folder's or function's unless given).")
    sampler: tuple[str, ...] = how((), "Only candidates of these samplers (all unless given).")

    SCORERS: ClassVar[tuple[str, ...]] = (
        "reward_model", "function", "pointwise", "pairwise", "judge", "implicit", "mean_logprob", "similarity",
        "verifier", "comparisons", "combine", "calibrate",
    )  # fmt: skip

    GOES_WITH: ClassVar[dict[str, tuple[str, ...]]] = {
        **dict.fromkeys(("label", "activation", "text_format"), ("reward_model",)),
        "reference": ("implicit", "similarity"),
        "beta": ("implicit",),
        "rubric": ("judge", "pointwise", "pairwise"),
        **dict.fromkeys(("judge_tokens", "judge_tries"), ("judge",)),
        **dict.fromkeys(("schedule", "order"), ("pairwise", "judge")),
        **dict.fromkeys(("aggregate", "prior"), ("comparisons",)),
        "normalize": ("combine",),
        **dict.fromkeys(("length", "length_weight", "labelled"), ("calibrate",)),
        **dict.fromkeys(("time_limit", "workers"), ("verifier",)),
    }
    """Settings that only some scorers have a use for."""

    @property
    def kind(self) -> str:
        """Which field names the scorer."""
        return next(name for name in self.SCORERS if getattr(self, name))

    @model_validator(mode="after")
    def _one_scorer(self) -> Self:
        given = [f"--{name.replace('_', '-')}" for name in self.SCORERS if getattr(self, name)]
        if len(given) != 1:
            said = " and ".join(given) or "none"
            raise ValueError(f"name one scorer (--reward-model M, --function FILE.py:NAME, --judge M, …), not {said}")
        for name, kinds in self.GOES_WITH.items():
            if self.kind not in kinds and getattr(self, name) != type(self).model_fields[name].default:
                with_ = " or ".join(f"--{kind.replace('_', '-')}" for kind in kinds)
                raise ValueError(
                    f"--{name.replace('_', '-')} goes with {with_}, and changes nothing here: leave it out"
                )
        return self


class SelectSpec(Spec):
    """`prefdata select`: scores in, selections out."""

    step: ClassVar[str] = "select"

    method: Literal["best-of-n", "top-k", "rso", "rso-algorithm1"] = what(
        "rso",
        "best-of-n (the highest score), top-k, rso (statistical rejection sampling, Plackett-Luce law by Gumbel noise) "
        "or rso-algorithm1 (the RSO paper's sweep).",
    )
    k: int = what(8, "How many to keep a prompt (best-of-n keeps 1).", ge=1)
    beta: float = what(0.5, "RSO's temperature: 0 is top-k, inf ignores the scores.", ge=0)
    seed: int = what(0, "Seed of the acceptance draws.", ge=0)
    shuffle: bool = what(False, "rso-algorithm1: sweep in random order and not in the order of generation.")
    truncated: Literal["drop", "keep"] = what("drop", "What to do with answers that max_tokens cut off.")
    duplicates: Literal["collapse", "keep"] = what("collapse", "What to do with the same text twice for one prompt.")
    scorer: str | None = what(None, "Which scores (the only ones unless given).")
    sampler: tuple[str, ...] = what((), "Only candidates of these samplers (all unless given).")
    name: str | None = how(None, "Name of this selection (made from the method and k unless given).")


class PairSpec(Spec):
    """`prefdata pair`: selections in, pairs out."""

    step: ClassVar[str] = "pair"

    strategy: Literal["best-worst", "best-random", "first-round", "all"] = what(
        "best-worst",
        "best-worst, best-random, first-round (n/2 disjoint random pairs) or all (every two), among the selected.",
    )
    per_prompt: int = what(1, "best-worst: pairs a prompt, the i-th best against the i-th worst.", ge=1)
    min_margin: float = what(0.0, "The least difference of scores; ties never make a pair.", ge=0)
    seed: int = what(0, "Seed of the random choices.", ge=0)
    truncated: Literal["drop", "rejected", "keep"] = what(
        "rejected", "Answers that max_tokens cut off: leave out, allow as rejected only, or treat as any other."
    )
    selector: str | None = what(None, 'Which selection (the only one unless given); "all" is every scored candidate.')
    scorer: str | None = what(None, "With --selector all: which scores (the only ones unless given).")
    sampler: tuple[str, ...] = what((), "With --selector all: only candidates of these samplers.")
    name: str | None = how(None, "Name of this pairing (the selection's name unless given).")


class ExportSpec(Spec):
    """`prefdata export`: pairs or selections in, shards and a dataset card out."""

    step: ClassVar[str] = "export"

    dialect: Literal["trl", "sft"] = what(
        "trl", "trl (prompt, chosen, rejected) or sft (messages with the best answer)."
    )
    pairing: str | None = what(None, "Which pairs, for trl (the only ones unless given).")
    selector: str | None = what(None, "Which selection, for sft (the only one unless given).")
    strict_columns: bool = what(False, "Only the columns that the dialect needs: no scores, no ids.")
    shard_mb: int = what(256, "Largest size of a shard, in megabytes.", ge=1)
