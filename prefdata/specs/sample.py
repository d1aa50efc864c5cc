"""The spec of sample, and those of models and engines."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, model_validator

from prefdata.ids import digest
from prefdata.specs.base import Condition, Group, identity_field, runtime_field
from prefdata.specs.chat import ChatSpec
from prefdata.specs.value_ranges import (
    Count,
    CountOrNone,
    NotNegative,
    Penalty,
    Positive,
    Share,
    ShareOrNone,
    is_spread,
    value_of,
)

_NOT_SAMPLING = ("max_tokens", "logprobs", "on_long")
"""Settings of a response's length or of what is stored of it, not of how its tokens are sampled."""


def _no_key(name: str) -> str:
    if name and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("should be the name of an environment variable that holds the key, not the key itself")
    return name


VariableName = Annotated[str, AfterValidator(_no_key)]
"""The name of an environment variable; empty for none."""


class HardwareSpec(ChatSpec):
    """The device of a model, and its chat template: the settings of all that transformers computes."""

    dtype: str = identity_field(
        "auto",
        "float32, bfloat16, … or auto (float32 on a CPU; on CUDA bfloat16, with vllm the model's own).",
        group=Group.ENGINE,
    )
    device: str | None = runtime_field(
        None, "cpu, cuda, cuda:1, … (default: the best available).", group=Group.TRANSFORMERS
    )
    batch_tokens: int | None = runtime_field(
        None,
        "Rows times positions of a batch (default: chosen for the device); `rank` computes one on each core of a CPU.",
        ge=1,
        group=Group.TRANSFORMERS,
    )


class VllmSpec(HardwareSpec):
    """A model on transformers or vLLM."""

    engine: Literal["auto", "vllm", "transformers", "openai"] = identity_field(
        "auto",
        "auto is vllm if it is installed and there is a GPU, else transformers; openai: any OpenAI-compatible server.",
        group=Group.ENGINE,
    )
    max_model_len: int | None = identity_field(
        None,
        "Maximum context length (prompt and response, in tokens), if less than the model's.",
        ge=2,
        group=Group.ENGINE,
    )
    quantization: str | None = identity_field(
        None, "How the weights are quantised (fp8, awq, gptq, bitsandbytes, …).", group=Group.VLLM
    )
    engine_option: tuple[str, ...] = identity_field(
        (), "Any other setting of vLLM, as KEY=VALUE (VALUE in JSON, or text).", group=Group.VLLM
    )
    tensor_parallel_size: int = runtime_field(1, "GPUs that share the model.", ge=1, group=Group.VLLM)
    gpu_memory_utilization: float | None = runtime_field(
        None, "Fraction of a GPU's memory to take.", gt=0, le=1, group=Group.VLLM
    )
    enable_prefix_caching: bool | None = runtime_field(
        None, "Compute shared prefixes of prompts once.", group=Group.VLLM
    )
    max_num_seqs: int | None = runtime_field(None, "Requests computed at a time.", ge=1, group=Group.VLLM)
    batch_invariant: bool = runtime_field(
        False,
        "Results that do not depend on the rest of the batch (NVIDIA GPUs from A100 on; slower).",
        group=Group.VLLM,
    )


class EngineSpec(VllmSpec):
    """The engine of a generating model: the settings that every step with such a model shares."""

    may_be_empty: ClassVar[tuple[str, ...]] = ("api_key_env",)

    raw: bool = identity_field(
        False, "Continue the plain text of a single user message; no chat template.", group=Group.ENGINE
    )
    lora: str | None = identity_field(None, "A LoRA adapter for the model: its folder.", group=Group.ENGINE)
    base_url: str | None = runtime_field(
        None, "URL of the server, as http://HOST:PORT/v1.", repr=False, group=Group.OPENAI
    )
    tokenizer: str | None = runtime_field(
        None,
        "The model's folder or hub name; prompts are then rendered locally and sent as token ids.",
        group=Group.OPENAI,
    )
    api_key_env: VariableName = runtime_field(
        "OPENAI_API_KEY",
        "The environment variable that holds the key; it is never stored.",
        repr=False,
        group=Group.OPENAI,
    )
    concurrency: int = runtime_field(64, "Requests in flight at a time.", ge=1, group=Group.OPENAI)
    timeout: float = runtime_field(600.0, "Seconds to wait for a response.", gt=0, group=Group.OPENAI)
    retries: int = runtime_field(6, "Retries of a request after 429, 5xx and timeouts.", ge=0, group=Group.OPENAI)

    @model_validator(mode="after")
    def _a_template_has_a_use(self) -> Self:
        if self.raw and self.template_choice:
            raise ValueError("--raw uses no chat template: leave out --chat-template and --chat-template-arg")
        if self.engine == "openai" and self.tokenizer is None and self.template_choice:
            raise ValueError(
                "the server renders by its own chat template: for --chat-template and --chat-template-arg give the "
                "model's --tokenizer, so that prompts are rendered locally"
            )
        return self


class ModelSpec(EngineSpec):
    """A generating model on its engine."""

    model: str = identity_field(
        ...,
        "The policy: a Hugging Face folder or hub name; for openai, the server's name for it.",
        group=Group.MODEL,
    )


class SampleSpec(ModelSpec):
    """`prefdata sample`: prompts in, candidates out."""

    step: ClassVar[str] = "sample"

    n: int = runtime_field(
        16, "Candidates per prompt; raising it later adds the missing ones.", ge=1, group=Group.SAMPLING
    )
    temperature: NotNegative = identity_field(
        1.0,
        "Sampling temperature; 0 is greedy. This and the next seven: one value, a list (a,b,c) or a range (low:high).",
        group=Group.SAMPLING,
    )
    top_p: Share = identity_field(
        1.0, "Nucleus: the smallest set of tokens with this total probability.", group=Group.SAMPLING
    )
    top_k: CountOrNone = identity_field(0, "The k most probable tokens only; 0 is all.", group=Group.SAMPLING)
    min_p: ShareOrNone = identity_field(
        0.0, "Only tokens at least this fraction as probable as the most probable; 0 is all.", group=Group.SAMPLING
    )
    repetition_penalty: Positive = identity_field(
        1.0,
        "Divides (or multiplies, below zero) the logits of tokens that occurred in prompt or response; 1 is none.",
        group=Group.SAMPLING,
    )
    presence_penalty: Penalty = identity_field(
        0.0, "Subtracted from the logits of tokens that occurred in the response; 0 is none.", group=Group.SAMPLING
    )
    max_tokens: Count = identity_field(512, "Maximum length of a response, in tokens.", group=Group.SAMPLING)
    min_tokens: CountOrNone = identity_field(
        0, "Minimum length of a response, in tokens: no end token before.", group=Group.SAMPLING
    )
    stop: tuple[str, ...] = identity_field(
        (), "Text that ends a response and is removed from it.", group=Group.SAMPLING
    )
    search: Literal["sample", "beam", "diverse-beam"] = identity_field(
        "sample",
        "random sampling, or a search for the N most probable responses (transformers only).",
        group=Group.SAMPLING,
    )
    diversity_penalty: float = identity_field(
        1.0, "diverse-beam: subtracted from tokens that earlier groups chose.", ge=0, group=Group.SAMPLING
    )
    seed: int = identity_field(
        0, "The run's seed, from which every candidate's own is derived.", ge=0, group=Group.SAMPLING
    )
    round: int = identity_field(0, "The round of an iterative run.", ge=0, group=Group.OUTPUT)
    preprompts: str | None = identity_field(
        None,
        "A YAML file of preprompts with weights: each candidate is sampled with one, and trained on without it.",
        group=Group.PROMPTS,
    )
    ghost_attention: bool = identity_field(
        False,
        "Repeat the instruction that `ingest --instructions` put into the first user turn on every user turn.",
        group=Group.PROMPTS,
    )
    on_long: Literal["skip", "error", "truncate-left"] = identity_field(
        "skip",
        "Prompts without room for a response: a row with a status, an error, or truncated from the left.",
        group=Group.PROMPTS,
    )
    logprobs: bool = identity_field(
        False, "Store the log-probability of every token, not only their sum.", group=Group.OUTPUT
    )
    split: Literal["all", "train", "test"] = runtime_field("all", "Which prompts.", group=Group.PROMPTS)
    where: Condition = runtime_field(
        None, "Only prompts for which this SQL condition on the prompts table holds.", group=Group.PROMPTS
    )
    limit: int | None = runtime_field(
        None, "Only this many prompts, chosen at random by their ids: always the same ones.", ge=1, group=Group.PROMPTS
    )
    sweep: tuple[str, ...] = runtime_field(
        (), "One sampler for each value, as SETTING=A,B,C; several sweeps are crossed.", group=Group.SAMPLING
    )
    retry_truncated: bool = runtime_field(
        False, "Sample truncated responses again with a larger --max-tokens.", group=Group.SAMPLING
    )
    name: str | None = runtime_field(
        None, "Name of this sampler (default: the model folder's name).", group=Group.OUTPUT
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        self.require_default_unless("search", diversity_penalty=("diverse-beam",))
        if not self.sweep:  # each sampler of a sweep is checked by itself
            self._check_lengths()
        return self

    @classmethod
    def sampler_fingerprint(cls, identity: Mapping[str, Any]) -> str:
        """Return the id of all settings that decide how tokens are sampled; candidates' ids and seeds depend on it.

        Limits of length are not part of it (the same seed continues the same response), except for a search, where the
        best beams of a shorter one differ. Samplers with equal fingerprints share candidates.
        """
        deciding = {
            name: value for name, value in cls.non_default_identity(identity).items() if name not in _NOT_SAMPLING
        }
        if identity.get("search", "sample") != "sample":
            deciding["max_tokens"] = identity["max_tokens"]
        return digest(deciding)

    @property
    def repeats_itself(self) -> bool:
        """Whether all of several samples of a prompt are the same response: no pair can be made of them."""
        greedy = self.temperature == 0 or self.top_k == 1
        return greedy and self.n > 1 and self.search == "sample" and self.preprompts is None

    def _check_lengths(self) -> None:
        """Check that every candidate's maximum length is at least its minimum; of ranges, the worst possible values.

        Raises:
            ValueError: a candidate's is below.
        """
        longest, shortest = self.max_tokens, self.min_tokens
        turns = math.lcm(*(str(setting).count(",") + 1 for setting in (longest, shortest)))
        top = math.nextafter(1, 0)
        if any(value_of(longest, i, 0) < value_of(shortest, i, top) for i in range(turns)):
            which = "a response of some candidates" if is_spread(longest) or is_spread(shortest) else "a response"
            raise ValueError(f"--max-tokens {longest} is below --min-tokens {shortest}, so that {which} could not end")
