"""The true reward, by hand and by its claimed properties."""

import math
import subprocess
import sys
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefdata.sample_data import world
from prefdata.sample_data.grammar import draw_answer, draw_request
from prefdata.sample_data.world import Wishes, sentences, true_reward, true_reward_parts, well_formed, wishes, words


def ask(text, system=None):
    turns = [{"role": "system", "content": system}] if system else []
    return [*turns, {"role": "user", "content": text}]


FULL = ask("Write a kind review of a horror film about an old lighthouse. Mention the music. Use two sentences.")
OPEN = ask("Review a film about two sisters.")
BALANCED = ask("Review a western about a stray dog.", system="You are a fair film critic.")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (FULL, Wishes("lighthouse", "horror", "warm", "music", 2)),
        (OPEN, Wishes(topic="sisters")),
        (BALANCED, Wishes("dog", "western", "balanced")),
        (ask("Hello!", system="Answer in four sentences."), Wishes(sentences=4)),
        ([*OPEN, {"role": "assistant", "content": "A comedy."}, *ask("Be harsh.")], Wishes("sisters", None, "harsh")),
        ([], Wishes()),
    ],
)
def test_wishes_are_read_from_system_and_user_turns(messages, expected):
    assert wishes(messages) == expected


@pytest.mark.parametrize(
    ("messages", "response", "parts"),
    [
        # All that was asked, and nothing else: the highest reward, 4.
        (
            FULL,
            "I loved this horror film about an old lighthouse. The music is lovely.",
            {"topic": 1, "genre": 0.5, "tone": 1, "aspect": 0.5, "length": 1, "repetition": 0, "form": 0},
        ),
        # One warm word and two harsh ones: (1 - 2) / 3. One sentence of two: 1 - 1/2. Another genre.
        (
            FULL,
            "What a lovely comedy, if dull and hollow.",
            {"topic": 0, "genre": -0.5, "tone": -1 / 3, "aspect": 0, "length": 0.5, "repetition": 0, "form": 0},
        ),
        # 6 words said twice: 12 words, 10 triples, 6 of them distinct: -2 x 4/10. Length 12/40; warm asks for nothing.
        (
            OPEN,
            "The two sisters are so lovely. The two sisters are so lovely.",
            {"topic": 1, "genre": 0, "tone": 0, "aspect": 0, "length": 0.3, "repetition": -0.8, "form": 0},
        ),
        # Two warm, one harsh for a balanced review: 1 - 1/3. The second of two sentences breaks off.
        (
            BALANCED,
            "The stray dog is lovely, clever and dull. See this western on",
            {"topic": 1, "genre": 0.5, "tone": 2 / 3, "aspect": 0, "length": 0.3, "repetition": 0, "form": -0.5},
        ),
        (FULL, "", {"topic": 0, "genre": 0, "tone": 0, "aspect": 0, "length": 0, "repetition": 0, "form": -1}),
        (OPEN, " ?! \n", {"topic": 0, "genre": 0, "tone": 0, "aspect": 0, "length": 0, "repetition": 0, "form": -1}),
    ],
)
def test_parts_by_hand(messages, response, parts):
    assert true_reward_parts(messages, response) == pytest.approx(parts, abs=1e-12)
    assert true_reward(messages, response) == pytest.approx(sum(parts.values()), abs=1e-12)


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("It is fine.", True),
        ("Is it fine?", True),
        ("it is fine.", False),  # no capital
        ("It is fine", False),  # no mark
        ("It is.", False),  # two words
        ("It is is fine.", False),  # doubled
        ("So " + "very nice " * 11 + "indeed.", True),  # 24 words
        ("So very " + "nice very " * 11 + "indeed.", False),  # 25 words
        ("", False),
    ],
)
def test_well_formed(sentence, expected):
    assert well_formed(sentence) is expected


def test_sentences_keep_their_marks():
    assert sentences("One. Two?! Three") == ["One.", "Two?!", "Three"]
    assert sentences("...") == []


BOUNDS = {
    "topic": (0, 1),
    "genre": (-0.5, 0.5),
    "tone": (-1, 1),
    "aspect": (0, 0.5),
    "length": (0, 1),
    "repetition": (-2, 0),
    "form": (-1, 0),
}


@given(st.text(), st.text())
def test_any_text_is_within_the_bounds(request, response):
    for messages in (ask(request), FULL, OPEN, BALANCED):
        parts = true_reward_parts(messages, response)
        assert list(parts) == list(BOUNDS)
        assert all(low <= parts[name] <= high for name, (low, high) in BOUNDS.items())
        assert math.isfinite(true_reward(messages, response))
        assert true_reward(messages, response) == sum(parts.values())


@given(st.integers(0, 100))
def test_length_grows_to_forty_words_and_no_further(count):
    said = " ".join(f"word{i}" for i in range(count))
    assert true_reward_parts(OPEN, said)["length"] == pytest.approx(min(count, 40) / 40)


@given(st.integers(1, 8))
def test_the_asked_number_of_sentences_is_best(count):
    text = " ".join(f"This is sentence{i}." for i in range(count))
    length = true_reward_parts(FULL, text)["length"]
    assert (length == 1.0) == (count == 2)


@given(st.integers(1, 10))
def test_saying_it_again_never_helps_repetition(times):
    text = "The old keeper climbs the stairs."
    parts = [true_reward_parts(OPEN, " ".join([text] * n))["repetition"] for n in (times, times + 1)]
    assert parts[1] < parts[0] <= 0


@given(st.integers(0, 2**32), st.floats(0, 1))
def test_what_the_grammar_asks_is_what_the_reward_reads(seed, care):
    rng = Random(seed)
    request = draw_request(rng)
    assert wishes(request.messages) == request.wishes
    answer = draw_answer(rng, request.wishes, care)
    assert 2 <= len(sentences(answer)) <= 5
    assert len(words(answer)) <= 75


def test_care_helps():
    rng, means = Random(0), []
    for care in (0.0, 0.5, 1.0):
        requests = [draw_request(rng) for _ in range(300)]
        means.append(sum(true_reward(r.messages, draw_answer(rng, r.wishes, care)) for r in requests) / 300)
    assert means[0] < means[1] - 0.5 < means[2] - 1.0


def test_no_word_means_two_things():
    tones = [word for names in world.TONES.values() for word in names]
    kinds = [list(world.TOPICS), list(world.GENRES), tones, list(world.ASPECTS), list(world.NUMBERS)]
    known = [word for kind in kinds for word in kind]
    assert len(known) == len(set(known))
    assert not world.WARM_WORDS & world.HARSH_WORDS
    assert all(words(phrase).count(word) == 1 for word, phrase in (world.TOPICS | world.GENRES).items())


def test_the_true_reward_needs_the_standard_library_only():
    """A user names the file to `rank --function`; loading it must be light, and possible by path."""
    code = (
        "import sys, runpy; f = runpy.run_path(sys.argv[1], run_name='world')['true_reward'];"
        "assert f([{'role': 'user', 'content': 'Review a film about two sisters.'}], '') == -1.0;"
        "print({'torch', 'pydantic', 'pyarrow', 'prefdata'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, world.__file__], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
