"""The engine that talks to servers: against a server that misbehaves on purpose, and against the real `vllm serve`."""

from __future__ import annotations

import json
import logging
import threading
import time
import traceback
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
from fake_server import KEY, chat, error

from prefdata.chat.template import TemplateRefusal
from prefdata.engines.open import open_generator, remote_model_files
from prefdata.engines.protocol import Completion, Rejection, Request, Sampling
from prefdata.errors import EngineError, ModelError, UsageError
from prefdata.specs import ModelSpec

PLAIN = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=20)
SAMPLE_POLICY = Path(__file__).parents[2] / "sample_data" / "policy"


def requests(count: int, sampling: Sampling = PLAIN, **more: Any) -> list[Request]:
    return [Request(str(i), (), i, sampling, ({"role": "user", "content": f"say {i}"},), **more) for i in range(count)]


def answers(generator: Any, asked: list[Request]) -> dict[str, Completion | Rejection]:
    found = list(generator.generate(iter(asked)))
    assert len({answer.key for answer in found}) == len(found) == len(asked)
    return {answer.key: answer for answer in found}


def one(generator: Any, **more: Any) -> Any:
    return answers(generator, requests(1, **more))["0"]


def test_a_conversation_goes_to_the_chat_endpoint(fake, connect):
    paths = []
    fake.answer = lambda path, body, nth: (paths.append(path), (200, {}, chat("Hello.")))[1]
    generator = connect()
    assert (generator.name, generator.renders, generator.context_length, generator.notes) == ("openai", False, None, ())
    assert generator.render([{"role": "user", "content": "hi"}]) == ()
    logprobs = Sampling(0.7, 0.9, 0, 20, presence_penalty=0.5, stop=("\n",), logprobs=True)
    tools = '[{"type": "function", "function": {"name": "f"}}]'
    assert one(generator, sampling=logprobs, tools=tools) == Completion(
        "0", "Hello.", None, "stop", -1.75, (-0.5, -1.25), prompt_tokens=7, completion_tokens=2
    )
    assert paths == ["/v1/chat/completions"]
    assert fake.bodies == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "say 0"}],
            "max_tokens": 20,
            "temperature": 0.7,
            "top_p": 0.9,
            "presence_penalty": 0.5,
            "seed": 0,
            "stop": ["\n"],
            "logprobs": True,
            "return_token_ids": True,
            "tools": json.loads(tools),
            "tool_choice": "none",
        }
    ]


def test_extensions_are_sent_where_they_say_something(fake, connect):
    warped = Sampling(1.0, 1.0, 40, 20, min_p=0.1, repetition_penalty=1.2, min_tokens=3)
    one(connect(), sampling=warped)
    wanted = {"top_k": 40, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 3}
    assert {name: fake.bodies[-1][name] for name in wanted} == wanted
    one(connect())
    assert not set(wanted) & set(fake.bodies[-1])
    fake.models = {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 99}]}
    fake.version = {"version": "0.99"}
    generator = connect()
    one(generator)  # vLLM would take what is not said from the model's own generation defaults
    silent = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "min_tokens": 0}
    assert {name: fake.bodies[-1][name] for name in silent} == silent
    assert (generator.context_length, generator.versions) == (99, {"server": "0.99"})


def test_each_candidate_has_its_own_seed_and_only_so_many_are_under_way(fake, connect):
    five = threading.Barrier(5)

    def slow(path, body, nth):
        five.wait(60)
        return 200, {}, chat(body["messages"][0]["content"])

    fake.answer = slow
    found = answers(connect(concurrency=5), requests(40))
    assert {key: answer.text for key, answer in found.items()} == {str(i): f"say {i}" for i in range(40)}
    assert sorted(body["seed"] for body in fake.bodies) == list(range(40))
    assert fake.most == 5


def test_requests_stream_in_and_answers_stream_out(fake, connect):
    pulled = 0

    def endless() -> Iterator[Request]:
        nonlocal pulled
        for n in count():
            pulled += 1
            yield Request(str(n), (), n, PLAIN, ({"role": "user", "content": str(n)},))

    generator = connect(concurrency=4)
    stream = generator.generate(endless())
    assert len(list(islice(stream, 10))) == 10
    assert pulled <= 15
    stream.close()
    assert one(generator).text == "hi"


@pytest.mark.parametrize(
    "trouble",
    [
        (429, {}, error("slow down")),
        (500, {}, b"<html>oops</html>"),
        (503, {}, error("loading")),
        (0, {}, b""),
        (200, {}, b'{"choices": [{"mess'),
        (200, {}, {"choices": []}),
        (200, {}, error("the engine is away")),
        (200, {}, chat("half", "abort")),
    ],
    ids=["429", "500", "503", "cut", "half JSON", "empty", "error in 200", "abort"],
)
def test_trouble_that_passes_is_waited_out(fake, connect, trouble):
    fake.answer = lambda path, body, nth: trouble if nth < 3 else (200, {}, chat("at last"))
    found = answers(connect(retries=2), requests(6))
    assert {answer.text for answer in found.values()} == {"at last"}
    assert len(fake.bodies) == 18


def test_trouble_that_stays_is_an_error_with_the_servers_words(fake, connect):
    fake.answer = lambda path, body, nth: (503, {}, error("no GPU is left"))
    with pytest.raises(EngineError, match=r"failed 3 times \(last: 503 no GPU is left\).*same command again"):
        answers(connect(retries=2), requests(1))
    assert len(fake.bodies) == 3


def test_a_timeout_is_tried_again(fake, connect):
    def late(path, body, nth):
        time.sleep(4.0 if nth == 1 else 0)
        return 200, {}, chat("in time")

    fake.answer = late
    assert one(connect(timeout=2.0, retries=1)).text == "in time"
    fake.answer = lambda path, body, nth: (time.sleep(0.6), (200, {}, chat("late")))[1]
    with pytest.raises(EngineError, match=r"failed once \(last: ReadTimeout"):
        one(connect(timeout=0.3, retries=0), sampling=Sampling(0.5, 1.0, 0, 20))


def test_retry_after_is_honoured(fake, connect):
    for said in ("1", None):
        fake.bodies.clear()
        headers = {} if said is None else {"Retry-After": said}
        fake.answer = lambda path, body, nth, h=headers: (200, {}, chat("x")) if nth > 1 else (429, h, error("busy"))
        began = time.monotonic()
        one(connect(retries=1))
        assert (time.monotonic() - began >= 1.0) == (said is not None)


def test_what_a_server_will_not_answer_is_a_row(fake, connect):
    told = {
        "say 0": (400, {}, error("This model's maximum context length is 8 tokens", "context_length_exceeded")),
        "say 1": (400, {}, error("The response was filtered", "content_filter")),
        "say 2": (200, {}, chat("ha", "content_filter")),
        "say 3": (200, {}, chat(None, refusal="I will not say that.")),
        "say 4": (422, {}, {"detail": [{"loc": ["body", "messages"], "msg": "bad"}]}),
        "say 5": (200, {}, chat("", "tool_calls")),
        "say 6": (200, {}, chat(None)),
        "say 7": (200, {}, chat("long", "length")),
    }
    fake.answer = lambda path, body, nth: told[body["messages"][0]["content"]]
    found = answers(connect(), requests(8))
    statuses = ["prompt_too_long", "refused", "refused", "refused", "rejected", "rejected"]
    assert [found[str(i)].status for i in range(6)] == statuses
    assert found["0"].detail == "400 This model's maximum context length is 8 tokens"
    assert found["3"].detail == "I will not say that."
    assert (found["6"].text, found["6"].finish_reason) == ("", "stop")  # an empty answer is an answer
    assert (found["7"].text, found["7"].finish_reason) == ("long", "length")


def test_an_answer_has_the_room_that_is_left(fake, connect):
    """Only the server knows how long a conversation is: where `max_tokens` does not fit, it is asked for what fits."""

    def short(path, body, nth):
        if "max_tokens" in body:
            return 400, {}, error("maximum context length is 8 tokens and your prompt has 5")
        return 200, {}, chat("three tokens", "length")

    fake.answer = short
    assert one(connect()).text == "three tokens"


@pytest.mark.parametrize(("status", "words"), [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "no model m")])
def test_a_wrong_key_or_model_ends_it_at_once(fake, connect, status, words):
    fake.answer = lambda path, body, nth: (status, {}, error(f"not with {KEY}"))
    with pytest.raises(EngineError, match=words):
        one(connect())
    assert len(fake.bodies) == 1


def test_a_model_that_the_server_lacks_gets_a_hint(fake, connect):
    fake.models = {"data": [{"id": "small-model"}, {"id": "other"}]}
    fake.answer = lambda path, body, nth: (404, {}, error("not found"))
    with pytest.raises(EngineError, match='Did you mean "small-model"'):
        one(connect(model="smal-model"))


@pytest.mark.parametrize("name", ["return_token_ids", "logprobs", "seed"])
def test_what_a_server_does_not_know_is_given_up_once_and_said(fake, connect, name):
    def strict(path, body, nth):
        if name in body:
            return 400, {}, error(f"Unrecognized request argument supplied: {name}")
        answer = chat("x")
        if name == "logprobs":
            answer["choices"][0].pop("logprobs")
        return 200, {}, answer

    fake.answer = strict
    generator = connect(concurrency=1)
    found = answers(generator, requests(5))
    assert all(isinstance(answer, Completion) for answer in found.values())
    assert len(fake.bodies) == 6
    assert len(generator.notes) == 1
    assert (found["0"].logprob_sum is None) == (name == "logprobs")


def test_a_json_schema_is_enforced_where_the_server_can(fake, connect):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    asked = Sampling(0.0, 1.0, 0, 20, json_schema=json.dumps(schema))
    generator = connect()
    assert one(generator, sampling=asked).text == "hi"
    sent = fake.bodies[-1]["response_format"]
    assert sent == {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    one(generator)
    assert "response_format" not in fake.bodies[-1]
    fake.answer = lambda path, body, nth: (
        (400, {}, error("unknown field response_format")) if "response_format" in body else (200, {}, chat("so"))
    )
    assert one(generator, sampling=asked).text == "so"
    assert generator.notes == ("The server enforces no JSON schema.",)


def test_a_server_with_the_newer_name_of_the_limit(fake, connect):
    def newer(path, body, nth):
        if "max_tokens" in body:
            return 400, {}, error("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return 200, {}, chat(str(body["max_completion_tokens"]))

    fake.answer = newer
    assert [answer.text for answer in answers(connect(concurrency=1), requests(3)).values()] == ["20"] * 3
    assert len(fake.bodies) == 4


def test_the_newer_name_is_learned_by_all_that_are_under_way(fake, connect):
    """Three requests are refused before the first is sent again; none of them is a row without a response."""
    together = threading.Barrier(3)

    def newer(path, body, nth):
        if "max_tokens" in body:
            together.wait(10)
            return 400, {}, error("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return 200, {}, chat("yes")

    fake.answer = newer
    assert [answer.text for answer in answers(connect(concurrency=3), requests(3)).values()] == ["yes"] * 3


def test_a_caller_that_leaves_is_not_waited_for(fake, connect):
    """What is under way when the caller leaves takes its time elsewhere, and is not asked for again."""
    over = threading.Event()

    def slow(path, body, nth):
        if body["seed"]:
            over.wait(10)
            return 503, {}, error("busy")
        return 200, {}, chat("first")

    fake.answer = slow
    stream = connect(concurrency=3, retries=5).generate(iter(requests(3)))
    assert next(stream).text == "first"
    stream.close()
    assert fake.busy == 2  # their responses are still to come
    over.set()
    time.sleep(0.3)
    assert (fake.busy, len(fake.bodies)) == (0, 3)


def test_raw_text_goes_to_the_completions_endpoint(fake, connect):
    logprobs = {"token_logprobs": [-1.0, None], "tokens": ["a", "b"]}
    fake.answer = lambda path, body, nth: (
        (200, {}, {"choices": [{"text": f" {body['prompt']}", "finish_reason": "length", "logprobs": logprobs}]})
        if path == "/v1/completions"
        else (404, {}, error("no such endpoint"))
    )
    generator = connect(raw=True)
    assert one(generator) == Completion("0", " say 0", None, "length", None)
    (turns,) = generator.generate([Request("k", (), 0, PLAIN, ({"role": "system", "content": "x"},) * 2)])
    assert turns.status == "rejected"


def test_with_the_tokenizer_token_ids_are_sent(fake, connect):
    """Three tokens come back: text is made of them here; a stop text that the server met is cut off here too."""

    def complete(path, body, nth):
        choice = {"text": "as the server reads it", "finish_reason": "stop", "token_ids": [70, 71, 2]}
        choice |= {"stop_reason": body["stop"][0]} if "stop" in body else {}
        return 200, {}, {"choices": [choice]}

    fake.answer = complete
    generator = connect(tokenizer=str(SAMPLE_POLICY), max_model_len=32)
    assert (generator.renders, generator.context_length, generator.model.name) == (True, 32, "m")
    prompt = generator.render([{"role": "user", "content": "hi"}])
    with pytest.raises(TemplateRefusal):
        generator.render([{"role": "user", "content": "hi"}], "[]")  # its template has no place for tools
    text = generator.chat.decode([70, 71, 2])
    (answer,) = generator.generate([Request("k", prompt, 5, PLAIN)])
    assert answer == Completion("k", text, (70, 71, 2), "stop", None)
    assert fake.bodies[-1]["prompt"] == list(prompt)
    assert fake.bodies[-1]["max_tokens"] == min(20, 32 - len(prompt))
    (cut,) = generator.generate([Request("k", prompt, 5, Sampling(1.0, 1.0, 0, 9, stop=(text[1],)))])
    assert cut.text == text[: text.index(text[1])]
    (full,) = generator.generate([Request("k", (5,) * 32, 5, PLAIN)])
    assert full == Rejection("k", "prompt_too_long", "32 prompt tokens in a context of 32")


def test_a_vllm_server_is_sent_the_end_token_that_only_the_template_names(fake, connect, make_policy, tmp_path):
    """Its own configs name <eos> alone, and responses that end with <eot> would run to the limit."""
    folder = make_policy(tmp_path / "m", eos_token_id=2)
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    fake.answer = lambda path, body, nth: (200, {}, {"choices": [{"text": "x", "finish_reason": "stop"}]})
    for owner, ends in (("someone", None), ("vllm", [2, 3])):
        fake.models = {"data": [{"id": "m", "owned_by": owner}]}
        generator = connect(tokenizer=str(folder))
        list(generator.generate([Request("k", generator.render([{"role": "user", "content": "hi"}]), 5, PLAIN)]))
        assert fake.bodies[-1].get("stop_token_ids") == ends
        assert any("Responses also end at <eot>" in note for note in generator.notes) == (ends is not None)


def test_a_tokenizer_that_is_not_there(fake, connect, tmp_path):
    with pytest.raises(ModelError, match="no folder"):
        connect(tokenizer=str(tmp_path / "none"))


def test_where_the_server_is(fake, connect, monkeypatch):
    with pytest.raises(UsageError, match="--base-url"):
        connect(base_url=None)
    for url in ("localhost:8000", "ftp://x/v1", "http://", "http://a:b/v1"):
        with pytest.raises(UsageError, match="--base-url"):
            connect(base_url=url)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{fake.url}/")
    assert one(connect(base_url=None)).text == "hi"
    with pytest.raises(EngineError, match=r"no server answers at http://127\.0\.0\.1:9/v1"):
        connect(base_url="http://127.0.0.1:9/v1")


def test_the_key_is_sent_and_never_said(fake, connect, monkeypatch, caplog, capfd):
    """Everything that can be read of a run with a server that repeats the key in all it says."""
    caplog.set_level(logging.DEBUG)
    said = [repr(ModelSpec(model="m", engine="openai"))]
    for status in (400, 401, 429, 500):
        fake.answer = lambda path, body, nth, s=status: (s, {}, error(f"the key {KEY} is bad: Bearer {KEY}"))
        generator = connect(retries=1)
        said += [repr(generator), repr(vars(generator)), repr(generator._server), str(generator.notes)]
        try:
            said += [repr(answer) for answer in generator.generate(iter(requests(2)))]
        except EngineError as caught:
            said += ["".join(traceback.format_exception(caught)), repr(caught), repr(caught.__context__)]
    fake.models = (401, {}, error(f"what is {KEY}?"))
    with pytest.raises(EngineError) as greeted:
        connect()
    said += ["".join(traceback.format_exception(greeted.value))]
    for bad in (f"{KEY}\nx", f"{KEY}ü", f"{KEY} x"):
        monkeypatch.setenv("OPENAI_API_KEY", bad)
        with pytest.raises(UsageError) as unfit:
            connect()
        said += ["".join(traceback.format_exception(unfit.value))]
    out = capfd.readouterr()
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in fake.headers)
    assert len(fake.headers) >= 8
    assert KEY not in "\n".join([*said, caplog.text, out.out, out.err])


def test_the_key_may_have_another_name(fake, connect, monkeypatch):
    monkeypatch.setenv("MY_KEY", "other")
    one(connect(api_key_env="MY_KEY"))
    assert fake.headers[-1]["Authorization"] == "Bearer other"
    monkeypatch.delenv("MY_KEY")
    one(connect(api_key_env="MY_KEY"))
    assert "Authorization" not in fake.headers[-1]


@pytest.fixture(scope="module")
def bundled() -> Any:
    """The bundled policy on the transformers engine."""
    from prefdata.engines.hf.generator import TransformersGenerator
    from prefdata.models.files import identify

    return TransformersGenerator(identify(str(SAMPLE_POLICY), "causal-lm"), device="cpu", dtype="float32")


def bundled_prompts(number: int) -> list[list[dict[str, str]]]:
    with (SAMPLE_POLICY.parent / "prompts.jsonl").open() as lines:
        return [json.loads(line)["messages"] for line in islice(lines, number)]


@pytest.mark.vllm
def test_vllm_serve_with_token_ids_and_by_its_own_template(sample_server, bundled, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-tests")
    greedy = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_tokens=60)
    conversations = bundled_prompts(24)
    asked = [
        Request(str(i), bundled.render(messages), i, greedy, tuple(messages))
        for i, messages in enumerate(conversations)
    ]
    expected = answers(bundled, asked)
    for tokenizer in (str(SAMPLE_POLICY), None):
        spec = ModelSpec(model="policy", engine="openai", base_url=sample_server, tokenizer=tokenizer)
        generator = open_generator(spec, remote_model_files(spec), "openai")
        found = answers(generator, asked)
        generator.close()
        assert (generator.context_length, generator.notes, set(generator.versions)) == (256, (), {"server"})
        for key, answer in found.items():
            assert answer.text == expected[key].text
            assert answer.token_ids == expected[key].token_ids
            assert answer.finish_reason == expected[key].finish_reason
            assert answer.logprob_sum == pytest.approx(expected[key].logprob_sum, abs=1e-4)
            assert answer.prompt_tokens == len(asked[int(key)].prompt_ids)


@pytest.mark.vllm
def test_vllm_serve_has_its_own_context_and_errors(sample_server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-tests")
    spec = ModelSpec(model="policy", engine="openai", base_url=sample_server)
    generator = open_generator(spec, remote_model_files(spec), "openai")
    messages = tuple(bundled_prompts(1)[0])
    endless = ({"role": "user", "content": "a film " * 400},)
    found = answers(
        generator,
        [
            Request("all", (), 0, Sampling(1.0, 1.0, 0, 100_000), messages),
            Request("long", (), 0, Sampling(1.0, 1.0, 0, 9), endless),
            Request("hot", (), 0, Sampling(9.0, 1.0, 0, 9), messages),
        ],
    )
    generator.close()
    assert isinstance(found["all"], Completion)
    assert (found["long"].status, found["hot"].status) == ("prompt_too_long", "rejected")
    assert "temperature" in found["hot"].detail
    other = spec.model_copy(update={"model": "polict"})
    generator = open_generator(other, remote_model_files(other), "openai")
    with pytest.raises(EngineError, match='Did you mean "policy"'):
        list(generator.generate([Request("k", (), 0, PLAIN, messages)]))
    generator.close()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another")
    with pytest.raises(EngineError, match="does not take the key in OPENAI_API_KEY") as wrong:
        open_generator(spec, remote_model_files(spec), "openai")
    assert "sk-another" not in str(wrong.value)


@pytest.mark.vllm
def test_vllm_serve_with_a_model_without_a_template(tiny_server, make_policy, tmp_path):
    """The server's model has the same weights, and a template that `raw` has to leave out."""
    from prefdata.engines.hf.generator import TransformersGenerator
    from prefdata.models.files import identify

    folder = make_policy(tmp_path / "plain", tokenizer={"chat_template": None})
    local = TransformersGenerator(identify(str(folder), "causal-lm"), device="cpu", dtype="float32")
    greedy = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_tokens=20)
    texts = ["hi", "Tell me.", "what is "]
    conversations = [({"role": "user", "content": text},) for text in texts]
    asked = [Request(m[0]["content"], local.render(m), 1, greedy, m) for m in conversations]
    expected = answers(local, asked)
    for tokenizer in (str(folder), None):
        spec = ModelSpec(model="policy", engine="openai", base_url=tiny_server, raw=True, tokenizer=tokenizer)
        generator = open_generator(spec, remote_model_files(spec), "openai")
        found = answers(generator, asked)
        generator.close()
        assert {key: a.token_ids for key, a in found.items()} == {key: a.token_ids for key, a in expected.items()}
        if tokenizer:
            assert {key: a.text for key, a in found.items()} == {key: a.text for key, a in expected.items()}
