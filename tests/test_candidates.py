"""sample: every candidate by its own seed, what is missing is drawn, what is there stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prefdata import ids
from prefdata.candidates import dry_run, sample
from prefdata.errors import InputError, ModelError, NotReady, SpecConflict, UsageError
from prefdata.prompts import ingest
from prefdata.specs import IngestSpec, SampleSpec
from prefdata.store import Run
from prefdata.tables import CANDIDATES

Row = dict
TEXTS = ["Say one.", "Sag etwas Längeres auf Deutsch, bitte.", "说点什么", "🎬", "tell\x07 me\n\nmore " * 3]


def write(path: Path, prompts: list[str]) -> str:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts), encoding="utf-8")
    return str(path)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    ingest(run, [write(tmp_path / "asked.jsonl", TEXTS)], IngestSpec(test=0.4))
    return run


@pytest.fixture
def spec(tiny_policy: Path) -> Callable[..., SampleSpec]:
    def make(**said) -> SampleSpec:
        return SampleSpec(**{"model": str(tiny_policy), "n": 4, "max_tokens": 12, "name": "s", **said})

    return make


def rows(run: Run, name: str = "s") -> dict[str, Row]:
    return {row["candidate_id"]: row for row in run.partition("candidates", name).read().to_pylist()}


def test_what_is_stored(run: Run, spec, tiny_policy: Path) -> None:
    done = sample(run, spec())
    assert (done.did, done.report.rows_in, done.report.rows_out) == ("made", 20, 20)
    found = rows(run)
    assert len(found) == 20
    fingerprint = run.partition("candidates", "s").lineage().fingerprint
    for row in found.values():
        assert row["candidate_id"] == ids.candidate_id(row["prompt_id"], fingerprint, row["sample_index"])
        assert row["seed"] == ids.seed(0, row["prompt_id"], fingerprint, row["sample_index"])
        assert row["completion_tokens"] == len(row["token_ids"]) <= 12
        assert row["finish_reason"] == ("stop" if row["token_ids"][-1] in (2, 3) else "length")
        assert row["logprob_sum"] < 0
        assert (row["status"], row["engine"], row["model"]) == ("ok", "transformers", str(tiny_policy))
        assert (row["temperature"], row["top_p"], row["top_k"], row["max_tokens"]) == (1.0, 1.0, 0, 12)
    assert len({row["text"] for row in found.values()}) > 15


def test_the_same_command_again_does_nothing(run: Run, spec) -> None:
    sample(run, spec())
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    assert sample(run, spec()).did == "kept"
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_four_then_eight_is_eight_at_once(run: Run, spec, tmp_path: Path) -> None:
    sample(run, spec(n=4))
    first = rows(run)
    done = sample(run, spec(n=8))
    assert done.did == "continued"
    at_once = Run(tmp_path / "other")
    ingest(at_once, [str(tmp_path / "asked.jsonl")], IngestSpec(test=0.4))
    sample(at_once, spec(n=8))
    assert rows(run) == rows(at_once)
    assert first.items() <= rows(run).items()


def test_new_prompts_get_theirs_and_no_other_is_drawn_again(run: Run, spec, tmp_path: Path) -> None:
    sample(run, spec())
    parts = {p.name: p.read_bytes() for p in run.partition("candidates", "s").parts()}
    ingest(run, [write(tmp_path / "more.jsonl", ["Another one.", TEXTS[0]])], IngestSpec())
    assert sample(run, spec()).report.rows_out == 24
    assert {p.name: p.read_bytes() for p in run.partition("candidates", "s").parts()}.items() >= parts.items()


def test_batches_and_order_of_prompts_do_not_matter(run: Run, spec, tmp_path: Path) -> None:
    sample(run, spec())
    other = Run(tmp_path / "other")
    ingest(other, [write(tmp_path / "asked.jsonl", TEXTS[::-1])], IngestSpec(test=0.4))
    sample(other, spec(batch_tokens=200))
    for key, row in rows(run).items():
        assert all(row[name] == rows(other)[key][name] for name in ("text", "token_ids", "finish_reason"))
        assert row["logprob_sum"] == pytest.approx(rows(other)[key]["logprob_sum"], abs=1e-4)


def test_one_split_and_then_the_other(run: Run, spec) -> None:
    test = sample(run, spec(split="test"))
    assert 0 < test.report.rows_out < 20
    assert sample(run, spec(split="all")).report.rows_out == 20


def test_other_settings_under_the_same_name(run: Run, spec) -> None:
    sample(run, spec())
    before = rows(run)
    with pytest.raises(SpecConflict, match=r"temperature: 1\.0 -> 0\.7.*--replace"):
        sample(run, spec(temperature=0.7))
    assert rows(run) == before
    sample(run, spec(temperature=0.7), replace=True)
    assert not before.keys() & rows(run).keys()


def test_the_same_settings_under_another_name(run: Run, spec) -> None:
    sample(run, spec())
    with pytest.raises(SpecConflict, match="'s' has the same model"):
        sample(run, spec(name="twin"))


def test_a_model_that_moved_is_the_same_model(run: Run, spec, tiny_policy: Path, tmp_path: Path) -> None:
    sample(run, spec())
    moved = tmp_path / "moved"
    moved.symlink_to(tiny_policy)
    assert sample(run, spec(model=str(moved))).did == "kept"


def test_interrupted_between_parts(run: Run, spec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An engine that dies half-way: what it had answered is kept, the rest is drawn by the next command."""
    from prefdata.engines.transformers import TransformersGenerator
    from prefdata.errors import EngineError

    real = TransformersGenerator.generate

    def dies(self, requests):
        for i, answer in enumerate(real(self, requests)):
            if i == 7:
                raise EngineError("the engine died")
            yield answer

    monkeypatch.setattr(TransformersGenerator, "generate", dies)
    with pytest.raises(EngineError):
        sample(run, spec())
    partition = run.partition("candidates", "s")
    assert partition.state == "unfinished"
    assert len(rows(run)) == 7
    monkeypatch.setattr(TransformersGenerator, "generate", real)
    assert sample(run, spec()).did == "continued"
    other = Run(tmp_path / "other")
    ingest(other, [str(tmp_path / "asked.jsonl")], IngestSpec(test=0.4))
    sample(other, spec())
    mine, whole = rows(run), rows(other)
    assert {k: (r["text"], r["seed"]) for k, r in mine.items()} == {k: (r["text"], r["seed"]) for k, r in whole.items()}


def test_prompts_that_cannot_be_answered_are_rows(run: Run, spec, tmp_path: Path) -> None:
    long = [{"role": "user", "content": "x" * 500}]
    turns = [("user", "a"), ("assistant", "b"), ("tool", "c"), ("assistant", "d"), ("user", "e")]
    strange = [{"role": role, "content": content} for role, content in turns]
    file = tmp_path / "odd.jsonl"
    file.write_text("".join(json.dumps({"messages": m}) + "\n" for m in (long, strange)))
    ingest(run, [str(file)], IngestSpec())
    done = sample(run, spec(n=2))
    assert done.report.rows_out == 14
    assert done.report.figures["prompt_too_long"] == 2
    assert done.report.figures["rejected"] == 2
    refused = [row for row in rows(run).values() if row["status"] != "ok"]
    assert all(
        row["text"] is None and row["completion_tokens"] == 0 and row["finish_reason"] is None for row in refused
    )


def test_greedy(run: Run, spec) -> None:
    sample(run, spec(temperature=0.0, n=2))
    by_prompt: dict[str, set] = {}
    for row in rows(run).values():
        by_prompt.setdefault(row["prompt_id"], set()).add(row["text"])
    assert all(len(texts) == 1 for texts in by_prompt.values())


def test_dry_run_draws_nothing(run: Run, spec) -> None:
    told = dry_run(run, spec())
    assert told["candidates_to_draw"] == 20
    assert told["rendered"] == "<bos>[user] Say one.<eot>[assistant] "
    assert told["token_ids"][0] == 1
    assert told["token_ids"].count(1) == 1
    assert not (run.path / "candidates").exists()


def test_before_there_are_prompts(tmp_path: Path, spec) -> None:
    with pytest.raises(NotReady, match="prefdata ingest"):
        sample(Run(tmp_path / "none"), spec())
    assert not (tmp_path / "none").exists()


def test_bad_models(run: Run, spec, tiny_reward_model: Path, tmp_path: Path) -> None:
    for model, said in ((str(tiny_reward_model), "causal"), (str(tmp_path / "nowhere" / "m"), "no folder")):
        with pytest.raises(ModelError, match=said):
            sample(run, spec(model=model))
    assert not (run.path / "candidates").exists()


def test_an_empty_split(tmp_path: Path, spec) -> None:
    run = Run(tmp_path / "run")
    ingest(run, [write(tmp_path / "a.jsonl", TEXTS)], IngestSpec(test=0.0))
    with pytest.raises(InputError, match="none in the split 'test'"):
        sample(run, spec(split="test"))


def test_the_contract(run: Run, spec) -> None:
    sample(run, spec())
    assert run.partition("candidates", "s").read().schema.equals(CANDIDATES.schema)


@pytest.mark.vllm
def test_with_the_real_vllm(run: Run, spec, tmp_path: Path) -> None:
    """The same step on vLLM: a row for each candidate, greedy answers as transformers gives them."""
    done = sample(run, spec(engine="vllm"))
    assert done.report.rows_out == 20
    assert done.report.figures["engine"] == "vllm (asked for)"
    assert {row["engine"] for row in rows(run).values()} == {"vllm"}
    assert sample(run, spec(engine="vllm", n=4)).did == "kept"
    with pytest.raises(SpecConflict, match="engine: 'vllm' -> 'transformers'"):
        sample(run, spec(engine="transformers"))


def test_settings_of_another_engine(run: Run, spec) -> None:
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES"):
        sample(run, spec(engine="vllm", device="cpu"))
