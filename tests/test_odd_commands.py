"""Commands that ask for what cannot be had, or for little: each says so in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def run(prefdata, write, tmp_path: Path) -> Path:
    """Three prompts with three responses by a model and one by a person; no scores."""
    rows = [{"prompt": f"Say {i}.", "responses": ["a" * k for k in (1, 2, 3)]} for i in range(3)]
    people = [{"prompt": f"Say {i}.", "responses": ["from a person"]} for i in range(3)]
    for name, given in (("model", rows), ("people", people)):
        file = write(*given, name=f"{name}.jsonl")
        assert prefdata("ingest", tmp_path / "run", file, "--as", "candidates", "--source", name)[0] == 0
    return tmp_path / "run"


@pytest.fixture
def paired(prefdata, run: Path, tmp_path: Path) -> Path:
    (tmp_path / "f.py").write_text("def f(m, r): return len(r)\n")
    for step in (
        ("rank", run, "--function", f"{tmp_path}/f.py:f", "--name", "long"),
        ("select", run, "--method", "top-k", "--k", 4),
        ("pair", run, "--name", "ok"),
    ):
        assert prefdata(*step)[0] == 0
    return run


def test_a_trusted_reference_needs_no_scores(prefdata, run: Path) -> None:
    pair = ("pair", run, "--strategy", "against-reference", "--reference", "people-response", "--trust-reference")
    code, out, err = prefdata(*pair)
    assert code == 0, err
    assert "9 in, 9 out" in out
    said = prefdata("sql", run, "select chosen, rejected, chosen_score from preferences", "-f", "jsonl")[1]
    rows = [json.loads(line) for line in said.splitlines()]
    assert {row["chosen"] for row in rows} == {"from a person"}
    assert sorted(row["rejected"] for row in rows) == sorted(["a", "aa", "aaa"] * 3)
    assert {row["chosen_score"] for row in rows} == {None}
    assert "nothing to do" in prefdata(*pair)[1]
    code, _, err = prefdata("pair", run, "--strategy", "best-worst")
    assert (code, "no selections yet" in err) == (2, True)


def test_a_trusted_reference_takes_the_samplers_that_are_named(prefdata, run: Path) -> None:
    pair = ("pair", run, "--strategy", "against-reference", "--reference", "people-response", "--trust-reference")
    code, _, err = prefdata(*pair, "--sampler", "nobody")
    assert (code, "no candidates by a sampler 'nobody'" in err) == (2, True)
    code, out, _ = prefdata(*pair, "--sampler", "model-response")
    assert (code, "9 in, 9 out" in out) == (0, True)


def test_an_empty_result_says_so(prefdata, paired: Path) -> None:
    code, out, _ = prefdata("pair", paired, "--min-margin", 100, "--name", "none")
    assert code == 0
    assert "Nothing is left: none of 3 proposed pairs was kept." in out
    assert "dropped: margin" in out


@pytest.mark.parametrize("to", ["/proc/x", "/dev/null", "/dev/null/x", "x" * 300, "run/" + "y/" * 3000])
def test_an_export_to_where_nothing_can_be_written(prefdata, paired: Path, to: str) -> None:
    code, out, err = prefdata("export", paired, "--pairing", "ok", "--to", to)
    assert (code, out) == (2, "")
    assert "(a bug" not in err
    assert err.splitlines()[-1].startswith("prefdata: ")


def test_over_long_data_names_the_option(prefdata, write, tiny_policy: Path, tmp_path: Path) -> None:
    file = write(*[{"prompt": "Say it.", "completion": "long " * 10}] * 30)
    train = ("train", "sft", file, "--model", tiny_policy, "--out", tmp_path / "out", "--max-length", 20)
    code, _, err = prefdata(*train)
    assert code == 2
    assert "more than 20: use --on-long drop or truncate" in err


def test_training_stops_after_max_steps(prefdata, write, tiny_policy: Path, tmp_path: Path) -> None:
    """Eight rows at a batch of 2 are four steps an epoch: 3 of them, or all 4 where more are allowed."""
    file = write(*({"prompt": f"Say {i}.", "completion": f"{i}"} for i in range(8)))
    for most, steps in ((3, 3), (9, 4)):
        out = tmp_path / f"out-{most}"
        train = ("train", "sft", file, "--model", tiny_policy, "--batch-size", 2, "--log-every", 1)
        assert prefdata(*train, "--out", out, "--max-steps", most)[0] == 0
        metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert [one["step"] for one in metrics if "lr" in one] == list(range(1, steps + 1))
        assert metrics[-1]["lr"] < max(one["lr"] for one in metrics)  # the schedule falls over these steps


def test_a_dry_run_is_a_line_a_fact(prefdata, write, tiny_policy: Path, tmp_path: Path) -> None:
    prefdata("ingest", tmp_path / "r", write({"prompt": "Say a."}, {"prompt": "Say b."}))
    sample = ("sample", tmp_path / "r", "--model", tiny_policy, "--max-tokens", 4, "--name", "s")
    assert prefdata(*sample, "-n", 2)[0] == 0
    code, out, _ = prefdata(*sample, "-n", 5, "--dry-run")
    assert code == 0
    told = json.loads(out)
    assert (told["prompts"], told["candidates_per_prompt"], told["candidates_to_draw"]) == (2, 5, 6)
    assert len(out.splitlines()) == len(told) + 2
