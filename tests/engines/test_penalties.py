"""What changes the logits before a draw, by hand and against vLLM's order."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata.engines.hf.penalties import Penalties
from prefdata.engines.protocol import Sampling

ENDS = torch.tensor([0, 4])


def sampling(**changes) -> Sampling:
    return Sampling(1.0, 1.0, 0, 9, **changes)


def penalised(logits: list[float], how: Sampling, prompt: list[int], answer: list[int], step: int = 0) -> list[float]:
    penalties = Penalties.of([how], [prompt], ENDS, len(logits))
    if penalties is None:
        return logits
    for token in answer:
        penalties.note(torch.tensor([token]))
    return penalties(torch.tensor([logits]), step)[0].tolist()


def test_nothing_asked_nothing_made():
    assert Penalties.of([sampling(), sampling()], [[1], [2]], ENDS, 5) is None


def test_the_repetition_penalty_by_hand():
    """2: token 1 (prompt) 3 -> 1.5; token 2 (answer) -1 -> -2; token 3 (both) 0 -> 0; the others stay."""
    how = sampling(repetition_penalty=2.0)
    assert penalised([1.0, 3.0, -1.0, 0.0, -5.0], how, [1, 3, 1], [2, 3, 3]) == [1.0, 1.5, -2.0, 0.0, -5.0]


def test_the_presence_penalty_by_hand():
    """0.5 off the answer's tokens (2 twice, and 3: once each), not off the prompt's (1)."""
    how = sampling(presence_penalty=0.5)
    assert penalised([1.0, 3.0, -1.0, 0.0, -5.0], how, [1, 3], [2, 2, 3]) == [1.0, 3.0, -1.5, -0.5, -5.0]


def test_repetition_comes_before_presence():
    """3 / 2 - 0.5 = 1; the other way round it would be (3 - 0.5) / 2 = 1.25."""
    how = sampling(repetition_penalty=2.0, presence_penalty=0.5)
    assert penalised([0.0, 3.0, 0.0, 0.0, 0.0], how, [2], [1])[1] == 1.0


def test_end_tokens_are_barred_until_the_minimum():
    how = sampling(min_tokens=2)
    for step, barred in ((0, True), (1, True), (2, False), (3, False)):
        found = penalised([1.0, 2.0, 3.0, 4.0, 5.0], how, [1], [], step)
        assert found == ([-math.inf, 2.0, 3.0, 4.0, -math.inf] if barred else [1.0, 2.0, 3.0, 4.0, 5.0])


logit = st.floats(-20, 20)
asked = st.builds(
    sampling,
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.2, 3.0]),
    presence_penalty=st.sampled_from([0.0, -1.0, 0.7]),
    min_tokens=st.integers(0, 3),
)
row = st.tuples(
    asked,
    st.lists(logit, min_size=5, max_size=5),
    st.lists(st.integers(0, 4), min_size=1),
    st.lists(st.integers(0, 4), min_size=2, max_size=2),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(row, min_size=1, max_size=5), st.integers(0, 3))
def test_a_rows_penalties_are_its_own_and_those_of_the_formula(rows, step):
    hows, logits, prompts, answers = (list(column) for column in zip(*rows, strict=True))
    together = Penalties.of(hows, prompts, ENDS, 5)
    if together is not None:
        for tokens in zip(*answers, strict=True):
            together.note(torch.tensor(tokens))
        backwards = torch.arange(len(rows) - 1, -1, -1)
        found = together.rows(backwards)(torch.tensor(logits)[backwards], step)[backwards].tolist()
    for i, (how, own, prompt, answer) in enumerate(rows):
        expected = []
        for token, value in enumerate(torch.tensor(own).tolist()):
            if token in prompt or token in answer:
                value = value / how.repetition_penalty if value > 0 else value * how.repetition_penalty
            value -= how.presence_penalty * (token in answer)
            expected.append(-math.inf if step < how.min_tokens and token in (0, 4) else value)
        got = torch.tensor(logits[i]).tolist() if together is None else found[i]
        torch.testing.assert_close(torch.tensor(got), torch.tensor(expected))


def test_the_logits_that_come_in_are_left_alone():
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    penalties = Penalties.of([sampling(min_tokens=1, repetition_penalty=2.0)], [[1]], ENDS, 5)
    assert penalties is not None
    penalties(logits, 0)
    assert logits.tolist() == [[1.0, 2.0, 3.0, 4.0, 5.0]]
