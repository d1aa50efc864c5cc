"""A function of the user's as a scorer: what it says is kept, what it cannot say is a null with a reason."""

from __future__ import annotations

import json

import pytest

from prefdata import ids
from prefdata.errors import EngineError, InputError
from prefdata.scorers.protocol import Score, ScoringItem
from prefdata.scorers.rules import subprocess_pool
from prefdata.scorers.rules.function import FunctionScorer

PROMPT = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say something."})


@pytest.fixture
def function(tmp_path):
    """`function(source)`: a scorer on the function `reward` of a file with that source."""
    opened = []

    def make(source: str, name: str = "reward") -> FunctionScorer:
        path = tmp_path / "rewards.py"
        path.write_text(source)
        opened.append(FunctionScorer(f"{path}:{name}"))
        return opened[-1]

    yield make
    for scorer in opened:
        scorer.close()


def score(scorer: FunctionScorer, response: str = "yes") -> Score:
    (found,) = scorer.score([ScoringItem("k", PROMPT, response, False)])
    return found


def test_a_number(function):
    scorer = function("def reward(prompt, response): return len(prompt) * 100 + len(response)")
    assert score(scorer, "vier") == Score("k", 204.0, None, ids.text_hash("vier"), None)
    assert set(scorer.versions) == {"python"}


def test_it_sees_the_messages_and_may_change_its_own_copy(function):
    scorer = function("def reward(prompt, response): prompt[1]['content'] += '!'; return len(prompt[1]['content'])")
    assert [score(scorer).score, score(scorer).score] == [15.0, 15.0]


def test_numbers_of_other_libraries(function):
    assert score(function("import numpy\ndef reward(p, r): return numpy.float32(0.5)")).score == 0.5
    assert score(function("import fractions\ndef reward(p, r): return fractions.Fraction(1, 4)")).score == 0.25
    assert score(function("def reward(p, r): return True")).score == 1.0


def test_a_dict_carries_details(function):
    found = score(function("def reward(p, r): return {'score': 2, 'tone': 'dry', 'parts': [1, 2]}"))
    assert (found.score, found.details) == (2.0, {"tone": "dry", "parts": [1, 2]})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return None", "none"),
        ("return float('nan')", "nan"),
        ("return float('-inf')", "infinite"),
        ("return 'good'", "not_a_number"),
        ("return '3.5'", "not_a_number"),
        ("return {'tone': 'dry'}", "none"),
        ("return [1.0]", "not_a_number"),
        ("return 10 ** 400", "overflow"),
        ("return 1j", "not_a_number"),
        ("import numpy; return numpy.ones(2)", "not_a_number"),
        ("return 1 / 0", "ZeroDivisionError"),
        ("return {}['missing']", "KeyError"),
        ("raise SystemExit(3)", "SystemExit"),
    ],
)
def test_what_is_no_number_is_a_null_with_a_reason(function, body, reason):
    found = score(function(f"def reward(prompt, response):\n    {body}"))
    assert (found.key, found.score, found.reason) == ("k", None, reason)


HOSTILE = {
    "its str raises": ("class E(Exception):\n def __str__(s): raise OSError\ndef reward(p, r): raise E", "E"),
    "no Exception": ("class E(BaseException): pass\ndef reward(p, r): raise E('x')", "E"),
    "Ctrl-C of its own": ("def reward(p, r): raise KeyboardInterrupt", "KeyboardInterrupt"),
    "cancelled": ("import asyncio\ndef reward(p, r): raise asyncio.CancelledError", "CancelledError"),
    "a surrogate in the message": ("def reward(p, r): raise ValueError('\\ud83d')", "ValueError"),
    "endless recursion": ("def reward(p, r): return reward(p, r)", "RecursionError"),
    "its repr raises": ("class R:\n def __repr__(s): raise OSError\ndef reward(p, r): return R()", "OSError"),
    "its float raises": ("class R:\n def __float__(s): raise SystemExit\ndef reward(p, r): return R()", "SystemExit"),
    "a key's str raises": (
        "class K:\n def __str__(s): raise OSError\ndef reward(p, r): return {'score': 1, K(): 2}", "OSError"),
    "details with a surrogate": ("def reward(p, r): return {'score': 1, 'x': '\\ud83d'}", "details_not_json"),
    "a key with a surrogate": ("def reward(p, r): return {'score': 1, '\\ud83d': 1}", "details_not_json"),
    "deep details": (
        "def reward(p, r):\n x = []\n for _ in range(100000): x = [x]\n return {'score': 1, 'x': x}",
        "details_too_deep"),
    "details in a circle": ("def reward(p, r):\n x = []\n x.append(x)\n return {'x': x}", "details_too_deep"),
    "details of a million million": (
        "def reward(p, r):\n x = [0] * 100\n for _ in range(8): x = [x] * 100\n return {'score': 1, 'x': x}",
        "details_too_large"),
    "long details": ("def reward(p, r): return {'score': 1, 'x': 'x' * 5_000_000}", "details_too_large"),
    "the process ends": ("import os\ndef reward(p, r): os._exit(3)", "worker_died"),
    "the process crashes": ("import ctypes\ndef reward(p, r): ctypes.string_at(0)", "worker_died"),
    "the process is killed": ("import os\ndef reward(p, r): os.kill(os.getpid(), 9)", "worker_died"),
    "all files are closed": ("import os\ndef reward(p, r): os.closerange(0, 99); return 1", "worker_died"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_whatever_a_function_does_is_a_null_with_a_reason(function, source, reason):
    found = score(function(source))
    assert (found.score, found.reason) == (None, reason)
    json.dumps([found.reason, found.details], ensure_ascii=False).encode()  # both can be stored


def test_a_function_that_forks_answers_once(function):
    scorer = function("import os\ndef reward(p, r): os.fork(); return len(r)")
    found = list(scorer.score(ScoringItem(str(i), PROMPT, "x" * i, False) for i in range(5)))
    assert [(one.key, one.score) for one in found] == [(str(i), float(i)) for i in range(5)]


def test_a_process_that_ends_costs_one_response(function):
    scorer = function("import os\ndef reward(p, r): return len(r) if len(r) != 2 else os._exit(3)")
    found = list(scorer.score(ScoringItem(str(i), PROMPT, "x" * i, False) for i in range(4)))
    assert [(one.score, one.reason) for one in found] == [(0.0, None), (1.0, None), (None, "worker_died"), (3.0, None)]
    assert found[2].details == {"exit_code": 3}


def test_a_function_that_always_ends_its_process_is_given_up(function, monkeypatch):
    monkeypatch.setattr(subprocess_pool, "DEATHS", 3)
    scorer = function("import os\ndef reward(p, r): os._exit(3)")
    with pytest.raises(EngineError, match=r"rewards\.py:reward ended its process 3 times .* \(exit code 3\)"):
        list(scorer.score(ScoringItem(str(i), PROMPT, "x", False) for i in range(10)))


def test_a_file_that_ends_the_process_while_it_is_imported(function):
    with pytest.raises(EngineError, match=r"rewards\.py:reward ended its process while it was loaded \(exit code 4\)"):
        function("import os\nos._exit(4)")


def test_an_exceptions_words_are_kept(function):
    found = score(function("def reward(p, r): raise ValueError('no rubric for this')"))
    assert (found.reason, found.details) == ("ValueError", {"error": "no rubric for this"})


def test_what_was_returned_instead_of_a_number_is_kept(function):
    assert score(function("def reward(p, r): return 'good'")).details == {"returned": "'good'"}


def test_what_it_prints_is_no_part_of_the_output(function, capfd):
    source = "import os\ndef reward(p, r): print('thinking', flush=True); os.write(1, b'aloud'); return 1"
    assert score(function(source)).score == 1.0
    assert capfd.readouterr() == ("", "thinking\naloud")


def test_one_bad_answer_does_not_stop_the_others(function):
    scorer = function("def reward(p, r): return 1 / len(r)")
    found = list(scorer.score(ScoringItem(str(i), PROMPT, text, False) for i, text in enumerate(["ab", "", "abcd"])))
    assert [(s.key, s.score, s.reason) for s in found] == [
        ("0", 0.5, None),
        ("1", None, "ZeroDivisionError"),
        ("2", 0.25, None),
    ]


def test_a_file_beside_it_can_be_imported(function, tmp_path):
    (tmp_path / "rubric_beside.py").write_text("WEIGHT = 3.0")
    assert score(function("from rubric_beside import WEIGHT\ndef reward(p, r): return WEIGHT")).score == 3.0


def refused(named: str) -> str:
    with pytest.raises(InputError) as caught:
        FunctionScorer(named)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_no_such_file(tmp_path):
    assert refused(f"{tmp_path}/nowhere.py:reward") == (
        f"there is no file {tmp_path}/nowhere.py. Name the function as FILE.py:NAME."
    )
    assert "FILE.py:NAME" in refused("reward")
    (tmp_path / "rewards.py").write_text("def reward(p, r): return 0")
    assert "its function is not named" in refused(f"{tmp_path}/rewards.py")


def test_a_file_that_is_not_python(tmp_path):
    (tmp_path / "rewards.txt").write_text("x")
    assert "is not a Python file" in refused(f"{tmp_path}/rewards.txt:reward")


def test_no_such_function(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text("def reward(p, r): return 0\ndef other(p, r): return 0\nNUMBER = 3\n")
    assert refused(f"{path}:rewrad") == f"{path} has no function 'rewrad'. Did you mean \"reward\"?"
    assert "has no function 'NUMBER'" in refused(f"{path}:NUMBER")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def reward(:", "cannot be imported: SyntaxError"),
        ("import nowhere_at_all", "ModuleNotFoundError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("class E(BaseException):\n def __str__(s): raise E\nraise E", "E: its message cannot be shown"),
        ("\0", "cannot be imported"),
        ("x = " + "(" * 5000, "cannot be imported"),
        ("def __getattr__(name): raise OSError", "has no function"),
    ],
)
def test_a_file_that_cannot_be_imported(tmp_path, source, said):
    path = tmp_path / "rewards.py"
    path.write_text(source)
    assert said in refused(f"{path}:reward")
