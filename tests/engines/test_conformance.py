"""What every engine has to do, asked of each of them: transformers always, vLLM under the marker `vllm`."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import count, islice

import pytest
import torch

from prefdata import ids
from prefdata.engines.open import open_generator, remote_model_files
from prefdata.engines.protocol import Completion, Rejection, Request, Sampling
from prefdata.models.files import identify
from prefdata.specs import EngineSpec, ModelSpec

PLAIN = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=40)
GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_tokens=40)
TEXTS = ["hi", "Tell me.", "Größe? Straße!", "说点什么", "🎬🍿", "a\x00b\u200b\n\n", " ", "é" * 20, "what is " * 5]
ENDS = (2, 3)


ENGINES = ["transformers", *(pytest.param(name, marks=pytest.mark.vllm) for name in ("vllm", "openai"))]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, tiny_policy):
    files = identify(str(tiny_policy), "causal-lm")
    if request.param == "openai":
        url = request.getfixturevalue("tiny_server")
        spec = ModelSpec(model="policy", engine="openai", base_url=url, tokenizer=str(tiny_policy))
        generator = open_generator(spec, remote_model_files(spec), "openai")
    elif request.param == "vllm":
        from prefdata.engines.vllm.generator import VllmGenerator

        generator = VllmGenerator(files, EngineSpec(dtype="float32"))
    else:
        from prefdata.engines.hf.generator import TransformersGenerator

        generator = TransformersGenerator(files, device="cpu", dtype="float32", batch_tokens=2000)
    yield generator
    generator.close()


def requests(engine, samples: int, sampling: Sampling = PLAIN, run_seed: int = 0) -> list[Request]:
    prompts = [engine.render([{"role": "user", "content": text}]) for text in TEXTS]
    return [
        Request(f"{i}-{k}", prompt, ids.seed(run_seed, i, k), sampling)
        for i, prompt in enumerate(prompts)
        for k in range(samples)
    ]


def answers(engine, asked) -> dict[str, Completion]:
    found = list(engine.generate(iter(asked)))
    assert all(isinstance(answer, Completion) for answer in found)
    assert len({answer.key for answer in found}) == len(found)
    return {answer.key: answer for answer in found}


def test_what_it_says_of_itself(engine, tiny_policy):
    assert engine.name in ("transformers", "vllm", "openai")
    assert engine.model.path == tiny_policy
    assert (engine.context_length, engine.renders) == (128, True)
    remote = engine.name == "openai"
    assert engine.computed == ({} if remote else {"dtype": "float32", "device": "cpu"})
    assert set(engine.versions) >= ({"server"} if remote else {engine.name, "torch"})
    assert engine.notes == ()


def test_every_key_is_answered_once(engine):
    asked = requests(engine, 7)
    assert set(answers(engine, asked)) == {request.key for request in asked}


def test_no_requests_no_answers(engine):
    assert list(engine.generate(iter(()))) == []


def test_the_same_seed_draws_the_same_answer(engine):
    asked = requests(engine, 3)
    assert answers(engine, asked) == answers(engine, asked)


def test_order_and_neighbours_mean_nothing(engine):
    asked = requests(engine, 60)
    shuffled = random.Random(0).sample(asked, len(asked))
    whole, other = answers(engine, asked), answers(engine, shuffled)
    few = answers(engine, asked[::41])
    differ = sum(whole[key].token_ids != other[key].token_ids for key in whole)
    assert differ <= 1  # of 540: float32 rounding may move one draw
    assert sum(whole[key].token_ids != few[key].token_ids for key in few) == 0
    same = [key for key in whole if whole[key].token_ids == other[key].token_ids]
    assert max(abs(whole[key].logprob_sum - other[key].logprob_sum) for key in same) < 1e-4


def test_every_candidate_is_its_own_draw(engine):
    found = answers(engine, requests(engine, 20)).values()
    long = [(answer.key.split("-")[0], answer.token_ids) for answer in found if len(answer.token_ids) > 4]
    assert len(long) > 90
    assert len(set(long)) == len(long)  # no two of one prompt
    assert len({token_ids[:2] for _, token_ids in long}) > 50  # nor the same noise for all prompts


def test_other_seeds_draw_other_answers(engine):
    one, two = answers(engine, requests(engine, 5)), answers(engine, requests(engine, 5, run_seed=1))
    long = [key for key in one if len(one[key].token_ids) > 4]
    assert len(long) > 20
    assert all(one[key].token_ids != two[key].token_ids for key in long)


def test_an_answer_ends_with_its_end_token_or_at_its_length(engine):
    found = answers(engine, requests(engine, 20)).values()
    assert {answer.finish_reason for answer in found} == {"stop", "length"}
    for answer in found:
        assert all(token not in ENDS for token in answer.token_ids[:-1])
        if answer.finish_reason == "stop":
            assert answer.token_ids[-1] in ENDS
        else:
            assert answer.token_ids[-1] not in ENDS
            assert len(answer.token_ids) == PLAIN.max_tokens
    ends = {answer.token_ids[-1] for answer in found if answer.finish_reason == "stop"}
    assert ends == set(ENDS)  # each of the model's end tokens ends an answer


def test_each_request_has_its_own_settings(engine):
    base = requests(engine, 1)[0]
    asked = [
        Request(f"{n}", base.prompt_ids, base.seed, Sampling(temperature, top_p, top_k, n))
        for n, (temperature, top_p, top_k) in enumerate(
            [(0.0, 1.0, 0), (1.0, 1.0, 1), (2.0, 1e-6, 0), (1.0, 1.0, 0)], 1
        )
    ]
    found = answers(engine, asked)
    assert [len(found[str(n)].token_ids) <= n for n in (1, 2, 3, 4)] == [True] * 4
    longest = max(("1", "2", "3"), key=lambda key: len(found[key].token_ids))
    for key in ("1", "2", "3"):  # greedy, the first of top-k, the least nucleus: the same likeliest tokens
        assert found[longest].token_ids[: len(found[key].token_ids)] == found[key].token_ids


def test_the_context_bounds_an_answer(engine):
    prompt = tuple([1] + [70] * 119)
    (answer,) = answers(engine, [Request("k", prompt, 3, Sampling(1.0, 1.0, 0, 500))]).values()
    assert len(answer.token_ids) == 8 or answer.finish_reason == "stop"


def test_long_prompts_by_the_hundred(engine):
    """More prompt tokens at a time than an engine computes in one step: a prompt's computation may be interrupted."""
    source = random.Random(0)
    prompts = [(1, *source.choices(range(4, 260), k=source.randint(60, 120))) for _ in range(200)]
    asked = [Request(str(i), prompt, i, Sampling(1.0, 1.0, 0, 4)) for i, prompt in enumerate(prompts)]
    together = answers(engine, asked)
    assert set(together) == {request.key for request in asked}
    for request in asked[::50]:
        assert answers(engine, [request])[request.key].token_ids == together[request.key].token_ids


def test_prompts_that_cannot_be_answered_are_rows(engine):
    fits = Request("fits", tuple([1] + [70] * 126), 3, PLAIN)
    full = Request("full", tuple([1] + [70] * 127), 3, PLAIN)
    empty, foreign = Request("empty", (), 3, PLAIN), Request("foreign", (1, 260), 3, PLAIN)
    found = {answer.key: answer for answer in engine.generate(iter([full, fits, empty, foreign]))}
    assert isinstance(found["fits"], Completion)
    assert len(found["fits"].token_ids) == 1
    assert found["full"] == Rejection("full", "prompt_too_long", "128 prompt tokens in a context of 128")
    assert found["empty"] == Rejection("empty", "rejected", "the prompt has no tokens")
    assert found["foreign"] == Rejection("foreign", "rejected", "token 260 is not among the model's 260")


def test_the_prompt_has_one_bos(engine):
    for text in (*TEXTS, "<bos>hi"):
        prompt = engine.render([{"role": "user", "content": text}])
        assert prompt[0] == 1
        assert prompt[1] != 1


def test_log_probabilities_are_the_models_own(engine, tiny_policy):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32).eval()
    warped = Sampling(temperature=0.7, top_p=0.9, top_k=20, max_tokens=30)
    for sampling in (PLAIN, warped, GREEDY):
        asked = {request.key: request for request in requests(engine, 2, sampling)}
        for key, answer in answers(engine, asked.values()).items():
            prompt = asked[key].prompt_ids
            row = torch.tensor([[*prompt, *answer.token_ids]])
            with torch.inference_mode():
                logp = model(row).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
            expected = float(logp.gather(1, row[0, len(prompt) :, None]).sum())
            assert answer.logprob_sum == pytest.approx(expected, abs=1e-4)


def test_the_text_is_the_tokens_without_special_ones(engine):
    for answer in answers(engine, requests(engine, 10)).values():
        assert answer.text == engine.chat.decode(answer.token_ids)
        assert "<eos>" not in answer.text
        assert "<eot>" not in answer.text


def test_requests_are_pulled_as_they_are_needed(engine):
    prompt = engine.render([{"role": "user", "content": "on and on"}])
    pulled = 0

    def endless() -> Iterator[Request]:
        nonlocal pulled
        for n in count():
            pulled += 1
            yield Request(str(n), prompt, n, Sampling(1.0, 1.0, 0, 2))

    stream = engine.generate(endless())
    taken = list(islice(stream, 5))
    assert len(taken) == 5
    assert pulled <= 2000
    stream.close()
    assert set(answers(engine, requests(engine, 1))) == {f"{i}-0" for i in range(len(TEXTS))}


@pytest.mark.vllm
def test_vllm_and_transformers_take_the_same_likeliest_tokens(tiny_policy):
    from prefdata.engines.hf.generator import TransformersGenerator
    from prefdata.engines.vllm.generator import VllmGenerator

    files = identify(str(tiny_policy), "causal-lm")
    both = []
    for generator in (
        TransformersGenerator(files, device="cpu", dtype="float32"),
        VllmGenerator(files, EngineSpec(dtype="float32")),
    ):
        both.append(answers(generator, requests(generator, 1, GREEDY)))
        generator.close()
    assert {key: a.token_ids for key, a in both[0].items()} == {key: a.token_ids for key, a in both[1].items()}
    assert {key: a.text for key, a in both[0].items()} == {key: a.text for key, a in both[1].items()}


def penalised_greedy(folder, prompt: tuple[int, ...], how: Sampling) -> tuple[int, ...]:
    """The definition, a token at a time, by the network itself: min_tokens, repetition, presence, argmax."""
    answer: list[int] = []
    while len(answer) < how.max_tokens and (not answer or answer[-1] not in ENDS):
        logits = next_logits(folder, (*prompt, *answer))
        for token in range(len(logits)):
            if token in (*prompt, *answer):
                by = how.repetition_penalty
                logits[token] = logits[token] / by if logits[token] > 0 else logits[token] * by
            logits[token] -= how.presence_penalty * (token in answer)
            if token in ENDS and len(answer) < how.min_tokens:
                logits[token] = -float("inf")
        answer.append(max(range(len(logits)), key=logits.__getitem__))
    return tuple(answer)


@cache
def network(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def next_logits(folder, token_ids: tuple[int, ...]) -> list[float]:
    with torch.inference_mode():
        return network(folder)(torch.tensor([token_ids])).logits[0, -1].double().tolist()


@pytest.mark.parametrize(
    "changes",
    [
        {"repetition_penalty": 1.5},
        {"presence_penalty": 2.0},
        {"presence_penalty": -0.7, "repetition_penalty": 1.1},
        {"min_tokens": 12},
        {"min_tokens": 5, "repetition_penalty": 2.0, "presence_penalty": 0.5},
    ],
)
def test_penalties_are_those_of_the_formula(engine, tiny_policy, changes):
    how = Sampling(0.0, 1.0, 0, 16, **changes)
    asked = requests(engine, 1, how)[:5]
    found = answers(engine, asked)
    assert all(found[r.key].token_ids == penalised_greedy(tiny_policy, r.prompt_ids, how) for r in asked)


def test_penalties_leave_the_neighbours_and_the_log_probabilities_alone(engine, tiny_policy):
    plain = requests(engine, 2)
    how = Sampling(1.0, 1.0, 0, 40, min_p=0.02, repetition_penalty=1.3, presence_penalty=0.4, min_tokens=6)
    changed = [Request(f"changed-{r.key}", r.prompt_ids, r.seed, how) for r in plain]
    alone = answers(engine, plain)
    together = answers(engine, [request for pair in zip(plain, changed, strict=True) for request in pair])
    assert all(together[key].token_ids == alone[key].token_ids for key in alone)
    for request in changed[:6]:
        answer = together[request.key]
        row = [*request.prompt_ids, *answer.token_ids]
        with torch.inference_mode():
            logp = network(tiny_policy)(torch.tensor([row])).logits[0].double().log_softmax(-1)
        own = [float(logp[at - 1, row[at]]) for at in range(len(request.prompt_ids), len(row))]
        assert answer.logprob_sum == pytest.approx(sum(own), abs=1e-4)
        assert answer.token_ids[:6] == tuple(token for token in answer.token_ids[:6] if token not in ENDS)


def test_min_p_of_one_takes_the_likeliest(engine):
    greedy = answers(engine, requests(engine, 1, GREEDY))
    found = answers(engine, requests(engine, 1, Sampling(2.0, 1.0, 0, 40, min_p=1.0)))
    assert {key: a.token_ids for key, a in found.items()} == {key: a.token_ids for key, a in greedy.items()}


def test_min_p_cuts_off_what_is_improbable(engine, tiny_policy):
    asked = {request.key: request for request in requests(engine, 4, Sampling(1.0, 1.0, 0, 8, min_p=0.3))}
    for key, answer in answers(engine, asked.values()).items():
        for at, token in enumerate(answer.token_ids):
            before = (*asked[key].prompt_ids, *answer.token_ids[:at])
            logits = next_logits(tiny_policy, before)
            assert logits[token] - max(logits) >= math.log(0.3) - 1e-3


def test_log_probabilities_token_by_token_where_asked_for(engine):
    for sampling in (PLAIN, replace(PLAIN, temperature=0.5, top_k=9)):
        assert all(answer.logprobs is None for answer in answers(engine, requests(engine, 1, sampling)).values())
        for answer in answers(engine, requests(engine, 1, replace(sampling, logprobs=True))).values():
            assert len(answer.logprobs) == len(answer.token_ids)
            assert sum(answer.logprobs) == pytest.approx(answer.logprob_sum, abs=1e-4)
            assert max(answer.logprobs) <= 0


def one_sign(text: str) -> str:
    return "".join(re.findall(r"[!-~]", text[1:])[:1])


def several_tokens(text: str) -> str:
    return "".join(re.findall(r"[!-~]{2}", text[1:])[:1])  # one token is one byte here


def several_bytes(text: str) -> str:
    return "".join(re.findall("[^\x00-\x7f\ufffd]", text[1:])[:1])


@pytest.mark.parametrize("pick", [one_sign, several_tokens, several_bytes])
def test_a_stop_text_ends_an_answer_and_is_cut_off(engine, pick):
    asked = {request.key: request for request in requests(engine, 8)}
    without = answers(engine, asked.values())
    stops = {key: pick(answer.text) for key, answer in without.items() if pick(answer.text)}
    assert len(stops) > 5
    stopping = [replace(asked[key], sampling=replace(PLAIN, stop=("never", stop))) for key, stop in stops.items()]
    for key, answer in answers(engine, stopping).items():
        whole, stop = without[key], stops[key]
        assert answer.text == whole.text[: whole.text.index(stop)]
        assert answer.finish_reason == "stop"
        assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]
        assert engine.chat.decode(answer.token_ids) == answer.text + stop
        assert stop not in engine.chat.decode(answer.token_ids[:-1])


def test_a_stop_text_counts_only_after_the_least_tokens(engine):
    """A stop text that is complete within `min_tokens` tokens does not end the answer; the next one does."""
    asked = {request.key: request for request in requests(engine, 8, replace(PLAIN, min_tokens=8))}
    without = answers(engine, asked.values())
    heads = {key: engine.chat.decode(answer.token_ids[:8]) for key, answer in without.items()}
    stops = {key: one_sign(head) for key, head in heads.items() if one_sign(head)}
    assert len(stops) > 5
    stopping = [replace(asked[key], sampling=replace(asked[key].sampling, stop=(stop,))) for key, stop in stops.items()]
    for key, answer in answers(engine, stopping).items():
        at = without[key].text.find(stops[key], len(heads[key]))
        assert answer.text == without[key].text[: at if at >= 0 else None]
        assert stops[key] in answer.text
