"""The states of an answer are those of a plain forward pass at its own tokens, whatever stands beside it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from prefdata import ids
from prefdata.models.files import identify
from prefdata.scorers.causal_lm.hidden_states import AnswerStates, StateSimilarity
from prefdata.scorers.protocol import Score, ScoringItem

PROMPT = ({"role": "user", "content": "Say something."},)
RENDERED = "<bos>[user] Say something.<eot>[assistant] "
ANSWERS = [" ", "yes", "no, never", "é 🎬", "long " * 12, "yes"]


def items(answers: list[str], reference: str | None = None) -> list[ScoringItem]:
    return [ScoringItem(str(i), PROMPT, text, False, reference) for i, text in enumerate(answers)]


def one_by_one(folder, answer: str) -> np.ndarray:
    """The last hidden states (after the last norm) at the answer's tokens, of one row alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before, own = (tokenizer.encode(text, add_special_tokens=False) for text in (RENDERED, answer))
    with torch.inference_mode():
        states = net(torch.tensor([before + own]), output_hidden_states=True).hidden_states[-1][0]
    return states[len(before) :].numpy()


def cosine_of_means(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.mean(0), b.mean(0)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def open_states(folder, **more) -> AnswerStates:
    return AnswerStates(identify(str(folder), "causal-lm"), device="cpu", **more)


@pytest.mark.parametrize("budget", [1, 120, 100_000])
def test_equal_to_one_by_one_whatever_the_batch_and_order(tiny_policy, budget):
    states = open_states(tiny_policy, batch_tokens=budget)
    asked = random.Random(0).sample(items(ANSWERS), len(ANSWERS))
    for item, found in zip(asked, states.of(asked), strict=True):
        expected = one_by_one(tiny_policy, item.response)
        assert found.shape == expected.shape == (len(item.response.encode()), 64)
        assert found.dtype == np.float32
        assert np.allclose(found, expected, atol=1e-5)


def test_what_has_no_states_says_why(tiny_policy):
    odd = ScoringItem("odd", ({"role": "critic", "content": "x"},), "y", False)
    empty, long, fine, refused = open_states(tiny_policy).of([*items(["", "x" * 128, "y"]), odd])
    assert [one.reason for one in (empty, long, refused)] == ["empty", "too_long", "refused_by_template"]
    assert all(isinstance(one, Score) and one.score is None for one in (empty, long, refused))
    assert fine.shape == (1, 64)


def test_the_similarity_gets_the_answers_states_and_then_the_references(tiny_policy):
    seen = []

    def measure(answer: np.ndarray, reference: np.ndarray) -> float:
        seen.append((len(answer), len(reference)))
        return cosine_of_means(answer, reference)

    scorer = StateSimilarity(identify(str(tiny_policy), "causal-lm"), measure, device="cpu", batch_tokens=200)
    found = {s.key: s for s in scorer.score(items(ANSWERS, reference="yes"))}
    assert sorted(seen) == sorted((len(answer.encode()), 3) for answer in ANSWERS)
    for i, answer in enumerate(ANSWERS):
        expected = cosine_of_means(one_by_one(tiny_policy, answer), one_by_one(tiny_policy, "yes"))
        assert found[str(i)].score == pytest.approx(expected, abs=1e-5)
        assert found[str(i)].text_hash == ids.text_hash(f"{RENDERED}{answer}<eot>")
    assert found["1"].score == pytest.approx(1, abs=1e-6)
    assert found["1"].details == {"tokens": 3, "reference_tokens": 3}


def test_without_a_reference_there_is_no_score(tiny_policy):
    scorer = StateSimilarity(identify(str(tiny_policy), "causal-lm"), cosine_of_means, device="cpu")
    asked = [
        ScoringItem("none", PROMPT, "y", False),
        *items(["y"], reference=""),
        ScoringItem("fine", PROMPT, "y", False, "y"),
    ]
    found = {s.key: s for s in scorer.score(asked)}
    assert {key: s.reason for key, s in found.items()} == {"none": "no_reference", "0": "reference_empty", "fine": None}


def test_a_measure_that_gives_no_number_gives_no_score(tiny_policy):
    scorer = StateSimilarity(identify(str(tiny_policy), "causal-lm"), lambda a, b: float("nan"), device="cpu")
    (one,) = scorer.score(items(["y"], reference="y"))
    assert (one.score, one.reason) == (None, "nan")
