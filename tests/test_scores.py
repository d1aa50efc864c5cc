"""rank: a score for one exact text, or a null with its reason; what is there stays."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from prefdata import ids
from prefdata.candidates.sample import sample
from prefdata.errors import InputError, ModelError, NotReady, SpecConflict, UsageError
from prefdata.pairs.pair import pair
from prefdata.prompts.ingest import ingest
from prefdata.scores.rank import rank
from prefdata.selections.select import select
from prefdata.specs import IngestSpec, PairSpec, RankSpec, SampleSpec, SelectSpec
from prefdata.storage.run import Run


@pytest.fixture
def run(tmp_path: Path, tiny_policy: Path) -> Run:
    run = Run(tmp_path / "run")
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Say {i} " + "again " * i}) + "\n" for i in range(6)))
    ingest(run, [str(file)], IngestSpec())
    sample(run, SampleSpec(model=str(tiny_policy), n=3, max_tokens=10, name="s"))
    return run


def scores(run: Run, name: str) -> dict[str, dict]:
    return {row["candidate_id"]: row for row in run.partition("scores", name).read().to_pylist()}


def test_equal_to_one_by_one_whatever_the_batch(run: Run, tiny_reward_model: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    for name, budget in (("one", 1), ("few", 100), ("many", 100_000)):
        rank(run, RankSpec(reward_model=str(tiny_reward_model), batch_tokens=budget, name=name))
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_reward_model)
    candidates = {row["candidate_id"]: row for row in run.partition("candidates", "s").read().to_pylist()}
    prompts = {row["prompt_id"]: row for row in run.partition("prompts", "asked").read().to_pylist()}
    for key, row in scores(run, "many").items():
        candidate = candidates[key]
        messages = [*prompts[candidate["prompt_id"]]["messages"], {"role": "assistant", "content": candidate["text"]}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        token_ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        with torch.inference_mode():
            hidden = model.base_model(input_ids=token_ids).last_hidden_state[:, -1]
            alone = float(model.score(hidden)[0, 0])
        assert row["text_hash"] == ids.text_hash(text)
        for name in ("one", "few", "many"):
            assert scores(run, name)[key]["score"] == pytest.approx(alone, abs=1e-5)


def test_again_and_more(run: Run, tiny_policy: Path, tiny_reward_model: Path) -> None:
    spec = RankSpec(reward_model=str(tiny_reward_model), name="rm")
    assert rank(run, spec).did == "made"
    assert rank(run, spec).did == "kept"
    before = scores(run, "rm")
    sample(run, SampleSpec(model=str(tiny_policy), n=5, max_tokens=10, name="s"))
    done = rank(run, spec)
    assert (done.did, done.report.rows_out) == ("continued", 30)
    assert before.items() <= scores(run, "rm").items()


def test_scores_of_replaced_candidates_go(run: Run, tiny_policy: Path) -> None:
    function = Path(run.path).parent / "f.py"
    function.write_text("def length(messages, response):\n    return len(response)\n")
    spec = RankSpec(function=f"{function}:length")
    rank(run, spec)
    sample(run, SampleSpec(model=str(tiny_policy), n=2, max_tokens=9, name="s"), replace=True)
    done = rank(run, spec)
    assert done.report.rows_out == 12
    assert scores(run, "length").keys() == {
        row["candidate_id"] for row in run.partition("candidates", "s").read().to_pylist()
    }


FUNCTIONS = """
import math, dataclasses
@dataclasses.dataclass
class Seen:
    n: int = 0
def number(messages, response): return len(response) + messages[0]["content"].count("again")
def parts(messages, response): return {"score": 0.5, "tone": "flat", "n": 3}
def nothing(messages, response): return None
def nan(messages, response): return math.nan
def inf(messages, response): return {"score": math.inf}
def text(messages, response): return "good"
def boom(messages, response): raise KeyError("tone")
def truth(messages, response): return True
"""


@pytest.mark.parametrize(
    ("name", "score", "reason", "details"),
    [
        ("parts", 0.5, None, {"tone": "flat", "n": 3}),
        ("truth", 1.0, None, None),
        ("nothing", None, "none", None),
        ("nan", None, "nan", None),
        ("inf", None, "infinite", None),
        ("text", None, "not_a_number", {"returned": "'good'"}),
        ("boom", None, "KeyError", {"error": "'tone'"}),
    ],
)
def test_what_a_function_says(run: Run, tmp_path: Path, name, score, reason, details) -> None:
    file = tmp_path / "judge.py"
    file.write_text(FUNCTIONS)
    done = rank(run, RankSpec(function=f"{file}:{name}"))
    for row in scores(run, name).values():
        assert (row["score"], row["reason"]) == (score, reason)
        assert (json.loads(row["details"]) if row["details"] else None) == details
    assert done.report.figures["scored"] == (18 if score is not None else 0)
    if reason:
        assert done.report.figures[reason] == 18
        assert f"no candidate has a score; first error: {reason}" in done.report.failure


def test_a_function_that_changed_is_another_scorer(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "judge.py"
    file.write_text(FUNCTIONS)
    rank(run, RankSpec(function=f"{file}:number"))
    file.write_text(FUNCTIONS + "# changed\n")
    with pytest.raises(SpecConflict, match="function"):
        rank(run, RankSpec(function=f"{file}:number"))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("nowhere.py:f", "no file nowhere.py"),
        ("judge.py", "FILE.py:NAME"),
        ("judge.py:numbr", 'Did you mean "number"'),
        ("broken.py:f", "SyntaxError"),
    ],
)
def test_functions_that_are_not_there(run: Run, tmp_path: Path, monkeypatch, function, said) -> None:
    (tmp_path / "judge.py").write_text(FUNCTIONS)
    (tmp_path / "broken.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        rank(run, RankSpec(function=function))
    assert not list(run.path.glob("scores/*"))


def test_a_policy_is_no_reward_model(run: Run, tiny_policy: Path) -> None:
    with pytest.raises(ModelError, match="SequenceClassification"):
        rank(run, RankSpec(reward_model=str(tiny_policy)))
    assert not (run.path / "scores").exists()


def test_unfinished_candidates(run: Run, tiny_reward_model: Path) -> None:
    (run.path / "candidates/sampler=s/_SUCCESS").unlink()
    spec = RankSpec(reward_model=str(tiny_reward_model), name="rm")
    with pytest.raises(NotReady, match="unfinished"):
        rank(run, spec)
    assert rank(run, spec, partial=True).report.rows_out == 18


def test_candidates_without_an_answer_have_no_score(run: Run, tmp_path: Path, tiny_policy: Path) -> None:
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"prompt": "x" * 500}) + "\n")
    ingest(run, [str(file)], IngestSpec())
    sample(run, SampleSpec(model=str(tiny_policy), n=3, max_tokens=10, name="s"))
    judge = tmp_path / "judge.py"
    judge.write_text(FUNCTIONS)
    done = rank(run, RankSpec(function=f"{judge}:number"))
    assert done.report.figures["prompt_too_long"] == 3
    refused = [row for row in scores(run, "number").values() if row["reason"]]
    assert all(row["score"] is None and row["text_hash"] is None for row in refused)


@pytest.mark.parametrize(
    ("said", "needs"),
    [
        ({"mean_logprob": "POLICY"}, None),
        ({"pointwise": "POLICY"}, "too_long"),  # the question alone is longer than the tiny model's context
        ({"implicit": "POLICY", "reference": "POLICY"}, None),
        ({"verifier": "regex:a"}, None),
        ({"similarity": "rouge-l"}, "no_reference"),
        ({"similarity": "states", "reference": "POLICY"}, "no_reference"),
    ],
    ids=lambda said: "-".join(said) if isinstance(said, dict) else None,
)
def test_every_kind_of_scorer_through_the_step(run: Run, tiny_policy: Path, said: dict, needs: str | None) -> None:
    spec = RankSpec(**{key: str(tiny_policy) if value == "POLICY" else value for key, value in said.items()}, name="s1")
    report = rank(run, spec).report
    assert report.rows_out == 18
    reasons = {row["reason"] for row in scores(run, "s1").values() if row["score"] is None}
    assert reasons <= {needs, "too_long"}
    assert report.figures["scored"] == 0 if needs else report.figures["scored"] > 0
    assert rank(run, spec).did == "kept"
    if "implicit" in said:
        assert all(row["score"] == 0 for row in scores(run, "s1").values() if row["score"] is not None)


def test_a_scorer_that_lacks_its_reference(tiny_policy: Path) -> None:
    with pytest.raises(UsageError, match="--implicit needs a --reference"):
        RankSpec.parse({"implicit": str(tiny_policy)})


def test_a_setting_that_changes_nothing_is_refused() -> None:
    for said in (
        {"function": "f.py:f", "label": "all"},
        {"mean_logprob": "m", "beta": 0.5},
        {"judge": "m", "prior": 1.0},
        {"pointwise": "m", "engine": "vllm"},
        {"function": "f.py:f", "base_url": "http://127.0.0.1:8000/v1"},
        {"reward_model": "m", "lora": "adapter"},
    ):
        with pytest.raises(UsageError, match="changes nothing here"):
            RankSpec.parse(said)


def test_a_server_gives_no_logits() -> None:
    for name in ("reward_model", "pairwise"):
        with pytest.raises(UsageError, match="--engine openai goes with --judge"):
            RankSpec.parse({name: "m", "engine": "openai"})


def test_one_scorer_is_named(run: Run) -> None:
    for said in ({}, {"function": "f.py:f", "reward_model": "m"}):
        with pytest.raises(UsageError, match="name one scorer"):
            RankSpec.parse(said)


@pytest.mark.parametrize("setting", [{"max_num_seqs": 3}, {"batch_invariant": True}, {"quantization": "fp8"}])
def test_a_setting_of_vllm_is_refused_where_transformers_scores(run: Run, tiny_reward_model: Path, setting) -> None:
    with pytest.raises(UsageError, match=r"is for the vllm engine, and this is transformers\. Leave it out"):
        rank(run, RankSpec(reward_model=str(tiny_reward_model), **setting))
    assert run.partitions("scores") == []


def test_a_shorter_context_holds_on_transformers_too(run: Run, tiny_reward_model: Path) -> None:
    """--max-model-len changed nothing where transformers scored."""
    rank(run, RankSpec(reward_model=str(tiny_reward_model), name="whole"))
    rank(run, RankSpec(reward_model=str(tiny_reward_model), max_model_len=40, name="short"))
    assert {row["reason"] for row in scores(run, "whole").values()} == {None}
    assert {row["reason"] for row in scores(run, "short").values()} == {None, "too_long"}


def test_a_damaged_part_is_named_and_what_it_held_is_made_again(run: Run, tiny_reward_model: Path) -> None:
    spec = RankSpec(reward_model=str(tiny_reward_model), name="rm")
    rank(run, spec)
    before = scores(run, "rm")
    (part,) = run.partition("scores", "rm").parts()
    part.write_bytes(part.read_bytes()[:200])
    for step in (lambda: select(run, SelectSpec()), lambda: pair(run, PairSpec(selector="all"))):
        with pytest.raises(InputError, match=r"part-\d+-\w+\.parquet is damaged: .* run the same `prefdata rank`"):
            step()
    part.unlink()
    rank(run, spec)
    assert scores(run, "rm") == before


def test_what_a_function_says_in_several_lines_is_one_line_of_the_report(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "f.py"
    file.write_text("def f(messages, answer):\n    raise ValueError('boom\\nline two')\n")
    assert "boom line two" in rank(run, RankSpec(function=f"{file}:f")).report.failure


def test_candidates_of_two_samplers_are_scored_once(run: Run, tiny_policy: Path, tiny_reward_model: Path) -> None:
    """Samplers that differ in --max-tokens share the responses that end before; the first one's name is stored."""
    sample(run, SampleSpec(model=str(tiny_policy), n=3, max_tokens=40, name="longer"))
    held = {
        name: {row["candidate_id"] for row in run.partition("candidates", name).read().to_pylist()}
        for name in ("longer", "s")
    }
    shared = held["longer"] & held["s"]
    assert shared
    done = rank(run, RankSpec(reward_model=str(tiny_reward_model), name="rm"))
    assert done.report.rows_out == len(held["longer"] | held["s"])
    rows = [row for part in run.partition("scores", "rm").parts() for row in pq.read_table(part).to_pylist()]
    assert len(rows) == done.report.rows_out
    assert {row["sampler"] for row in rows if row["candidate_id"] in shared} == {"longer"}
    assert select(run, SelectSpec(method="top-k", k=9, sampler=("s",), truncated="keep")).report.rows_in == len(
        held["s"]
    )
