"""Beam search: transformers' own where it has one, a reference in plain Python where it has not."""

from __future__ import annotations

import random

import pytest
import torch

from prefdata.engines.hf.beam_search import Beam, BeamGroup, BeamRequest
from prefdata.engines.hf.generator import TransformersGenerator
from prefdata.engines.protocol import Completion, Rejection, Sampling
from prefdata.models.files import identify

TEXTS = ["hi", "Tell me.", "Größe?", "what is this", "🎬", "a b c d e f g h"]
ENDS = (2, 3)


@pytest.fixture(scope="module")
def engine(tiny_policy):
    generator = TransformersGenerator(identify(str(tiny_policy), "causal-lm"), device="cpu", dtype="float32")
    yield generator
    generator.close()


def sampling(max_tokens: int = 24, **settings) -> Sampling:
    return Sampling(**{"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": max_tokens, **settings})


def asked(engine, beams: int, how: Sampling, penalty: float | None = None) -> list[BeamRequest]:
    return [
        BeamRequest(
            tuple(f"{i}-{k}" for k in range(beams)), engine.render([{"role": "user", "content": text}]), how, penalty
        )
        for i, text in enumerate(TEXTS)
    ]


def beams(engine, requests: list[BeamRequest]) -> dict[str, Completion]:
    found = {answer.key: answer for answer in engine.beams(iter(requests))}
    assert set(found) == {key for request in requests for key in request.keys}
    assert all(isinstance(answer, Completion) for answer in found.values())
    return found


def next_logps(engine, prompt: tuple[int, ...], answer: tuple[int, ...]) -> list[float]:
    with torch.inference_mode():
        logits = engine._net(torch.tensor([[*prompt, *answer]])).logits[0, -1]
    return logits.double().log_softmax(-1).tolist()


@pytest.mark.parametrize(("n", "most"), [(1, 24), (2, 24), (4, 24), (4, 60), (7, 6), (4, 1)])
def test_plain_beams_are_transformers_own(engine, n, most):
    found = beams(engine, requests := asked(engine, n, sampling(most)))
    for request in requests:
        prompt = torch.tensor([request.prompt_ids])
        own = engine._net.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            num_beams=n,
            num_return_sequences=n,
            do_sample=False,
            max_new_tokens=most,
            early_stopping=False,
            repetition_penalty=1.0,  # the model's own default is another
            length_penalty=1.0,
        )
        for key, row in zip(request.keys, own[:, prompt.shape[1] :].tolist(), strict=True):
            end = next((i + 1 for i, token in enumerate(row) if token in ENDS), len(row))
            assert found[key].token_ids == tuple(row[:end])
            assert found[key].finish_reason == ("stop" if row[end - 1] in ENDS else "length")
    if most < 10:
        assert "length" in {answer.finish_reason for answer in found.values()}


def diverse(engine, prompt: tuple[int, ...], groups: int, penalty: float, most: int) -> list[tuple[int, ...]]:
    """Diverse beams by the book: group g takes argmax of ln p less penalty x (earlier groups with that token)."""
    answers: list[tuple[int, ...]] = [()] * groups
    scores = [0.0] * groups
    for _ in range(most):
        taken: list[int] = []
        for g in range(groups):
            if answers[g] and answers[g][-1] in ENDS:
                continue
            logps = next_logps(engine, prompt, answers[g])
            token = max(range(len(logps)), key=lambda t: logps[t] - penalty * taken.count(t))
            taken.append(token)
            answers[g], scores[g] = (*answers[g], token), scores[g] + logps[token]
    order = sorted(range(groups), key=lambda g: -scores[g] / len(answers[g]))
    return [answers[g] for g in order]


@pytest.mark.parametrize("penalty", [0.3, 1.0, 5.0])
def test_diverse_beams_are_those_of_the_reference(engine, penalty):
    found = beams(engine, requests := asked(engine, 4, sampling(24), penalty))
    for request in requests:
        expected = diverse(engine, request.prompt_ids, 4, penalty, 24)
        assert [found[key].token_ids for key in request.keys] == expected
        if penalty == 5.0:
            assert len({ids[0] for ids in expected}) == 4  # the penalty exceeds the lead of the likeliest token


def test_without_a_penalty_every_group_is_greedy(engine):
    found = beams(engine, requests := asked(engine, 3, sampling(24), 0.0))
    greedy = beams(engine, asked(engine, 1, sampling(24)))
    for i, request in enumerate(requests):
        assert {found[key].token_ids for key in request.keys} == {greedy[f"{i}-0"].token_ids}


@pytest.mark.parametrize("penalty", [None, 1.0])
def test_neighbours_and_order_mean_nothing(engine, penalty):
    requests = asked(engine, 4, sampling(30), penalty)
    together = beams(engine, requests)
    other = beams(engine, random.Random(0).sample(requests, len(requests)))
    alone = {key: answer for request in requests for key, answer in beams(engine, [request]).items()}
    assert together.keys() == other.keys() == alone.keys()
    assert all(together[key].token_ids == other[key].token_ids == alone[key].token_ids for key in together)


@pytest.mark.parametrize("penalty", [None, 1.0])
def test_log_probabilities_are_the_models_own(engine, penalty):
    how = sampling(8, logprobs=True, repetition_penalty=1.3, temperature=0.7)
    found = beams(engine, requests := asked(engine, 3, how, penalty))
    for request in requests[:3]:
        for key in request.keys:
            ids = found[key].token_ids
            own = [next_logps(engine, request.prompt_ids, ids[:at])[ids[at]] for at in range(len(ids))]
            assert found[key].logprobs == pytest.approx(own, abs=1e-4)
            assert found[key].logprob_sum == pytest.approx(sum(own), abs=1e-4)


@pytest.mark.parametrize("penalty", [None, 1.0])
def test_penalties_and_min_tokens_hold(engine, penalty):
    found = beams(engine, asked(engine, 4, sampling(24, min_tokens=20), penalty))
    assert all(len(answer.token_ids) > 20 or answer.finish_reason == "length" for answer in found.values())
    assert all(token not in ENDS for answer in found.values() for token in answer.token_ids[:20])
    found = beams(engine, asked(engine, 4, sampling(24, presence_penalty=2.0, repetition_penalty=50.0), penalty))
    for answer in found.values():
        assert len(set(answer.token_ids)) == len(answer.token_ids)


@pytest.mark.parametrize("penalty", [None, 1.0])
def test_a_stop_text_ends_a_beam(engine, penalty):
    plain = beams(engine, asked(engine, 4, sampling(24), penalty))
    stop = next(a.text[3:5] for a in plain.values() if len(a.text) > 6 and "\ufffd" not in a.text[3:5])
    found = beams(engine, asked(engine, 4, sampling(24, stop=(stop,)), penalty))
    assert all(stop not in answer.text for answer in found.values())
    stopped = [a for a in found.values() if a.finish_reason == "stop" and a.token_ids[-1] not in ENDS]
    assert stopped
    for answer in stopped:
        whole = engine.chat.decode(answer.token_ids)
        assert whole == answer.text + stop


def test_a_group_is_done_when_nothing_open_can_be_better():
    group = BeamGroup(2, [Beam(0.0)])
    group.close([Beam(-1.0, (5,))], [Beam(-1.5, (6,)), Beam(-2.0, (7,))])
    assert not group.done  # one of two is finished
    group.close([Beam(-2.2, (6, 5))], [Beam(-2.1, (6, 6)), Beam(-4.0, (7, 7))])
    assert [beam.mean for beam in group.finished] == [-1.0, -1.1]
    assert not group.done  # -2.1 / 2 is better than -1.1
    group.close([Beam(-3.6, (6, 6, 5))], [Beam(-3.45, (6, 6, 6))])
    assert [beam.mean for beam in group.finished] == [-1.0, -1.1]
    assert group.done  # -3.45 / 3 is not


def test_prompts_that_cannot_be_answered_and_beams_that_do_not_exist(engine):
    full = BeamRequest(("a", "b"), tuple([1] + [70] * 127), sampling(), None)
    many = BeamRequest(tuple(f"m{i}" for i in range(261)), (1, 70), sampling(1), None)
    found = {answer.key: answer for answer in engine.beams(iter([full, many]))}
    assert found["a"] == Rejection("a", "prompt_too_long", "128 prompt tokens in a context of 128")
    assert isinstance(found["b"], Rejection)
    assert [key for key, answer in found.items() if key[0] == "m" and isinstance(answer, Rejection)] == ["m260"]
    assert found["m260"].detail == "the search found 260 responses, not 261"
