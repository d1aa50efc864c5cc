"""Responses that no server should send: each costs a bounded time and size, and is one row with a status."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from fake_server import KEY, chat, error

from prefdata.engines.openai import exchange
from prefdata.engines.protocol import Completion, Rejection, Request, Sampling
from prefdata.errors import EngineError

PLAIN = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=20)


def asked(number: int = 1, sampling: Sampling = PLAIN) -> list[Request]:
    return [Request(str(i), (), i, sampling, ({"role": "user", "content": f"say {i}"},)) for i in range(number)]


def one(generator: Any, sampling: Sampling = PLAIN) -> Any:
    (answer,) = generator.generate(iter(asked(1, sampling)))
    return answer


def choice(**changes: Any) -> dict[str, Any]:
    """A response whose only choice has these fields in place of its own; None takes one out."""
    said = chat("fine")
    fields = {**said["choices"][0], **changes}
    return {**said, "choices": [{name: value for name, value in fields.items() if value is not None}]}


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        *[(word, "stop") for word in ("eos_token", "STOP", "end_turn", "stop_sequence", "COMPLETE", "eos")],
        *[(word, "length") for word in ("max_tokens", "MAX_TOKENS", "model_length", "max_output_tokens", "length")],
    ],
)
def test_the_words_of_other_engines_for_an_end(fake, connect, said, wanted):
    fake.answer = lambda path, body, nth: (200, {}, chat("fine", said))
    assert (one(connect()).text, one(connect()).finish_reason) == ("fine", wanted)


@pytest.mark.parametrize("said", ["SAFETY", "content_filter", "refusal", "guardrail_intervened"])
def test_the_words_of_other_engines_for_a_filter(fake, connect, said):
    fake.answer = lambda path, body, nth: (200, {}, chat("half", said))
    assert one(connect()).status == "refused"


def test_a_content_of_parts_is_its_text(fake, connect):
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "A capital is asked for."}]},
        {"type": "text", "text": "Par"},
        {"type": "text", "text": "is."},
    ]
    fake.answer = lambda path, body, nth: (200, {}, chat(parts))
    generator = connect()
    assert one(generator).text == "Paris."
    assert generator.notes == ("The server sent reasoning with its responses, which is not stored.",)


ODD = {
    "content is a number": choice(message={"content": 7}),
    "content is an object": choice(message={"content": {"text": "x"}}),
    "a part is an image": choice(message={"content": [{"type": "image_url", "image_url": {"url": "x"}}]}),
    "a part is nothing": choice(message={"content": [None]}),
    "half of a surrogate pair": b'{"choices":[{"message":{"content":"a\\ud83d"},"finish_reason":"stop"}]}',
    "no finish_reason": choice(finish_reason=None),
    "finish_reason is a list": choice(finish_reason=["stop"]),
    "finish_reason is a surrogate": b'{"choices":[{"message":{"content":"a"},"finish_reason":"\\udc00"}]}',
    "tool calls": choice(finish_reason="tool_calls"),
    "token_ids is a text": choice(token_ids="1 2"),
    "token_ids are texts": choice(token_ids=["1"]),
    "token_ids are negative": choice(token_ids=[-1]),
    "token_ids are huge": choice(token_ids=[1 << 40]),
}


@pytest.mark.parametrize("said", ODD.values(), ids=ODD)
def test_a_response_that_is_none_is_a_row_and_no_other_suffers(fake, connect, said):
    fake.answer = lambda path, body, nth: (200, {}, said if body["seed"] == 1 else chat("fine"))
    found = {answer.key: answer for answer in connect(retries=0).generate(iter(asked(3)))}
    assert [found[key].text for key in "02"] == ["fine", "fine"]
    assert isinstance(found["1"], Rejection)
    assert found["1"].status == "rejected"
    found["1"].detail.encode()  # it can be stored


UNREADABLE = {
    "deep": b"[" * 100_000,
    "deep within": b'{"choices":' + b"[" * 100_000,
    "long number": b'{"choices":' + b"9" * 10_000 + b"}",
    "no JSON": b"<html>",
    "no UTF-8": b"\xff\xfe\xfd",
    "null": b"null",
    "a list": b"[]",
    "choices is an object": {"choices": {"0": "x"}},
    "choices of texts": {"choices": ["x"]},
    "dropped": chat("half", "abort"),
}


@pytest.mark.parametrize("said", UNREADABLE.values(), ids=UNREADABLE)
def test_what_stays_unreadable_is_a_row_after_the_retries(fake, connect, said):
    fake.answer = lambda path, body, nth: (200, {}, said if body["seed"] == 1 else chat("fine"))
    found = {answer.key: answer for answer in connect(retries=1).generate(iter(asked(2)))}
    assert found["0"].text == "fine"
    assert found["1"].status == "rejected"
    assert found["1"].detail.startswith("200 the response ")
    assert len(fake.bodies) == 3


def test_odd_types_beside_the_text_are_no_numbers(fake, connect):
    odd = choice(message={"content": "fine"}, logprobs=[1, 2]) | {"usage": {"prompt_tokens": "7"}}
    fake.answer = lambda path, body, nth: (200, {}, odd)
    assert one(connect()) == Completion("0", "fine", None, "stop", None)
    fake.answer = lambda path, body, nth: (200, {}, choice() | {"usage": [1], "id": 9})
    assert (one(connect()).prompt_tokens, one(connect()).completion_tokens) == (None, None)
    fake.answer = lambda path, body, nth: (200, {}, choice() | {"usage": {"prompt_tokens": 1 << 70}})
    assert one(connect()).prompt_tokens is None


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", '"x"', "null", "1e999", "[]"])
def test_log_probabilities_that_are_no_numbers_are_none(fake, connect, value):
    tokens = f'{{"content":[{{"logprob":-0.5}},{{"logprob":{value}}}]}}'
    raw = f'{{"choices":[{{"message":{{"content":"fine"}},"finish_reason":"stop","logprobs":{tokens}}}]}}'
    fake.answer = lambda path, body, nth: (200, {}, raw.encode())
    generator = connect()
    found = one(generator, Sampling(1.0, 1.0, 0, 20, logprobs=True))
    assert (found.text, found.logprob_sum, found.logprobs) == ("fine", None, None)
    assert generator.notes == ("Some of the server's log-probabilities are not numbers: those responses have none.",)


def test_neutral_settings_are_sent_only_where_others_would_be_taken(fake, connect):
    """Strict servers refuse top_p beside temperature, and fields that they do not know."""
    one(connect())
    neutral = {"top_p", "presence_penalty", "top_k", "min_p", "repetition_penalty", "min_tokens"}
    assert not neutral & set(fake.bodies[-1])
    for owner in ("vllm", "llamacpp"):  # their own defaults are not neutral
        fake.models = {"data": [{"id": "m", "owned_by": owner}]}
        one(connect())
        assert neutral <= set(fake.bodies[-1])
        assert (fake.bodies[-1]["top_p"], fake.bodies[-1]["presence_penalty"]) == (1.0, 0.0)


def test_a_model_that_takes_only_its_own_temperature(fake, connect):
    def strict(path, body, nth):
        if "temperature" in body:
            return 400, {}, error(f"Unsupported value: 'temperature' does not support {body['temperature']}.")
        return 200, {}, chat("fine")

    fake.answer = strict
    generator = connect()
    assert one(generator).text == "fine"
    assert generator.notes == ("The server takes no temperature and uses its own.",)
    refused = one(connect(), Sampling(0.7, 1.0, 0, 20))  # asked for by a person: nothing else is drawn in its place
    assert refused == Rejection("0", "rejected", "400 Unsupported value: 'temperature' does not support 0.7")
    assert one(connect(), Sampling(0.0, 1.0, 0, 20, any_temperature=True)).text == "fine"
    assert one(generator, Sampling(0.7, 1.0, 0, 20)).status == "rejected"  # also where it is known already


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "the request exceeds the available context size. try increasing the context size"),
        (500, "input is too large to process. increase the physical batch size"),
        (422, "`inputs` tokens + `max_new_tokens` must be <= 4096"),
        (400, "prompt is too long: 210000 tokens > 200000 maximum"),
        (413, "Payload Too Large"),
    ],
)
def test_a_prompt_that_does_not_fit_in_the_words_of_other_engines(fake, connect, status, message):
    fake.answer = lambda path, body, nth: (status, {}, error(message))
    assert one(connect(retries=5)).status == "prompt_too_long"


def test_errors_of_odd_types_are_told(fake, connect):
    for said in ([1], {"message": ["a"]}, {"message": {"x": "\ud800"}}, "\x1b[31mred", None, {"code": [1]}):
        fake.answer = lambda path, body, nth, said=said: (400, {}, {"error": said})
        detail = one(connect()).detail
        detail.encode()
        assert detail.isprintable()


@pytest.mark.parametrize("said", ["nan", "-1", "Fri, 31 Dec 9999 23:59:59 -0000", "Fri, 99 Foo", "\xff"])
def test_a_pause_that_is_none_is_not_waited_for(fake, connect, said):
    fake.answer = lambda path, body, nth: (
        (200, {}, chat("x")) if nth > 1 else (429, {"Retry-After": said}, error("busy"))
    )
    generator = connect(retries=1)
    generator._server._retries = 1
    server_module = __import__("prefdata.engines.openai.client", fromlist=["LONGEST_RETRY_AFTER"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_module, "LONGEST_RETRY_AFTER", 0.01)
        assert one(generator).text == "x"


class RawServer:
    """A server that sends bytes as it likes: `send(connection)` for each POST."""

    def __init__(self, send: Callable[[socket.socket], None]) -> None:
        self.send = send
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/v1"
        self.over = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while not self.over.is_set():
            with suppress(OSError):
                connection, _ = self.listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            if connection.recv(65536).startswith(b"GET"):
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            else:
                self.send(connection)

    def close(self) -> None:
        self.over.set()
        self.listener.close()


@pytest.fixture
def raw(connect) -> Iterator[Callable[..., Any]]:
    """`raw(send, timeout=…)`: a generator on a RawServer."""
    servers = []

    def make(send: Callable[[socket.socket], None], **settings: Any) -> Any:
        servers.append(RawServer(send))
        return connect(base_url=servers[-1].url, **{"retries": 0, "timeout": 0.5, **settings})

    yield make
    for server in servers:
        server.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def slowly(connection: socket.socket, data: bytes) -> None:
    for byte in data:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def test_a_body_of_one_byte_at_a_time_ends_with_the_timeout(raw):
    body = json.dumps(chat("much later" * 100)).encode()

    def drip(connection: socket.socket) -> None:
        connection.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode())
        slowly(connection, body)

    began = time.monotonic()
    assert one(raw(drip)).detail == "200 the response did not end within --timeout"
    assert time.monotonic() - began < 20  # each byte came in time, all of them would take minutes


def test_headers_of_one_byte_at_a_time_end_with_the_timeout(raw):
    began = time.monotonic()
    with pytest.raises(EngineError, match="ReadTimeout"):
        one(raw(lambda connection: slowly(connection, HEAD + b"X: " + b"x" * 10_000)))
    assert time.monotonic() - began < 20


def test_a_body_without_end_is_read_up_to_a_limit(raw, monkeypatch):
    monkeypatch.setattr(exchange, "LARGEST", 1 << 20)
    sent = 0

    def endless(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
            sent += 65536

    assert one(raw(endless, timeout=60.0, retries=3)).detail == "200 the response is larger than 1 MiB"
    assert sent < 64 << 20


def test_a_gzip_bomb_is_unpacked_up_to_a_limit(fake, connect, monkeypatch):
    monkeypatch.setattr(exchange, "LARGEST", 1 << 20)
    bomb = gzip.compress(b" " * (64 << 20))
    headers = {"Content-Encoding": "gzip"}
    fake.answer = lambda path, body, nth: (200, headers, bomb)
    assert one(connect(retries=3)).detail == "200 the response is larger than 1 MiB"
    fake.answer = lambda path, body, nth: (200, headers, gzip.compress(json.dumps(chat("packed")).encode()))
    assert one(connect()).text == "packed"
    for broken in (b"\x1f\x8bxx", b"", bomb[:100]):
        fake.answer = lambda path, body, nth, broken=broken: (200, headers, broken)
        assert "gzip" in one(connect(retries=0)).detail
    fake.answer = lambda path, body, nth: (200, {"Content-Encoding": "gzip, gzip"}, gzip.compress(bomb))
    assert "was not requested" in one(connect()).detail


def test_a_charset_that_is_none_is_not_read_by(fake, connect):
    for charset in ("hex", "rot13", "utf-16", "no-such"):
        headers = {"Content-Type": f"application/json; charset={charset}"}
        fake.answer = lambda path, body, nth, headers=headers: (400, headers, error("not so"))
        assert one(connect()).detail == "400 not so"


def test_a_connection_that_breaks_off_within_the_body_is_a_row(raw):
    def half(connection: socket.socket) -> None:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")

    assert one(raw(half)).detail.startswith("200 the response broke off")


def test_a_greeting_of_any_kind_is_survived(fake, connect):
    for models in (
        [], {"data": {}}, {"data": [None, {"id": None, "owned_by": ["x"], "max_model_len": "long"}]},
        {"data": [{"id": "m", "max_model_len": -5}]}, {"data": [{"id": "m", "max_model_len": True}]},
        (200, {}, b"[" * 100_000), (500, {}, b""), (200, {"Content-Encoding": "br"}, b"x"),
    ):  # fmt: skip
        fake.models = models
        fake.version = {"version": ["\ud800"]}
        generator = connect()
        assert (generator.context_length, one(generator).text) == (None, "hi")
        assert generator.versions == {}


def test_the_key_in_a_part_is_not_stored(fake, connect):
    fake.answer = lambda path, body, nth: (200, {}, chat([{"type": "text", "text": f"it is {KEY}"}]))
    assert one(connect()).detail == "the response holds the API key, and is not stored"
