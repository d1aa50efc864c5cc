"""Verifiers: what is right is 1, what is wrong is 0, what cannot be checked is a null, and nothing hangs the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefdata import ids
from prefdata.errors import InputError
from prefdata.scorers.protocol import ScoringItem
from prefdata.scorers.rules.number_parsing import final_number, numbers
from prefdata.scorers.rules.verifiers import chosen_letter, open_verifier

QUESTION = ({"role": "user", "content": "How many?"},)


def item(response: str, reference: str | None = None, key: str = "k") -> ScoringItem:
    return ScoringItem(key, QUESTION, response, False, reference)


def verdict(named: str, response: str, reference: str | None = None, **settings):
    scorer = open_verifier(named, **settings)
    try:
        (found,) = scorer.score([item(response, reference)])
    finally:
        scorer.close()
    return found


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 17,000", "17000"),
        ("It costs $1,234.50.", "1234.5"),
        ("3/4", "3/4"),
        ("1 1/2 cups", "3/2"),
        (r"\frac{3}{4}", "3/4"),
        ("about 25%", "25"),
        ("about 25 percent", "25"),
        ("so 12 - 9 = 3\n#### 42", "42"),
        ("#### 42 apples for 3 children", "42"),
        (r"thus \boxed{42} of the 50", "42"),
        ('{"reasoning": "3 and 4", "answer": "$7 for 2"}', "2"),
        ('```json\n{"reasoning": "9", "answer": 7}\n```\nof 8', "7"),
        ("42 apples", "42"),
        ("-5", "-5"),
        ("it fell to −5 degrees.", "-5"),
        ("a loss of -$1,200", "-1200"),
        ("a loss of $-1200", "-1200"),
        ("10-3", "3"),
        ("16 - 3", "3"),
        ("The apples:\n- 42 of them", "42"),
        ("(-4)", "-4"),
        ("1:30:45", "45"),
        ("It is 42.", "42"),
        ("It is 42...", "42"),
        ("It is 4.20.", "21/5"),
        (".5", "1/2"),
        ("1, 2, 3", "3"),
        ("1,2,3", "3"),
        ("1.5e3", "1500"),
        ("at 2:30 pm", "5/2"),
        (r"\$17{,}000", "17000"),
        ("H2O", None),
        ("none at all", None),
        ("", None),
        ("7/0", None),
        ("9" * 5000, None),
    ],
)
def test_the_number_an_answer_ends_on(text, number):
    found = final_number(text)
    assert (found is None) if number is None else (Fraction(number) in found)


@pytest.mark.parametrize(
    ("response", "reference", "score"),
    [
        ("That makes 18.00 dollars", "18", 1.0),
        ("17,000", "#### 17000", 1.0),
        ("25%", "0.25", 1.0),
        ("25%", "25", 1.0),
        ("0.5", "50%", 1.0),
        ("3 million", "3,000,000", 1.0),
        ("0.75", "3/4", 1.0),
        ("0.333", "1/3", 0.0),
        ("-18", "18", 0.0),
        ("18 of 20", "18", 0.0),
        ("no idea", "18", 0.0),
    ],
)
def test_number(response, reference, score):
    found = verdict("number", response, reference)
    assert (found.score, found.reason, found.text_hash) == (score, None, ids.text_hash(response))


def test_a_number_needs_a_reference_with_one():
    assert (verdict("number", "4").score, verdict("number", "4").reason) == (None, "no_reference")
    assert verdict("number", "4", "four").reason == "reference_has_no_number"


@given(st.fractions(), st.text(alphabet="abc ,.!$\n", max_size=20))
def test_every_fraction_is_read_back(number, noise):
    assert number in final_number(f"{noise} {number}")


@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_thousands_and_decimals_change_nothing(whole, places):
    assert numbers(f"{whole:,}.{'0' * places}" if places else f"{whole:,}.") == [frozenset([Fraction(whole)])]


def test_commas_that_part_no_thousands():
    assert numbers("1,234,56") == [frozenset([Fraction(n)]) for n in (1, 234, 56)]
    assert numbers("1,234,567 and 12,34") == [frozenset([Fraction(n)]) for n in (1234567, 12, 34)]


@pytest.mark.timeout(120)  # by patterns that go back again and again it would take hours
def test_reading_a_degenerate_answer_takes_no_time():
    numbers("100," * 5_000 + "10")
    final_number(r"\boxed{" * 2_000)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("**B.**", "B"),
        ("The answer is (C).", "C"),
        ("The answer is **C**, not D", "C"),
        ("Answer: d", "D"),
        ("First I thought the answer is A, but the answer is B.", "B"),
        ("#### D", "D"),
        (r"\boxed{A}", "A"),
        ("B) because water is wet", "B"),
        ("I choose (A)", "A"),
        ("(A) is tempting, (B) is right", None),
        ("The answer is a number", None),
        ("A dog and a cat", None),
        ("Z", None),
        ("", None),
    ],
)
def test_the_letter_an_answer_chooses(text, letter):
    assert chosen_letter(text) == letter


def test_choice():
    assert verdict("choice", "The answer is (C)", "C").score == 1.0
    assert verdict("choice", "The answer is (C)", "B").score == 0.0
    assert verdict("choice", "who knows", "B").score == 0.0
    assert verdict("choice", "C").reason == "no_reference"
    assert verdict("choice", "C", "all of them").reason == "reference_has_no_choice"


def test_regex():
    assert verdict(r"regex:colou?r", "my color").score == 1.0
    assert verdict(r"regex:colou?r", "my colr").score == 0.0
    assert verdict(r"regex:= (\d+)", "1 + 1 = 2, 2 + 2 = 4", "4").score == 1.0
    assert verdict(r"regex:= (\d+)", "1 + 1 = 4, 2 + 2 = 2", "4").score == 0.0
    assert verdict(r"regex:= (\d+)", "= 5").score == 1.0


def test_a_pattern_that_never_ends_is_a_null():
    found = verdict(r"regex:(a+)+$", "a" * 40 + "b", time_limit=0.5)
    assert (found.score, found.reason, found.details) == (None, "timeout", {"limit_seconds": 0.5})


def test_json_schema(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text('{"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}')
    assert verdict(f"json-schema:{path}", '{"n": 3}').score == 1.0
    assert verdict(f"json-schema:{path}", 'Here:\n```json\n{"n": 3}\n```').score == 1.0
    wrong = verdict(f"json-schema:{path}", '{"n": "3"}')
    assert (wrong.score, wrong.details["at"]) == (0.0, "$.n")
    assert verdict(f"json-schema:{path}", "{n: 3}").score == 0.0
    assert verdict(f"json-schema:{path}", '{"n": NaN}').score == 0.0
    path.write_text("{}")
    assert verdict(f"json-schema:{path}", "NaN").score == 0.0
    path.write_text('{"$ref": "https://example.com/schema.json"}')
    assert verdict(f"json-schema:{path}", "{}").score is None
    path.write_text('{"type": "nothing"}')
    with pytest.raises(InputError, match="is not a JSON schema"):
        open_verifier(f"json-schema:{path}")
    with pytest.raises(InputError, match="can be read"):
        open_verifier(f"json-schema:{tmp_path}/nowhere.json")


def test_the_last_number_of_a_long_text_is_that_of_all_its_numbers():
    for end in (
        "",
        " so 7",
        " so 3/4",
        " so 12,345.5",
        r" so \frac{1}{3}",
        " x" * 9000,
        " 8" + " x" * 9000,
        " 9" + " x" * 200_000,
    ):
        for long in ("no number " * 3000, "1 " * 9000, "1,234," * 4000, "9" * 30_000, r"\frac{1}{2} " * 3000):
            found = numbers(long + end)
            assert final_number(long + end) == (found[-1] if found else None)


def test_a_text_of_megabytes_is_read_in_time():
    """Each of these took minutes, or a time that grows with the square of the length."""
    for text in ("The answer is 7, " * 300_000, r"\boxed{" * 200_000, "{" * 2_000_000, r"\boxed{" + "a" * 3_000_000):
        final_number(text)


@pytest.mark.parametrize(
    "schema",
    ["[" * 100_000, "9" * 10_000, '"x"', "[]", '{"$schema": []}', '{"type": 7}', '{"pattern": "("}', "null", "\ud83d"],
    ids=["deep", "long number", "text", "list", "schema of a list", "type", "pattern", "null", "not UTF-8"],
)  # fmt: skip
def test_a_schema_that_is_none(tmp_path, schema):
    (tmp_path / "s.json").write_bytes(schema.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError, match="is not a JSON schema"):
        open_verifier(f"json-schema:{tmp_path}/s.json")


def test_a_pattern_in_a_schema_has_the_time_of_others(tmp_path):
    (tmp_path / "s.json").write_text('{"type": "string", "pattern": "^(a+)+$"}')
    found = verdict(f"json-schema:{tmp_path}/s.json", '"' + "a" * 60 + '!"', time_limit=0.5)
    assert (found.score, found.reason) == (None, "timeout")


def test_json_schema_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(InputError, match="pip install jsonschema"):
        open_verifier("json-schema:schema.json")


FUNCTIONS = """
import os, subprocess, sys, time
def right(messages, response): return response == "right"
def wanted(messages, response, reference, metadata=None): return {"score": response == reference, "meta": metadata}
def moody(messages, response):
    print("a word in between")
    if response == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open(__file__ + ".pid", "w").write(f"{os.getpid()} {child.pid}")
        time.sleep(600)
    if response == "die": os._exit(7)
    if response == "quit": sys.exit(3)
    if response == "raise": raise KeyError("x")
    return len(response)
def odd(messages, response): return {"score": 1, "bag": {1, 2}}
def slow(messages, response): time.sleep(0.2); return os.getpid()
"""


@pytest.fixture
def functions(tmp_path):
    path = tmp_path / "checks.py"
    path.write_text(FUNCTIONS)
    return path


def test_a_function(functions):
    assert verdict(f"{functions}:right", "right").score == 1.0
    assert verdict(f"{functions}:right", "wrong").score == 0.0
    found = verdict(f"{functions}:wanted", "x", "x")
    assert verdict(f"{functions}:odd", "x").reason == "details_not_json"
    assert (found.score, found.details, found.text_hash) == (1.0, {"meta": None}, ids.text_hash("x"))


def alive(pid: int) -> bool:
    """Whether it runs: a zombie that nobody has buried yet does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_what_hangs_or_dies_never_stops_the_rest(functions):
    scorer = open_verifier(f"{functions}:moody", time_limit=5.0, workers=2)
    answers = ["hang", "one", "die", "three", "raise", "quit", "seventh"]
    found = {s.key: s for s in scorer.score(item(text, key=text) for text in answers)}
    assert {key: (s.score, s.reason) for key, s in found.items()} == {
        "hang": (None, "timeout"),
        "one": (3.0, None),
        "die": (None, "worker_died"),
        "three": (5.0, None),
        "raise": (None, "KeyError"),
        "quit": (None, "SystemExit"),
        "seventh": (7.0, None),
    }
    assert found["die"].details == {"exit_code": 7}
    hung, child = map(int, (functions.parent / "checks.py.pid").read_text().split())
    deadline = time.monotonic() + 120
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(hung)
    assert not alive(child)
    assert [s.score for s in scorer.score([item("again")])] == [5.0]
    scorer.close()


def test_every_answer_is_scored_once_by_several_processes(functions):
    scorer = open_verifier(f"{functions}:slow", time_limit=30, workers=2)
    found = list(scorer.score(item("x", key=str(i)) for i in range(12)))
    scorer.close()
    assert sorted(s.key for s in found) == sorted(map(str, range(12)))
    pids = {int(s.score) for s in found}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert not any(map(alive, pids))


def test_answers_are_pulled_as_they_are_needed(functions):
    pulled = []
    scorer = open_verifier(f"{functions}:right", workers=2)
    stream = scorer.score(pulled.append(i) or item("right", key=str(i)) for i in range(100))
    next(stream)
    assert len(pulled) <= 4
    stream.close()
    scorer.close()


def test_odd_texts_reach_the_function_and_come_back(functions):
    text = 'half an emoji \ud83d, a "quote", \x00 and 日本'
    assert verdict(f"{functions}:moody", text).score == len(text)


def test_code_that_cannot_be_loaded_says_so(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import nowhere_at_all")
    with pytest.raises(InputError, match="cannot be imported: ModuleNotFoundError"):
        verdict(f"{path}:check", "x")
    path.write_text("def chekc(m, r): return 1")
    with pytest.raises(InputError, match='Did you mean "chekc"'):
        verdict(f"{path}:check", "x")


def test_unknown_verifiers_and_broken_patterns():
    with pytest.raises(InputError, match='Did you mean "number"'):
        open_verifier("numbr")
    with pytest.raises(InputError, match="is not a regular expression"):
        open_verifier("regex:(")
    with pytest.raises(InputError, match=r"there is no file nowhere\.py"):
        open_verifier("nowhere.py:check")


@pytest.mark.slow
def test_workers_end_by_themselves_where_the_one_who_started_them_was_killed(functions):
    """kill -9 of the parent while one worker hangs and one waits: the one ends by its alarm, the other at once."""
    code = f"""
from prefdata.scorers.protocol import ScoringItem
from prefdata.scorers.rules.verifiers import open_verifier
scorer = open_verifier("{functions}:moody", time_limit=1.0, workers=2)
for found in scorer.score(ScoringItem(str(i), (), text, False) for i, text in enumerate(["one", "hang"])):
    print(found.key, *[w.process.pid for w in scorer._workers._workers], flush=True)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    first = parent.stdout.readline().split()
    mark = functions.parent / "checks.py.pid"
    while not mark.exists() or not mark.read_text():
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    hung, child = map(int, mark.read_text().split())
    os.kill(child, signal.SIGKILL)  # what the code started itself is nobody's any more
    pids = {*map(int, first[1:]), hung}
    deadline = time.monotonic() + 120
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, pids))
