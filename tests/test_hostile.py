"""1,200 hostile servers, functions, files, folders and models: every command ends in time, and with a sentence."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hostile import KINDS as OTHERS
from hostile_models import model_folder

KINDS = {**OTHERS, "model": model_folder}

LIMIT = 120
"""Seconds after which a case is one that hangs; a tenth of a second is usual."""

SHARES = {"server": 350, "function": 250, "file": 220, "run": 120, "template": 60, "model": 200}
"""Cases of each kind in the slow suite."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path, tiny_reward_model: Path) -> Path:
    """A folder with a small run that has all tables, a policy, a reward model and a function."""
    import prefdata
    from prefdata.specs import FunctionSpec, IngestSpec, PairSpec, SelectSpec
    from prefdata.storage.run import Run

    folder = tmp_path_factory.mktemp("hostile")
    shutil.copytree(tiny_policy, folder / "policy")
    shutil.copytree(tiny_reward_model, folder / "reward")
    (folder / "long.py").write_text("def f(messages, response): return len(response)\n")
    rows = ({"prompt": f"Say {i}.", "responses": ["a" * (k + i) for k in range(1, 5)]} for i in range(4))
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = Run(folder / "run")
    prefdata.ingest(run, [str(folder / "data.jsonl")], IngestSpec.parse({"as": "candidates", "source": "d"}))
    prefdata.rank(run, FunctionSpec(function=f"{folder}/long.py:f", name="scores"))
    prefdata.select(run, SelectSpec(method="top-k", k=3))
    prefdata.pair(run, PairSpec())
    return folder


@contextmanager
def ended_by(seconds: int) -> Iterator[None]:
    """Interrupt what hangs."""

    def interrupt(*_: Any) -> None:
        raise TimeoutError(f"it hangs: {seconds} s are over")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def problem(kind: str, number: int, prefdata: Callable[..., Any], made: Path, folder: Path) -> str | None:
    """What is wrong with how a case ended, or None."""
    place = folder / f"{kind}-{number}"
    shutil.copytree(made, place)
    case = KINDS[kind](random.Random(f"{kind} {number}"), place / "run", place)
    try:
        with ended_by(LIMIT):
            code, out, err = prefdata(*case.arguments)
    except BaseException as error:
        return f"{kind} {number}: {type(error).__name__}: {error} of {' '.join(map(str, case.arguments))}"
    finally:
        case.close()
    shutil.rmtree(place)
    wrong = [sign for sign in ("(a bug", "Traceback", "panicked") if sign in out + err]
    wrong += [] if code in (0, 1, 2) else [f"exit code {code}"]
    wrong += [] if code == 0 or (err + out).strip() else ["it fails without a word"]
    wrong += ["an escape sequence"] if "\x1b" in err or "\x1b" in out else []
    wrong += ["half of a surrogate pair"] if any("\ud800" <= char <= "\udfff" for char in out + err) else []
    return f"{kind} {number}: {wrong} of {' '.join(map(str, case.arguments))}: {err[-300:]}" if wrong else None


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefdata.chat import template
    from prefdata.engines.openai import client
    from prefdata.scorers.rules import subprocess_pool

    monkeypatch.setattr(client, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(client, "LONGEST_RETRY_AFTER", 0.01)
    monkeypatch.setattr(template, "LONGEST_RENDERING", 2.0)
    monkeypatch.setattr(subprocess_pool, "DEATHS", 5)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-tell-nobody-0123456789")


@pytest.mark.parametrize(("kind", "number"), [(kind, number) for kind in KINDS for number in range(6)])
def test_a_few_hostile_cases(kind: str, number: int, prefdata, made: Path, tmp_path: Path) -> None:
    assert problem(kind, number, prefdata, made, tmp_path) is None


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_hostile_cases(kind: str, prefdata, made: Path, tmp_path: Path) -> None:
    """A case that fails can be run alone: `problem(kind, number, …)` draws it by its number."""
    found = [problem(kind, number, prefdata, made, tmp_path) for number in range(SHARES[kind])]
    assert [one for one in found if one] == []
