"""A sampler, resolved: everything that a spec means in one run, found out before anything is drawn or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prefdata.chat.clock import dated
from prefdata.chat.template import template_identity
from prefdata.chat.transforms import PromptTransform
from prefdata.engines.open import Engine, choose_engine, reject_unsupported_settings
from prefdata.errors import SpecConflict, UsageError
from prefdata.ids import FORMAT
from prefdata.models.files import ModelFiles, identify
from prefdata.models.identity import adapter_id
from prefdata.specs import SampleSpec, describe_changes
from prefdata.specs.value_ranges import is_spread
from prefdata.storage.artifact import in_the_same_precision
from prefdata.storage.queries import PromptBatchReader
from prefdata.storage.run import Lineage, Partition, Run, name_of

SPREADABLE = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "max_tokens",
    "min_tokens",
)
"""Settings that may differ between the candidates of one sampler, and that a sweep may go through."""


@dataclass(frozen=True)
class SamplingJob:
    """What is to be drawn, by what, and where it goes.

    Attributes:
        law: id of all that decides how tokens are drawn (model, settings, engine, seed). It names the candidates and
            makes their seeds; `max_tokens` is no part of it, so that a longer limit continues the same answers.
        why: why this engine.
        dtype: in which it computes: that of the candidates which are continued, else the spec's.
        view: how a prompt looks to the model.
    """

    run: Run
    spec: SampleSpec
    files: ModelFiles
    engine: Engine
    why: str
    dtype: str
    view: PromptTransform
    prompts: PromptBatchReader
    partition: Partition
    lineage: Lineage
    sampler_fingerprint: str

    @classmethod
    def of(
        cls,
        run: Run,
        spec: SampleSpec,
        *,
        partial: bool = False,
        date: str | None = None,
        continued: Sequence[Partition] = (),
    ) -> SamplingJob:
        """Resolve a spec; nothing is loaded or written.

        `date` is what a chat template that reads the clock takes for today, where the spec does not say. `continued`
        are partitions whose precision is kept, where the spec leaves it to us.

        Raises:
            NotReady: there are no finished prompts (or `partial`).
            ModelError: the model cannot be sampled from.
            UsageError, InputError: settings that do not go together, or a file that is not as it should be.
        """
        prompts = PromptBatchReader(run, spec.split, where=spec.where, limit=spec.limit, partial=partial)
        engine, why = choose_engine(spec.engine)
        _refuse_contradictions(spec, engine)
        files = _files(spec, engine)
        rendered = not spec.raw and (engine != "openai" or spec.tokenizer is not None)
        spec = dated(spec, [files] if rendered else [], date)
        view = PromptTransform.of(spec)
        if spec.search != "sample" and view.varies:
            raise UsageError(f"--search {spec.search} searches one prompt, and --preprompts gives each answer its own.")
        view.check(prompt for _, rows in prompts for prompt in rows)
        lineage = _lineage(run, spec, files, engine, view)
        law = spec.sampler_fingerprint(lineage.spec)
        dtype = in_the_same_precision(spec, continued).dtype
        return cls(run, spec, files, engine, why, dtype, view, prompts, partition_of(run, spec), lineage, law)

    @property
    def resample_below(self) -> int | None:
        """The limit under which a truncated answer is to be drawn again: the spec's own, where it is one number."""
        return self.spec.max_tokens if isinstance(self.spec.max_tokens, int) else None

    def check(self) -> bool:
        """Whether this continues what is there with a larger limit; raises where it cannot continue it at all.

        Raises:
            SpecConflict: a sampler of this name has other settings, or one of another name draws the same.
            InputError: the partition holds files that prefdata did not write.
        """
        self._refuse_twins()
        there = self.partition.lineage()
        redone = self.spec.retry_truncated and there is not None and there.format == self.lineage.format
        if there is None or there.fingerprint == self.lineage.fingerprint or not redone:
            self.partition.check(self.lineage)
            return False
        old, new = ({**one.spec, "max_tokens": None} for one in (there, self.lineage))
        if old != new:
            raise SpecConflict(
                f"{self.partition.path} was made with other settings ({describe_changes(old, new)}), and "
                "--retry-truncated changes --max-tokens alone. Give the new one another name."
            )
        if there.spec["max_tokens"] > self.spec.max_tokens:
            raise SpecConflict(
                f"{self.partition.path} was made with --max-tokens {there.spec['max_tokens']}: a retry needs more."
            )
        return True

    def _refuse_twins(self) -> None:
        for other in self.run.partitions("candidates"):
            said = other.lineage()
            if other.name != self.partition.name and said is not None and said.fingerprint == self.lineage.fingerprint:
                raise SpecConflict(
                    f"the sampler {other.name!r} has the same model, settings and seed, so that "
                    f"{self.partition.name!r} would draw the same candidates again. Continue it with --name "
                    f"{other.name}, or change --seed."
                )


def partition_of(run: Run, spec: SampleSpec) -> Partition:
    """Return where a spec's candidates go."""
    return run.partition("candidates", spec.name or name_of(spec.model))


def _files(spec: SampleSpec, engine: Engine) -> ModelFiles:
    if engine != "openai":
        return identify(spec.model, "causal-lm")
    from prefdata.engines.openai.generator import served

    return served(spec)


def _lineage(run: Run, spec: SampleSpec, files: ModelFiles, engine: str, view: PromptTransform) -> Lineage:
    """Return the sampler's identity: settings, weights, config, tokenizer and engine; not its path, name or count."""
    parents = {str(p): p.content for p in run.partitions("prompts")}
    resolved = {"format": FORMAT, "model": files.revision or spec.model, "engine": engine, **view.identity}
    if engine != "openai" or spec.tokenizer is not None:
        resolved["tokenizer"] = files.text_revision
    resolved |= template_identity(spec)
    if spec.lora is not None:
        resolved["lora"] = adapter_id(Path(spec.lora).expanduser())
    if spec.search != "sample":
        resolved["n"] = spec.n  # the best four beams of eight are not the beams of four
    return Lineage.of(spec, parents, resolved=resolved)


def _refuse_contradictions(spec: SampleSpec, engine: Engine) -> None:
    reject_unsupported_settings(spec, engine)
    if spec.search != "sample" and engine != "transformers":
        raise UsageError(f"--search {spec.search} is done by transformers. Add --engine transformers.")
    if spec.search != "sample" and any(is_spread(getattr(spec, name)) for name in SPREADABLE):
        raise UsageError(f"--search {spec.search} takes one value for each setting, not a list or a range.")
    if spec.retry_truncated and (is_spread(spec.max_tokens) or spec.search != "sample"):
        raise UsageError("--retry-truncated takes one --max-tokens, and works for --search sample.")
