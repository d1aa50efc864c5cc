"""A function of the user's as a scorer: what it says is kept, what it cannot say is a null with a reason."""

from __future__ import annotations

import pytest

from prefdata import ids
from prefdata.errors import InputError
from prefdata.scorers.function import FunctionScorer
from prefdata.scorers.protocol import Item, Scored

PROMPT = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say something."})


@pytest.fixture
def function(tmp_path):
    """`function(source)`: a scorer on the function `reward` of a file with that source."""

    def make(source: str, name: str = "reward") -> FunctionScorer:
        path = tmp_path / "rewards.py"
        path.write_text(source)
        return FunctionScorer(f"{path}:{name}")

    return make


def score(scorer: FunctionScorer, response: str = "yes") -> Scored:
    (found,) = scorer.score([Item("k", PROMPT, response, False)])
    return found


def test_a_number(function):
    scorer = function("def reward(prompt, response): return len(prompt) * 100 + len(response)")
    assert score(scorer, "vier") == Scored("k", 204.0, None, ids.text_hash("vier"), None)
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


def test_an_exceptions_words_are_kept(function):
    found = score(function("def reward(p, r): raise ValueError('no rubric for this')"))
    assert (found.reason, found.details) == ("ValueError", {"error": "no rubric for this"})


def test_what_was_returned_instead_of_a_number_is_kept(function):
    assert score(function("def reward(p, r): return 'good'")).details == {"returned": "'good'"}


def test_what_it_prints_is_no_part_of_the_output(function, capsys):
    assert score(function("def reward(p, r): print('thinking'); return 1")).score == 1.0
    assert capsys.readouterr() == ("", "thinking\n")


def test_one_bad_answer_does_not_stop_the_others(function):
    scorer = function("def reward(p, r): return 1 / len(r)")
    found = list(scorer.score(Item(str(i), PROMPT, text, False) for i, text in enumerate(["ab", "", "abcd"])))
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
        ("def reward(:", "SyntaxError"),
        ("import nowhere_at_all", "ModuleNotFoundError"),
        ("raise SystemExit(3)", "SystemExit"),
    ],
)
def test_a_file_that_cannot_be_imported(tmp_path, source, said):
    path = tmp_path / "rewards.py"
    path.write_text(source)
    assert f"{path} cannot be imported: {said}" in refused(f"{path}:reward")
