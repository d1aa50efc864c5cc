"""sample: prompts in, candidates out.

Every candidate has its own seed, made from the run's seed, its prompt, its sampler and its index, and is named by the
same. So it does not matter in which order, batch or process candidates are drawn, or how often the work was stopped:
what is missing is drawn, what is there stays. Raising `n` draws the further ones, new prompts draw theirs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import polars as pl

from prefdata import ids
from prefdata.engines import Engine, choose_engine, open_generator
from prefdata.engines.protocol import Completion, Generator, Rejection, Request, Sampling, TemplateRefusal
from prefdata.errors import SpecConflict
from prefdata.model_files import ModelFiles, identify
from prefdata.progress import Progress, quiet
from prefdata.reports import Report
from prefdata.specs import SampleSpec
from prefdata.spreads import is_spread, value_of
from prefdata.store import Appender, Lineage, Outcome, Partition, Run, name_of
from prefdata.views import blank, read_prompts

Planned = tuple[dict[str, Any], list[int]]
"""A prompt's row and the sample indices that are still to be drawn for it."""


def sample(
    run: Run, spec: SampleSpec, *, replace: bool = False, partial: bool = False, progress: Progress = quiet
) -> Outcome:
    """Draw the candidates that are missing, and store them as `RUN/candidates/sampler=NAME`.

    Raises:
        NotReady: there are no finished prompts (or `partial`).
        SpecConflict: a sampler of this name has other settings, or one of another name has the same.
        ModelError: the model cannot be sampled from.
    """
    prompts = read_prompts(run, spec.split, partial=partial)
    files = identify(spec.model, "causal-lm")
    engine, why = choose_engine(spec.engine)
    lineage = lineage_of(run, spec, files, engine)
    partition = run.partition("candidates", spec.name or name_of(spec.model))
    _refuse_twins(run, partition, lineage)
    if not replace:
        partition.check(lineage)
    plan = list(missing(prompts, spec.n, lineage.fingerprint, set() if replace else _there(partition)))
    success = partition.success()
    if not plan and success is not None and not replace:
        return Outcome(success.report, partition.path, "kept")
    began = time.monotonic()
    state = partition.begin(lineage, replace=replace)
    partition.reopen()
    said = {"engine": f"{engine} ({why})"}
    if plan:
        said |= _draw(partition, plan, spec, files, engine, lineage.fingerprint, progress)
    report = account(partition, prompts.height * spec.n).timed(time.monotonic() - began, **said)
    partition.finish(report)
    return Outcome(report, partition.path, "made" if state == "absent" else "continued")


def dry_run(run: Run, spec: SampleSpec) -> dict[str, Any]:
    """What `sample` would do: the first prompt as the model sees it, with its token ids, and how much there is to draw.

    Raises:
        NotReady: there are no prompts yet.
        ModelError: the model cannot be sampled from.
    """
    from prefdata.engines.chat import Chat

    prompts = read_prompts(run, spec.split, partial=True)
    files = identify(spec.model, "causal-lm")
    engine, why = choose_engine(spec.engine)
    lineage = lineage_of(run, spec, files, engine)
    partition = run.partition("candidates", spec.name or name_of(spec.model))
    plan = list(missing(prompts, spec.n, lineage.fingerprint, _there(partition)))
    first = prompts.row(0, named=True)
    chat = Chat.load(files.folder(), name=files.name, raw=spec.raw)
    return {
        "partition": str(partition),
        "state": partition.state,
        "engine": f"{engine} ({why})",
        "model": f"{files.name} @ {files.revision}",
        "prompts": prompts.height,
        "candidates_to_draw": sum(len(indices) for _, indices in plan),
        "first_prompt": first["prompt_id"],
        "rendered": chat.text(first["messages"], first["tools"], answer_next=True),
        "token_ids": list(chat.prompt_ids(first["messages"], first["tools"])),
    }


def lineage_of(run: Run, spec: SampleSpec, files: ModelFiles, engine: str) -> Lineage:
    """The sampler's identity: settings, weights, tokenizer and engine; not the path, the name or how many."""
    parents = {str(p): p.content for p in run.partitions("prompts")}
    resolved = {"model": files.revision, "tokenizer": files.text_revision, "engine": engine}
    return Lineage.of(spec, parents, resolved=resolved)


def missing(prompts: pl.DataFrame, n: int, sampler: str, there: set[str]) -> Iterator[Planned]:
    """What is still to be drawn: each prompt with the indices whose candidates are not `there`."""
    for prompt in prompts.iter_rows(named=True):
        indices = [i for i in range(n) if ids.candidate_id(prompt["prompt_id"], sampler, i) not in there]
        if indices:
            yield prompt, indices


def account(partition: Partition, asked: int) -> Report:
    """The Report of a sampler: every candidate asked for is a row, answered or not, and the figures say which."""
    rows = pl.from_arrow(partition.read(["status", "finish_reason", "text", "completion_tokens"]))
    assert isinstance(rows, pl.DataFrame)
    ok = rows.filter(pl.col("status") == "ok")
    refused = dict(rows.filter(pl.col("status") != "ok")["status"].value_counts(name="n").iter_rows())
    return Report(
        step="sample",
        unit="candidates",
        rows_in=max(asked, rows.height),
        rows_out=rows.height,
        dropped={"unanswered": asked - rows.height} if asked > rows.height else {},
        figures={
            "truncated": ok.filter(pl.col("finish_reason") == "length").height,
            "empty": ok.filter(blank("text")).height,
            **refused,
            "tokens": int(rows["completion_tokens"].sum()),
            "mean_tokens": round(int(ok["completion_tokens"].sum()) / max(ok.height, 1), 2),
        },
    )


def _there(partition: Partition) -> set[str]:
    return set(partition.read(["candidate_id"])["candidate_id"].to_pylist())


def _refuse_twins(run: Run, partition: Partition, lineage: Lineage) -> None:
    for other in run.partitions("candidates"):
        said = other.lineage()
        if other.name != partition.name and said is not None and said.fingerprint == lineage.fingerprint:
            raise SpecConflict(
                f"the sampler {other.name!r} has the same model, settings and seed, so that {partition.name!r} would "
                f"draw the same candidates again. Continue it with --name {other.name}, or change --seed."
            )


def _draw(
    partition: Partition,
    plan: list[Planned],
    spec: SampleSpec,
    files: ModelFiles,
    engine: Engine,
    fingerprint: str,
    progress: Progress,
) -> dict[str, Any]:
    """Draw and store what is planned; returns the tokens a second, the engine's start aside, and the engine's notes."""
    total, done, tokens = sum(len(indices) for _, indices in plan), 0, 0
    generator = open_generator(spec, files, engine)
    flying: dict[str, dict[str, Any]] = {}
    began = time.monotonic()
    progress(0, total)
    try:
        with Appender(partition) as appender:
            for answer in _answers(generator, _requests(plan, spec, generator, fingerprint, flying)):
                row = _row(flying.pop(answer.key), answer)
                appender.add(row)
                done, tokens = done + 1, tokens + row["completion_tokens"]
                progress(done, total, tokens=tokens)
    finally:
        generator.close()
    said: dict[str, Any] = {"tokens_per_second": round(tokens / (time.monotonic() - began), 1)}
    return said | ({"note": " ".join(generator.notes)} if generator.notes else {})


def _answers(generator: Generator, requests: Iterable[Request | Rejection]) -> Iterator[Completion | Rejection]:
    """The engine's answers, and between them the prompts that never reached it."""
    rejected: list[Rejection] = []

    def accepted() -> Iterator[Request]:
        for request in requests:
            if isinstance(request, Rejection):
                rejected.append(request)
            else:
                yield request

    for answer in generator.generate(accepted()):
        yield answer
        while rejected:
            yield rejected.pop()
    yield from rejected


def _requests(
    plan: list[Planned], spec: SampleSpec, generator: Generator, fingerprint: str, flying: dict[str, dict[str, Any]]
) -> Iterator[Request | Rejection]:
    common = {
        "model": generator.model.name,
        "model_revision": generator.model.revision,
        "engine": generator.name,
        "round": spec.round,
        "sampled_messages": None,
    }
    for prompt, indices in plan:
        try:
            prompt_ids, refusal = generator.render(prompt["messages"], prompt["tools"]), None
        except TemplateRefusal as error:
            prompt_ids, refusal = (), str(error)
        for index in indices:
            key = ids.candidate_id(prompt["prompt_id"], fingerprint, index)
            seed = ids.seed(spec.seed, prompt["prompt_id"], fingerprint, index)
            settings = settings_of(spec, prompt["prompt_id"], fingerprint, index)
            sampling = Sampling(**settings, stop=spec.stop, logprobs=spec.logprobs)
            flying[key] = {
                **common,
                **settings,
                "candidate_id": key,
                "prompt_id": prompt["prompt_id"],
                "sample_index": index,
                "prompt_tokens": len(prompt_ids),
                "seed": seed,
            }
            if refusal is None:
                yield Request(key, prompt_ids, seed, sampling, tuple(prompt["messages"]), prompt["tools"])
            else:
                yield Rejection(key, "rejected", refusal)


def _row(common: dict[str, Any], answer: Completion | Rejection) -> dict[str, Any]:
    if isinstance(answer, Rejection):
        return {**common, "status": answer.status, "detail": answer.detail, "completion_tokens": 0}
    return {
        **common,
        "status": "ok",
        "text": answer.text,
        "token_ids": None if answer.token_ids is None else list(answer.token_ids),
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens if answer.prompt_tokens is not None else common["prompt_tokens"],
        "completion_tokens": answer.completion_tokens if answer.token_ids is None else len(answer.token_ids),
        "logprob_sum": answer.logprob_sum,
        "logprobs": None if answer.logprobs is None else list(answer.logprobs),
    }


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
"""Settings that may differ between the candidates of one sampler."""


def settings_of(spec: SampleSpec, prompt_id: str, sampler: str, index: int) -> dict[str, Any]:
    """The sampling settings of one candidate, drawn by its key where the spec gives a list or a range."""
    return {
        name: value_of(setting, index, ids.unit_uniform(spec.seed, prompt_id, sampler, index, name))
        if is_spread(setting := getattr(spec, name))
        else setting
        for name in SPREADABLE
    }
