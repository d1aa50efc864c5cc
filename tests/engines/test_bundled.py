"""The bundled policy: greedy answers are the same on both engines; stop texts and beams with tokens of many letters."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from prefdata import sample_data
from prefdata.candidates.sample import sample
from prefdata.engines.hf.beam_search import BeamRequest
from prefdata.engines.hf.generator import TransformersGenerator
from prefdata.engines.protocol import Completion, Request, Sampling
from prefdata.models.files import identify
from prefdata.prompts.ingest import ingest
from prefdata.specs import IngestSpec, SampleSpec
from prefdata.storage.run import Run

DATA = Path(sample_data.__file__).parent


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersGenerator]:
    generator = TransformersGenerator(identify(str(DATA / "policy"), "causal-lm"), device="cpu", dtype="float32")
    yield generator
    generator.close()


def prompts(engine: TransformersGenerator, count: int) -> list[tuple[int, ...]]:
    lines = (DATA / "prompts.jsonl").read_text("utf-8").splitlines()[:count]
    return [engine.render(json.loads(line)["messages"]) for line in lines]


def completions(found: Iterator[object]) -> dict[str, Completion]:
    answers = [answer for answer in found if isinstance(answer, Completion)]
    return {answer.key: answer for answer in answers}


def test_a_stop_text_begins_and_ends_anywhere_in_a_token(engine: TransformersGenerator) -> None:
    plain = Sampling(1.0, 1.0, 0, 60)
    asked = [Request(str(i), prompt, i, plain) for i, prompt in enumerate(prompts(engine, 60))]
    without = completions(engine.generate(asked))
    source, stopping, stops = random.Random(0), [], {}
    for request in asked:
        text = without[request.key].text
        at, length = source.randrange(len(text) // 2), source.randint(1, 12)
        stops[request.key] = text[at : at + length]
        stopping.append(replace(request, sampling=replace(plain, stop=(stops[request.key],))))
    inside = 0
    for key, answer in completions(engine.generate(stopping)).items():
        stop, whole = stops[key], engine.chat.decode(answer.token_ids or ())
        assert answer.text == without[key].text.partition(stop)[0]
        assert answer.finish_reason == "stop"
        assert whole.startswith(answer.text + stop)
        assert stop not in engine.chat.decode((answer.token_ids or ())[:-1])
        inside += whole != answer.text + stop
    assert 5 < inside < 60  # some end within a token, some with one


def test_beams_are_likelier_than_draws(engine: TransformersGenerator) -> None:
    how = Sampling(1.0, 1.0, 0, 60)
    for penalty in (None, 1.0):
        searched = [
            BeamRequest(tuple(f"{i}/{k}" for k in range(4)), prompt, how, penalty)
            for i, prompt in enumerate(prompts(engine, 8))
        ]
        beams = completions(engine.beams(searched))
        draws = completions(engine.generate(Request(k, r.prompt_ids, 1, how) for r in searched for k in r.keys))
        for request in searched:
            means = {key: mean(beams[key]) for key in request.keys}
            assert means[request.keys[0]] > sum(mean(draws[key]) for key in request.keys) / 4
            assert list(means.values()) == sorted(means.values(), reverse=True)
            assert penalty is not None or len({beams[key].token_ids for key in request.keys}) == 4


def mean(answer: Completion) -> float:
    assert answer.logprob_sum is not None
    return answer.logprob_sum / len(answer.token_ids or ())


@pytest.mark.vllm
def test_greedy_answers_of_vllm_and_transformers_are_the_same(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    ingest(run, [str(DATA / "prompts.jsonl")], IngestSpec())
    texts = {}
    for engine in ("vllm", "transformers"):
        said = {"model": str(DATA / "policy"), "engine": engine, "name": engine, "split": "test"}
        sample(run, SampleSpec(**said, n=1, temperature=0.0, max_tokens=96))
        rows = run.partition("candidates", engine).read(["prompt_id", "token_ids"]).to_pylist()
        texts[engine] = {row["prompt_id"]: row["token_ids"] for row in rows}
    assert len(texts["vllm"]) == 150
    different = [key for key, ids in texts["vllm"].items() if ids != texts["transformers"][key]]
    assert len(different) <= 1  # a tie of two logits within float32 rounding may fall either way


@pytest.mark.vllm
def test_a_trained_model_is_sampled_from_by_a_compiled_engine(
    prefdata: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """As a user runs it: nothing is set that keeps vLLM from compiling. The context limit gets it its own engine."""
    lines = (DATA / "heldout_preferences.jsonl").read_text("utf-8").splitlines(keepends=True)[:32]
    (tmp_path / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    model, run = tmp_path / "dpo", tmp_path / "run"
    assert prefdata("train", "dpo", tmp_path / "pairs.jsonl", "--model", DATA / "policy", "--out", model)[0] == 0
    assert prefdata("ingest", run, DATA / "prompts.jsonl")[0] == 0
    how = ["--max-tokens", 40, "--engine", "vllm", "--max-model-len", 200]
    code, out, err = prefdata("sample", run, "--split", "test", "-n", 1, "--model", model, *how)
    assert (code, "150 in, 150 out" in out) == (0, True), err
