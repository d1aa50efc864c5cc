"""A small run made by hand, without models: prompts, two samplers, scores, a selection and pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
from scored_runs import score_of

from prefdata import ids
from prefdata.pairs.pair import pair
from prefdata.selections.select import select
from prefdata.specs import IngestSpec, PairSpec, RankSpec, SampleSpec, SelectSpec
from prefdata.storage.report import Report
from prefdata.storage.run import Lineage, Run
from prefdata.storage.schemas import TABLES

SCORES = {"policy": [1.0, 3.0, 2.0], "tuned": [4.0, 3.0, 5.0]}
"""Scores of the three draws of each sampler, for each of the four prompts (prompt i adds i)."""


def fill(run: Run, table: str, name: str, spec, rows: list[dict]) -> None:
    report = Report(step=spec.step, unit="rows", rows_in=len(rows), rows_out=len(rows))
    run.partition(table, name).rewrite(TABLES[table].from_rows(rows), Lineage.of(spec), report)


def prompt(i: int) -> dict:
    messages = [{"role": "user", "content": f"Question {i}?"}]
    split = "test" if i == 3 else "train"
    return {"prompt_id": ids.prompt_id(messages), "messages": messages, "tags": [], "split": split}


def candidate(sampler: str, i: int, draw: int) -> dict:
    prompt_id = prompt(i)["prompt_id"]
    return {
        "candidate_id": ids.candidate_id(prompt_id, sampler, draw),
        "prompt_id": prompt_id,
        "sample_index": draw,
        "text": f"{sampler} answers {i} in draw {draw}.",
        "token_ids": [5, 6, 2],
        "status": "ok",
        "finish_reason": "stop",
        "prompt_tokens": 4,
        "completion_tokens": 3 + draw,
        "logprob_sum": -1.5,
        "model": f"models/{sampler}",
        "model_revision": "0" * 20,
        "engine": "transformers",
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "max_tokens": 8,
        "seed": 11,
        "round": 0,
    }


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    fill(run, "prompts", "asked", IngestSpec(), [prompt(i) for i in range(4)])
    scores = []
    for sampler, values in SCORES.items():
        rows = [candidate(sampler, i, draw) for i in range(4) for draw in range(3)]
        fill(run, "candidates", sampler, SampleSpec(model=sampler), rows)
        for row, (i, draw) in zip(rows, [(i, draw) for i in range(4) for draw in range(3)], strict=True):
            scores.append(score_of(row, sampler, values[draw] + i))
    fill(run, "scores", "rm", RankSpec(reward_model="rm"), scores)
    select(run, SelectSpec(method="best-of-n", sampler=("policy",), name="best"))
    select(run, SelectSpec(method="top-k", k=3, sampler=("policy",), name="top"))
    pair(run, PairSpec(selector="top", name="main"))
    return run
