"""What rank is asked to do."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from prefdata.specs.base import how, what
from prefdata.specs.generating import EngineSpec


class RankSpec(EngineSpec):
    """`prefdata rank`: candidates in, scores (or comparisons) out. Exactly one of `SCORERS` is given."""

    step: ClassVar[str] = "rank"

    reward_model: str | None = what(None, "A sequence-classification model: folder or hub name.")
    function: str | None = what(None, "FILE.py:NAME of a function (prompt messages, response) -> number or None.")
    pointwise: str | None = what(None, "A language model asked whether an answer is good: the score is P(good).")
    pairwise: str | None = what(
        None, "A language model asked which of two answers is better, or a classifier that reads both: comparisons."
    )
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

    label: str | None = what(
        None,
        "reward model: which label, by name or number; all makes a scorer of each. "
        "pairwise classifier: the one of two labels that means the first is better (the first unless given).",
    )
    activation: Literal["logit", "probability"] = what("logit", "reward model: the raw logit, or the probability.")
    text_format: str | None = what(
        None,
        "A file with the text to score. reward model: {prompt} and {response} in it; "
        "pairwise classifier: {prompt}, {first} and {second}.",
    )
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
        "activation": ("reward_model",),
        **dict.fromkeys(("label", "text_format"), ("reward_model", "pairwise")),
        "reference": ("implicit", "similarity"),
        "beta": ("implicit",),
        "rubric": ("judge", "pointwise", "pairwise"),
        **dict.fromkeys(("judge_tokens", "judge_tries"), ("judge",)),
        **dict.fromkeys(("schedule", "order"), ("pairwise", "judge")),
        **dict.fromkeys(("aggregate", "prior"), ("comparisons",)),
        "normalize": ("combine",),
        **dict.fromkeys(("length", "length_weight", "labelled"), ("calibrate",)),
        **dict.fromkeys(("time_limit", "workers"), ("verifier",)),
        **dict.fromkeys(
            ("engine", "max_model_len", "quantization", "engine_option", "tensor_parallel_size",
             "gpu_memory_utilization", "enable_prefix_caching", "max_num_seqs", "batch_invariant"),
            ("judge", "reward_model", "pairwise"),
        ),
        **dict.fromkeys(
            ("chat_template", "chat_template_arg", "chat_template_date"),
            ("reward_model", "pairwise", "pointwise", "judge", "implicit", "mean_logprob", "similarity"),
        ),
        **dict.fromkeys(
            ("raw", "lora", "base_url", "tokenizer", "api_key_env", "concurrency", "timeout", "retries"), ("judge",)
        ),
    }  # fmt: skip
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
        if self.template_choice and (self.text_format is not None or self.similarity in ("exact", "rouge-l")):
            instead = "--text-format" if self.text_format is not None else f"--similarity {self.similarity}"
            raise ValueError(f"{instead} uses no chat template: leave out --chat-template and --chat-template-arg")
        if self.engine == "openai" and self.judge is None:
            raise ValueError("--engine openai goes with --judge: a server gives words, and no logits")
        return self
