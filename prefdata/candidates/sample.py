"""sample: prompts in, candidates out.

Every candidate has its own seed, made from the run's seed, its prompt, its sampler and its index, and is named by the
same. So it does not matter in which order, batch or process candidates are drawn, or how often the work was stopped:
what is missing is drawn, what is there stays. Raising `n` draws the further ones, new prompts draw theirs, and several
processes that are given the same command share the work.

    jobs.py      a sampler, resolved: what is to be drawn, by what, and where it goes
    drawn.py     what is there already
    drawing.py   one stream from prompt to disk
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from itertools import product
from typing import Any

import polars as pl

from prefdata.candidates.existing import ExistingSamples
from prefdata.candidates.job import SPREADABLE, SamplingJob, partition_of
from prefdata.candidates.stream import SampleStream, refuse_long
from prefdata.chat.clock import began_on
from prefdata.engines.open import open_generator
from prefdata.engines.protocol import Generator
from prefdata.engines.restart import with_restart
from prefdata.errors import SpecConflict, UsageError, did_you_mean
from prefdata.progress import Progress, Watch, watched
from prefdata.specs import SampleSpec
from prefdata.storage.compaction import compact
from prefdata.storage.leases import WorkLeases
from prefdata.storage.queries import blank
from prefdata.storage.report import Report
from prefdata.storage.run import Outcome, Partition, Run, name_of
from prefdata.storage.schemas import read_part

KEY = ("prompt_id", "sample_index")
"""What a sampler has one row of: an answer that was drawn again, longer, replaces the shorter one."""


def sample(
    run: Run, spec: SampleSpec, *, replace: bool = False, partial: bool = False, progress: Watch = False
) -> Outcome:
    """Draw the candidates that are missing, and store them as `RUN/candidates/sampler=NAME`.

    Raises:
        NotReady: there are no finished prompts (or `partial`).
        SpecConflict: a sampler of this name has other settings, or one of another name has the same.
        ModelError: the model cannot be sampled from.
    """
    if spec.sweep:
        raise UsageError("a sweep is several samplers: give samples(run, swept(spec)).")
    (outcome,) = sample_many(run, [spec], replace=replace, partial=partial, progress=progress)
    return outcome


def sample_many(
    run: Run,
    specs: list[SampleSpec],
    *,
    replace: bool = False,
    partial: bool = False,
    progress: Watch = False,
    load: Callable[[SamplingJob], Generator] | None = None,
) -> list[Outcome]:
    """`sample` for several specs of one model, which is loaded once; `load` opens another engine than ours.

    Raises:
        As `sample`; before anything is drawn, if one of them cannot be.
    """
    begun = [] if replace else [partition_of(run, spec) for spec in specs]
    jobs = [SamplingJob.of(run, spec, partial=partial, date=began_on(begun), continued=begun) for spec in specs]
    retries = [False if replace else job.check() for job in jobs]
    with watched(progress, "sample") as watch, closing(_Engine(jobs[0], load or _load, watch)) as engine:
        return [_sample(job, engine, replace, retry, watch) for job, retry in zip(jobs, retries, strict=True)]


def expand_sweep(spec: SampleSpec) -> list[SampleSpec]:
    """Return the samplers that a spec defines: itself, or one per value of `--sweep SETTING=A,B,…`, all sweeps crossed.

    Raises:
        UsageError: the setting is unknown, or a value is not one of its.
    """
    if not spec.sweep:
        return [spec]
    axes = []
    for setting in spec.sweep:
        name, _, values = setting.partition("=")
        name = name.strip().replace("-", "_")
        if name not in SPREADABLE:
            raise UsageError(
                f"--sweep {setting}: there is no setting {name!r} to sweep.{did_you_mean(name, SPREADABLE)}"
            )
        axes.append([(name, value.strip()) for value in values.split(",") if value.strip()])
        if not axes[-1]:
            raise UsageError(f"--sweep {setting}: give values, as in --sweep temperature=0.7,1.0,1.3.")
    base, given = spec.name or name_of(spec.model), spec.model_dump()
    return [
        SampleSpec.parse(
            {**given, **dict(chosen), "sweep": (), "name": "-".join([base, *(f"{n}-{v}" for n, v in chosen)])},
            where="--sweep",
        )
        for chosen in product(*axes)
    ]


def dry_run(run: Run, spec: SampleSpec) -> dict[str, Any]:
    """Return what `sample` would do: the first prompt as the model sees it, with its token ids, and the sample counts.

    Raises:
        NotReady: there are no prompts yet.
        ModelError: the model cannot be sampled from.
    """
    from prefdata.chat.encoder import Chat

    job = SamplingJob.of(run, spec, partial=True, date=began_on([partition_of(run, spec)]))
    drawn = ExistingSamples(job.partition, job.resample_below)
    first = next(iter(job.prompts))[1][0]
    messages = job.view.messages(first, 0.5) or first["messages"]
    shown = {
        "partition": str(job.partition),
        "state": job.partition.state,
        "engine": f"{job.engine} ({job.why})",
        "model": f"{job.files.name} @ {job.files.revision}",
        "prompts": len(job.prompts),
        "candidates_per_prompt": spec.n,
        "candidates_to_draw": _missing(job, drawn),
        "first_prompt": first["prompt_id"],
    }
    if job.engine == "openai" and spec.tokenizer is None:
        return shown | {"messages": [dict(message) for message in messages]}
    chat = Chat.of(job.files, raw=spec.raw, choice=job.spec.template_choice)
    return shown | {
        "rendered": chat.text(messages, first["tools"], answer_next=True),
        "token_ids": list(chat.prompt_ids(messages, first["tools"])),
    }


def account(partition: Partition, asked: int) -> Report:
    """Build the Report of a sampler: one row per candidate, complete or rejected, with counts by outcome."""
    columns = ["status", "finish_reason", "text", "completion_tokens"]
    counts: dict[str, int] = {"rows": 0, "ok": 0, "truncated": 0, "empty": 0, "tokens": 0}
    refused: dict[str, int] = {}
    for part in partition.checked_parts():
        rows = read_part(part, columns)
        ok = rows.filter(pl.col("status") == "ok")
        counts["rows"] += rows.height
        counts["ok"] += ok.height
        counts["truncated"] += ok.filter(pl.col("finish_reason") == "length").height
        counts["empty"] += ok.filter(blank("text")).height
        counts["tokens"] += int(ok["completion_tokens"].sum())
        for status, number in rows.filter(pl.col("status") != "ok")["status"].value_counts(name="n").iter_rows():
            refused[status] = refused.get(status, 0) + number
    return Report(
        step="sample",
        unit="candidates",
        rows_in=max(asked, counts["rows"]),
        rows_out=counts["rows"],
        dropped={"unanswered": asked - counts["rows"]} if asked > counts["rows"] else {},
        figures={
            "truncated": counts["truncated"],
            "empty": counts["empty"],
            **dict(sorted(refused.items())),
            "tokens": counts["tokens"],
            "mean_tokens": round(counts["tokens"] / max(counts["ok"], 1), 2),
        },
    )


def _load(job: SamplingJob) -> Generator:
    return open_generator(job.spec.model_copy(update={"dtype": job.dtype}), job.files, job.engine)


class _Engine:
    """The generator of some jobs, loaded when the first candidate is to be drawn, and raised when it dies."""

    def __init__(self, job: SamplingJob, load: Callable[[SamplingJob], Generator], progress: Progress) -> None:
        self._job, self._load, self._progress = job, load, progress
        self._open: Generator | None = None

    def __call__(self) -> Generator:
        if self._open is None:
            job, load = self._job, self._load
            self._progress.phase("loading the model")
            self._open = with_restart(lambda: load(job)) if job.spec.search == "sample" else load(job)
        return self._open

    @property
    def notes(self) -> tuple[str, ...]:
        return () if self._open is None else self._open.notes

    @property
    def computed(self) -> dict[str, str]:
        return {} if self._open is None else self._open.computed

    def close(self) -> None:
        if self._open is not None:
            self._open.close()


def _sample(job: SamplingJob, engine: _Engine, replace: bool, retry: bool, progress: Progress) -> Outcome:
    partition = job.partition
    success = partition.success()
    drawn = ExistingSamples(None if replace else partition, job.resample_below)
    if success is not None and not replace and partition.intact and not _missing(job, drawn):
        return Outcome(success.report, partition.path, "kept")
    began = time.monotonic()
    generator = engine()  # before anything is written: an engine that cannot start leaves nothing behind
    progress.phase(f"sampling {partition.name}")
    if job.spec.on_long == "error":
        refuse_long(job, generator)
    claims = WorkLeases(partition.path)
    if replace and (busy := claims.busy()):
        raise SpecConflict(f"another process draws into {partition.path} ({busy}): stop it before you --replace.")
    state = partition.begin(job.lineage.computing(generator.computed), replace=replace, revise=retry)
    with claims:
        claims.wait_for_the_last()
        partition.reopen()
        drawing = SampleStream(job, drawn, claims, progress)
        seconds = drawing.run(engine)
        last = claims.last()
        asked = len(job.prompts) * job.spec.n
        if last:
            compact(partition, KEY)
            partition.refuse_lost(_missing(job, ExistingSamples(partition, job.resample_below)), asked)
        report = account(partition, asked)
        report = report.timed(time.monotonic() - began, **_said(job, engine, drawing, seconds, last))
        if last:
            report = report.failed(_why_none(partition))
            partition.finish(report)
    return Outcome(report, partition.path, "made" if state == "absent" else "continued")


def _missing(job: SamplingJob, drawn: ExistingSamples) -> int:
    """How many of the candidates that were asked for have no row."""
    return sum(sum(map(len, drawn.missing([p["prompt_id"] for p in some], job.spec.n))) for _, some in job.prompts)


def _why_none(partition: Partition) -> str:
    """Why no candidate has a response, where none has one."""
    reasons: dict[str, int] = {}
    for part in partition.parts():
        rows = read_part(part, ["status", "detail"])
        if (rows["status"] == "ok").any():
            return ""
        for status, detail in rows.iter_rows():
            reasons[detail or status] = reasons.get(detail or status, 0) + 1
    if not reasons:
        return ""
    first, *others = reasons
    why = f"first error: {first}" if others else f"all for one reason: {first}"
    return f"no request was answered, {why}. Correct it and run the same command with --replace."


def _said(job: SamplingJob, engine: _Engine, drawing: SampleStream, seconds: float, last: bool) -> dict[str, Any]:
    """Return the report's extras: the engine, tokens per second (without its start), and the notes."""
    extras: dict[str, Any] = {"engine": f"{job.engine} ({job.why})", **engine.computed}
    if drawing.tokens:
        extras["tokens_per_second"] = round(drawing.tokens / seconds, 1)
    notes = list(engine.notes)
    if job.spec.repeats_itself:
        notes.append(f"The {job.spec.n} answers of a prompt are one: sample at a --temperature above 0, or with -n 1.")
    if not last:
        notes.append("Another process is still at work here, and will finish it.")
    return extras | ({"note": " ".join(notes)} if notes else {})
