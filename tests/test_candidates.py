"""sample: every candidate by its own seed, what is missing is drawn, what is there stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from prefdata import ids
from prefdata.candidates.job import SamplingJob
from prefdata.candidates.sample import dry_run, expand_sweep, sample, sample_many
from prefdata.candidates.stream import cut_off_id
from prefdata.errors import BadRows, InputError, ModelError, NotReady, PrefdataError, SpecConflict, UsageError
from prefdata.prompts.ingest import ingest
from prefdata.specs import IngestSpec, SampleSpec
from prefdata.storage.run import Run
from prefdata.storage.schemas import CANDIDATES

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
    law = SamplingJob.of(run, spec()).sampler_fingerprint
    for row in found.values():
        place = (row["prompt_id"], law, row["sample_index"])
        cut = row["finish_reason"] == "length"
        assert row["candidate_id"] == (cut_off_id(*place, 12) if cut else ids.candidate_id(*place))
        assert row["seed"] == ids.seed(0, *place)
        assert row["completion_tokens"] == len(row["token_ids"]) <= 12
        assert row["finish_reason"] == ("stop" if row["token_ids"][-1] in (2, 3) else "length")
        assert row["logprob_sum"] < 0
        assert (row["status"], row["engine"], row["model"]) == ("ok", "transformers", str(tiny_policy))
        assert (row["temperature"], row["top_p"], row["top_k"], row["max_tokens"]) == (1.0, 1.0, 0, 12)
    assert len({row["text"] for row in found.values()}) > 12


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
    """Stopped half-way: what was answered is kept, the rest is drawn by the next command."""
    from prefdata.engines.hf.generator import TransformersGenerator

    real = TransformersGenerator.generate

    def dies(self, requests):
        for i, answer in enumerate(real(self, requests)):
            if i == 7:
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(TransformersGenerator, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
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


def test_an_engine_that_dies_is_started_again(run: Run, spec, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefdata.engines.hf.generator import TransformersGenerator
    from prefdata.errors import EngineError

    real, deaths = TransformersGenerator.generate, []

    def dies(self, requests):
        for i, answer in enumerate(real(self, requests)):
            if i == 7 and len(deaths) < 2:
                deaths.append(i)
                raise EngineError("the engine died")
            yield answer

    monkeypatch.setattr(TransformersGenerator, "generate", dies)
    done = sample(run, spec())
    assert (done.report.rows_out, len(rows(run)), len(deaths)) == (20, 20, 2)
    assert "died 2 times" in done.report.figures["note"]


@pytest.mark.parametrize(("said", "one"), [({"temperature": 0}, 4), ({"top_k": 1}, 4), ({"temperature": 0, "n": 1}, 0)])
def test_answers_that_are_all_the_same_are_noted(run: Run, spec, said, one) -> None:
    done = sample(run, spec(**said))
    assert done.report.figures.get("note", "").count(f"The {one} answers of a prompt are one") == (one > 0)
    assert len({row["text"] for row in rows(run).values()}) <= len(TEXTS)


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
    with pytest.raises(UsageError, match="--quantization is for the vllm engine"):
        sample(run, spec(quantization="fp8"))


def test_an_engine_that_cannot_start_leaves_nothing_behind(run: Run, spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for said in ({"engine": "openai"}, {"device": "cuda:99"}, {"dtype": "float3"}):
        with pytest.raises(PrefdataError):
            sample(run, spec(**said))
        assert not (run.path / "candidates").exists()


def draws(run: Run, name: str = "s") -> dict[tuple[str, int], Row]:
    return {(row["prompt_id"], row["sample_index"]): row for row in rows(run, name).values()}


def test_a_longer_limit_continues_what_was_cut_off(run: Run, spec, tmp_path: Path) -> None:
    sample(run, spec(max_tokens=6))
    short = draws(run)
    cut = {key for key, row in short.items() if row["finish_reason"] == "length"}
    assert 0 < len(cut) < len(short)
    with pytest.raises(SpecConflict, match="max_tokens: 6 -> 30"):
        sample(run, spec(max_tokens=30))
    done = sample(run, spec(max_tokens=30, retry_truncated=True))
    assert (done.did, done.report.rows_out) == ("continued", 20)
    long = draws(run)
    for key, row in long.items():
        if key in cut:
            assert row["token_ids"][:6] == short[key]["token_ids"]
            assert row["candidate_id"] != short[key]["candidate_id"]  # another text, another id
            assert row["max_tokens"] == 30
        else:
            assert row == short[key]
    at_once = Run(tmp_path / "other")
    ingest(at_once, [str(tmp_path / "asked.jsonl")], IngestSpec(test=0.4))
    sample(at_once, spec(max_tokens=30))
    assert rows(at_once).keys() == rows(run).keys()
    assert {k: r["text"] for k, r in rows(at_once).items()} == {k: r["text"] for k, r in rows(run).items()}
    assert sample(run, spec(max_tokens=30)).did == "kept"
    with pytest.raises(SpecConflict, match="needs more"):
        sample(run, spec(max_tokens=6, retry_truncated=True))
    with pytest.raises(SpecConflict, match="changes --max-tokens alone"):
        sample(run, spec(max_tokens=40, temperature=0.5, retry_truncated=True))


def test_a_retry_that_was_stopped_is_continued(run: Run, spec, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefdata.engines.hf.generator import TransformersGenerator

    sample(run, spec(max_tokens=6))
    real = TransformersGenerator.generate

    def stops(self, requests):
        for i, answer in enumerate(real(self, requests)):
            if i == 3:
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(TransformersGenerator, "generate", stops)
    with pytest.raises(KeyboardInterrupt):
        sample(run, spec(max_tokens=30, retry_truncated=True))
    monkeypatch.setattr(TransformersGenerator, "generate", real)
    sample(run, spec(max_tokens=30))  # the flag is not needed to go on
    found = draws(run)
    assert len(rows(run)) == len(found) == 20
    assert all(row["finish_reason"] == "stop" or row["max_tokens"] == 30 for row in found.values())


def test_a_range_and_a_list(run: Run, spec) -> None:
    sample(run, spec(temperature="1.2:1.3", top_k="0,5,7", min_tokens="1:3"))
    found = draws(run)
    temperatures = [row["temperature"] for row in found.values()]
    assert len(set(temperatures)) == 20
    assert all(1.2 < t < 1.3 for t in temperatures)
    assert all(row["top_k"] == (0, 5, 7)[index % 3] for (_, index), row in found.items())
    assert {row["min_tokens"] for row in found.values()} == {1, 2, 3}
    sample(run, spec(temperature="1.2:1.3", top_k="0,5,7", min_tokens="1:3", n=6))
    assert found.items() <= draws(run).items()


def test_a_sweep_is_a_sampler_for_each_value(run: Run, spec) -> None:
    specs = expand_sweep(spec(sweep=("temperature=0.7,1.0", "max-tokens=4,8")))
    assert [one.name for one in specs] == [f"s-temperature-{t}-max_tokens-{m}" for t in ("0.7", "1.0") for m in (4, 8)]
    outcomes = sample_many(run, specs)
    assert [one.report.rows_out for one in outcomes] == [20] * 4
    assert {row["temperature"] for row in rows(run, specs[0].name).values()} == {0.7}
    assert [one.did for one in sample_many(run, specs)] == ["kept"] * 4
    for bad, said in (
        ("temprature=1", 'Did you mean "temperature"'),
        ("top_p=", "give values"),
        ("top_p=2", "at most 1"),
    ):
        with pytest.raises(UsageError, match=said):
            expand_sweep(spec(sweep=(bad,)))


def test_where_and_limit(run: Run, spec) -> None:
    assert sample(run, spec(where="messages[1].content like 'Sag%'")).report.rows_out == 4
    three = sample(run, spec(name="three", limit=3, seed=1))
    assert three.report.rows_out == 12
    assert sample(run, spec(name="three", limit=4, seed=1)).report.rows_out == 16
    for bad, said in (("nothing > 1", "nothing"), ("1=1; drop table prompts", "one condition|syntax"), ("(", "syntax")):
        with pytest.raises(UsageError, match=said):
            sample(run, spec(where=bad))
    with pytest.raises(InputError, match="no prompt of"):
        sample(run, spec(where="false"))
    with pytest.raises(UsageError):
        sample(run, spec(where="exists (select * from read_csv('/etc/passwd'))"))


def long_prompts(run: Run, tmp_path: Path) -> None:
    ingest(run, [write(tmp_path / "long.jsonl", ["x" * 500, "short"])], IngestSpec())


def test_long_prompts_as_an_error(run: Run, spec, tmp_path: Path) -> None:
    long_prompts(run, tmp_path)
    with pytest.raises(BadRows, match=r"tokens in a context of 128") as found:
        sample(run, spec(on_long="error"))
    assert "--on-long skip" in str(found.value)
    assert not list(run.path.glob("candidates/*/part-*"))


def test_long_prompts_cut_from_the_left(run: Run, spec, tmp_path: Path) -> None:
    long_prompts(run, tmp_path)
    done = sample(run, spec(on_long="truncate-left"))
    assert done.report.figures.get("prompt_too_long") is None
    cut = [row for row in rows(run).values() if row["detail"]]
    assert len(cut) == 4
    for row in cut:
        assert row["prompt_tokens"] == 128 - 12
        assert "prompt tokens" in row["detail"]
        assert row["status"] == "ok"


def test_log_probabilities_of_every_token(run: Run, spec) -> None:
    sample(run, spec(logprobs=True))
    for row in rows(run).values():
        assert len(row["logprobs"]) == len(row["token_ids"])
        assert sum(row["logprobs"]) == pytest.approx(row["logprob_sum"], abs=1e-9)
    plain = {key: row["text"] for key, row in rows(run).items()}
    sample(run, spec(), replace=True)
    assert {key: row["text"] for key, row in rows(run).items()} == plain
    assert all(row["logprobs"] is None for row in rows(run).values())


def test_two_processes_share_the_work(run: Run, spec, tmp_path: Path) -> None:
    """The same command twice at once, in two processes: every candidate once, and both end well."""
    import subprocess
    import sys

    ingest(run, [write(tmp_path / "many.jsonl", [f"Tell {i}." for i in range(700)])], IngestSpec(source="many"))
    command = [sys.executable, "-m", "prefdata.cli", "sample", str(run), "--model", spec().model]
    command += ["-n", "8", "--max-tokens", "20", "--name", "s"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=1800) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert run.partition("candidates", "s").state == "finished"
    stored = [part.num_rows for part in map(pq.read_table, run.partition("candidates", "s").parts())]
    assert sum(stored) == len(rows(run)) == 705 * 8
    assert not (run.path / "candidates/sampler=s/_claims").exists()
    alone = Run(tmp_path / "alone")
    ingest(alone, [str(tmp_path / "asked.jsonl"), str(tmp_path / "many.jsonl")], IngestSpec())
    sample(alone, spec(n=8, max_tokens=20))
    assert {k: r["text"] for k, r in rows(alone).items()} == {k: r["text"] for k, r in rows(run).items()}
