"""Drawing: from what a job still lacks to rows in its partition, one stream from prompt to disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from prefdata import ids
from prefdata.candidates.existing import ExistingSamples
from prefdata.candidates.job import SPREADABLE, SamplingJob
from prefdata.chat.template import TemplateRefusal
from prefdata.engines.protocol import Completion, Generator, Rejection, Request, Sampling
from prefdata.errors import BadRow, BadRows
from prefdata.progress import Progress
from prefdata.specs.value_ranges import is_spread, value_of
from prefdata.storage.leased_work import LeasedWork
from prefdata.storage.leases import WorkLeases
from prefdata.storage.run import PartWriter

if TYPE_CHECKING:
    from prefdata.engines.hf.beam_search import BeamRequest

Planned = tuple[dict[str, Any], list[int]]
"""A prompt's row and the sample indices that are still to be drawn for it."""


@dataclass
class SampleStream:
    """One job at work.

    Attributes:
        flying: the rows to be, by the keys of the requests under way.
        done: candidates that are there, of all that were asked for.
        tokens: drawn by this process.
    """

    job: SamplingJob
    drawn: ExistingSamples
    claims: WorkLeases
    progress: Progress
    flying: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: int = 0
    tokens: int = 0

    def run(self, engine: Callable[[], Generator]) -> float:
        """Draw until nothing is missing, beside other processes if there are some; returns the seconds of drawing."""
        seconds = 0.0
        shares = LeasedWork(self.claims, lambda: self.job.prompts, self._missing, self.drawn.refresh)
        for one_pass in shares.passes():
            plan = self._plan(one_pass)
            head = next(plan, None)
            if head is not None:
                generator = engine()
                began = time.monotonic()
                self._draw(chain([head], plan), generator)
                seconds += time.monotonic() - began
        return seconds

    def _missing(self, prompts: list[dict[str, Any]]) -> list[Planned]:
        missing = self.drawn.missing([prompt["prompt_id"] for prompt in prompts], self.job.spec.n)
        return [(prompt, indices) for prompt, indices in zip(prompts, missing, strict=True) if indices]

    def _plan(self, shares: Iterable[tuple[list[dict[str, Any]], list[Planned]]]) -> Iterator[Planned]:
        self.done = 0
        for prompts, planned in shares:
            self.done += len(prompts) * self.job.spec.n - sum(len(indices) for _, indices in planned)
            yield from planned

    def _draw(self, plan: Iterator[Planned], generator: Generator) -> None:
        total = len(self.job.prompts) * self.job.spec.n
        self.progress(self.done, total)
        with PartWriter(self.job.partition) as appender:
            for answer in answers(generator, self._requests(plan, generator), self.job.spec.search != "sample"):
                begun = self.flying.pop(answer.key, None)
                if begun is None:  # a beam that was there already
                    continue
                row = finished_row(self.job, begun, answer)
                appender.add(row)
                self.done += 1
                self.tokens += row["completion_tokens"] or 0
                self.progress(self.done, total, tokens=self.tokens)

    def _requests(self, plan: Iterator[Planned], generator: Generator) -> Iterator[Request | BeamRequest | Rejection]:
        request_of = Requests(self.job, generator)
        for prompt, indices in plan:
            for row, request in request_of(prompt, indices):
                self.flying |= row
                yield request


class Requests:
    """Requests for the samples of a prompt, each with the row that it is to become."""

    def __init__(self, job: SamplingJob, generator: Generator) -> None:
        """For a job on a loaded engine."""
        self._job, self._generator = job, generator
        spec = job.spec
        self._fixed = {name: getattr(spec, name) for name in SPREADABLE if not is_spread(getattr(spec, name))}
        self._spread = {name: getattr(spec, name) for name in SPREADABLE if is_spread(getattr(spec, name))}
        self._common = {
            "model": generator.model.name,
            "model_revision": generator.model.revision or None,
            "engine": generator.name,
            "round": spec.round,
        }
        self._sampling = None if self._spread else self._sampling_of(self._fixed)

    def __call__(
        self, prompt: dict[str, Any], indices: list[int]
    ) -> Iterator[tuple[dict[str, dict[str, Any]], Request | BeamRequest | Rejection]]:
        """Yield the requests for these samples, each with its rows by key; what cannot be requested is a Rejection."""
        seen: RenderedPrompt | None = None
        rows: dict[str, dict[str, Any]] = {}
        for index in indices:
            if seen is None or self._job.view.varies:
                seen = self.seen(prompt, index)
            row = self._row(prompt, seen, index)
            key = row["candidate_id"]
            if seen.refusal is not None:
                yield {key: row}, Rejection(key, "rejected", seen.refusal)
            elif self._job.spec.search != "sample":
                rows[key] = row
            else:
                sampling = self._sampling or self._sampling_of(row)
                yield {key: row}, Request(key, seen.ids, row["seed"], sampling, seen.messages, prompt["tools"])
        if seen is not None and rows:
            yield rows, self._beams(prompt, seen)

    def _beams(self, prompt: dict[str, Any], seen: RenderedPrompt) -> BeamRequest:
        """Return the beam search for a prompt: always for all of its responses, as one beam alone does not exist."""
        from prefdata.engines.hf.beam_search import BeamRequest

        spec = self._job.spec
        sampler = self._job.sampler_fingerprint
        keys = tuple(ids.candidate_id(prompt["prompt_id"], sampler, index) for index in range(spec.n))
        penalty = spec.diversity_penalty if spec.search == "diverse-beam" else None
        return BeamRequest(keys, seen.ids, self._sampling_of(self._fixed), penalty)

    def seen(self, prompt: dict[str, Any], index: int) -> RenderedPrompt:
        """Return the prompt as the model sees it, in this job's view and truncated by the job's settings."""
        job = self._job
        uniform = 0.5
        if job.view.varies:
            uniform = ids.unit_uniform(job.spec.seed, prompt["prompt_id"], job.sampler_fingerprint, index, "view")
        changed = job.view.messages(prompt, uniform)
        messages = tuple(prompt["messages"] if changed is None else changed)
        try:
            rendered = self._generator.render(messages, prompt["tools"])
        except TemplateRefusal as error:
            return RenderedPrompt(messages, changed, refusal=str(error))
        kept, note = fitted(rendered, self._generator.context_length, job)
        return RenderedPrompt(messages, changed, kept, note)

    def _row(self, prompt: dict[str, Any], seen: RenderedPrompt, index: int) -> dict[str, Any]:
        spec, law, prompt_id = self._job.spec, self._job.sampler_fingerprint, prompt["prompt_id"]
        row = {
            **self._common,
            **self._fixed,
            "candidate_id": ids.candidate_id(prompt_id, law, index),
            "prompt_id": prompt_id,
            "sample_index": index,
            "prompt_tokens": len(seen.ids) if self._generator.renders else None,
            "seed": ids.seed(spec.seed, prompt_id, law, index),
            "sampled_messages": seen.changed,
            "detail": seen.detail,
        }
        for name, setting in self._spread.items():
            row[name] = value_of(setting, index, ids.unit_uniform(spec.seed, prompt_id, law, index, name))
        return row

    def _sampling_of(self, row: dict[str, Any]) -> Sampling:
        spec = self._job.spec
        return Sampling(**{name: row[name] for name in SPREADABLE}, stop=spec.stop, logprobs=spec.logprobs)


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A prompt as the model sees it; `changed` are its messages where they differ from the prompt's own."""

    messages: tuple[Any, ...]
    changed: list[dict[str, str]] | None
    ids: tuple[int, ...] = ()
    detail: str | None = None
    refusal: str | None = None


def fitted(rendered: tuple[int, ...], context: int | None, job: SamplingJob) -> tuple[tuple[int, ...], str | None]:
    """Return a prompt's tokens, truncated to leave room for a response where the job allows it, and a note on the cut.

    The newest tokens are kept, and a first token that begins every text (BOS).
    """
    if job.spec.on_long != "truncate-left" or context is None or len(rendered) < context:
        return rendered, None
    longest = job.resample_below or context
    keep = context - min(longest, context // 2)
    cut = len(rendered) - keep
    return rendered[:1] + rendered[
        cut + 1 :
    ], f"the first {cut} of {len(rendered)} prompt tokens (except BOS) were truncated"


def refuse_long(job: SamplingJob, generator: Generator) -> None:
    """Render every prompt, and refuse the job if some have no room for an answer (`--on-long error`).

    Raises:
        BadRows: which prompts, and how long they are.
    """
    requests, context, long, row = Requests(job, generator), generator.context_length, list[BadRow](), 0
    for prompts in (prompts for _, prompts in job.prompts):
        for prompt in prompts:
            row += 1
            tokens = len(requests.seen(prompt, 0).ids)
            if context is not None and tokens >= context:
                said = f"{prompt['prompt_id']} has {tokens} tokens in a context of {context}"
                long.append(BadRow(f"{job.run}/prompts", row, said))
    if long:
        raise BadRows(long, hint="Nothing was drawn; shorten them, or use --on-long skip or truncate-left.")


def answers(
    generator: Generator, requests: Iterable[Request | BeamRequest | Rejection], search: bool = False
) -> Iterator[Completion | Rejection]:
    """Yield the engine's completions, and between them the prompts that were rejected before they reached it."""
    rejected: list[Rejection] = []

    def accepted() -> Iterator[Any]:
        for request in requests:
            if isinstance(request, Rejection):
                rejected.append(request)
            else:
                yield request

    # Only the embedded engine searches; a job that asks another one for it was refused.
    source: Any = generator.beams if search else generator.generate  # type: ignore[attr-defined]
    for answer in source(accepted()):
        yield answer
        while rejected:
            yield rejected.pop()
    yield from rejected


def finished_row(job: SamplingJob, row: dict[str, Any], answer: Completion | Rejection) -> dict[str, Any]:
    """Return the row of a candidate: what was known before, with the engine's completion or rejection.

    The id of a truncated response covers its limit too: with a larger one it is another text, and no text may
    carry another's id.
    """
    if isinstance(answer, Rejection):
        return {**row, "status": answer.status, "detail": answer.detail, "completion_tokens": 0}
    tokens = answer.completion_tokens if answer.token_ids is None else len(answer.token_ids)
    row = {
        **row,
        "status": "ok",
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": row["prompt_tokens"] if answer.prompt_tokens is None else answer.prompt_tokens,
        "completion_tokens": tokens,
        "logprob_sum": answer.logprob_sum,
        "logprobs": answer.logprobs,
    }
    if answer.finish_reason == "length":
        row["candidate_id"] = cut_off_id(
            row["prompt_id"], job.sampler_fingerprint, row["sample_index"], row["max_tokens"]
        )
    return row


def cut_off_id(prompt_id: str, law: str, index: int, max_tokens: int) -> str:
    """Return the id of a response that was truncated at `max_tokens`."""
    return ids.candidate_id(prompt_id, ids.digest([law, max_tokens]), index)
