"""A step whose every row is without a result: it says why, keeps the rows, and exits with 1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_server import FakeServer, chat, error


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    found = FakeServer()
    yield found
    found.close()


@pytest.fixture
def run(prefdata, write, tmp_path: Path) -> Path:
    assert prefdata("ingest", tmp_path / "run", write({"prompt": "Say a."}, {"prompt": "Say b."}))[0] == 0
    return tmp_path / "run"


def test_a_server_that_refuses_every_request(prefdata, run: Path, fake: FakeServer) -> None:
    fake.answer = lambda path, body, nth: (400, {}, error("`stop` is not supported \x1b[31m"))
    sample = ("sample", run, "--engine", "openai", "--base-url", fake.url, "--model", "m", "-n", 2)
    for _ in range(2):  # the same command again has nothing to do, and nothing is well
        code, out, err = prefdata(*sample)
        assert code == 1
        assert "rejected" in out
        said = err.splitlines()[-1]
        assert said.startswith(
            f"prefdata: {run}/candidates/sampler=m: no request was answered, all for one reason: 400 `stop`"
        )
        assert "--replace" in said
        assert "\x1b" not in err
    code, out, _ = prefdata(*sample, "--format", "json")
    assert (code, json.loads(out)["failure"][:10]) == (1, "no request")
    fake.answer = lambda path, body, nth: (200, {}, chat("yes")) if body["seed"] % 2 else (400, {}, error("no"))
    assert prefdata(*sample, "--replace")[0] in (0, 1)  # by the seeds


def test_one_response_is_enough(prefdata, run: Path, fake: FakeServer) -> None:
    answered = []

    def once(path, body, nth):
        answered.append(body["seed"])
        return (200, {}, chat("yes")) if len(answered) == 1 else (400, {}, error("no"))

    fake.answer = once
    sample = ("sample", run, "--engine", "openai", "--base-url", fake.url, "--model", "m", "-n", 2)
    assert prefdata(*sample, "--concurrency", 1)[0] == 0


def test_a_function_that_scores_nothing(prefdata, run: Path, fake: FakeServer, tmp_path: Path) -> None:
    prefdata("sample", run, "--engine", "openai", "--base-url", fake.url, "--model", "m", "-n", 2)
    (tmp_path / "f.py").write_text("def f(m, r): raise ValueError('no rubric')\ndef g(m, r): return len(r)\n")
    code, out, err = prefdata("rank", run, "--function", f"{tmp_path}/f.py:f")
    assert (code, "scored      0" in out) == (1, True)
    assert "no candidate has a score; first error: ValueError: no rubric" in err
    assert prefdata("rank", run, "--function", f"{tmp_path}/f.py:g")[0] == 0
    code, _, err = prefdata("rank", run, "--combine", "f + g", "--name", "both")
    assert code == 1
    assert "no candidate has a score" in err


def test_a_judge_that_says_nothing_to_any_pair(prefdata, run: Path, fake: FakeServer) -> None:
    sample = ("sample", run, "--engine", "openai", "--base-url", fake.url, "--model", "m", "-n", 2)
    fake.answer = lambda path, body, nth: (200, {}, chat(str(body["seed"])))
    assert prefdata(*sample)[0] == 0
    fake.answer = lambda path, body, nth: (200, {}, chat("I cannot decide."))
    judge = ("rank", run, "--judge", "m", "--engine", "openai", "--base-url", fake.url)
    code, _, err = prefdata(*judge, "--name", "alone")
    assert code == 1
    assert "no comparison has a verdict" in err or "no candidate has a score" in err
