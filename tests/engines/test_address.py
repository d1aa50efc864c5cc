"""The key goes to one origin, and what is secret is shown nowhere: whatever the URL, the server or the proxy."""

from __future__ import annotations

import base64
import json
import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata.chat.template import load_tokenizer
from prefdata.engines.open import open_generator, remote_model_files
from prefdata.engines.openai.address import Address, without_secrets
from prefdata.errors import EngineError, UsageError
from prefdata.specs import ModelSpec

KEY = "sk-tell-nobody-0123456789"
PASSWORD = "pa%40ss:w0rd"  # in a URL: the password is pa@ss:w0rd
BASIC = base64.b64encode(b"user:pa@ss:w0rd").decode()
SECRETS = (KEY, PASSWORD, "pa@ss:w0rd", BASIC)

Said = tuple[int, dict[str, str], Any]


class Recorder:
    """A server on a real socket that keeps every request; `answers` says what is at a path, and elsewhere is a 404.

    Attributes:
        seen: method, path with query, and Authorization header of every request, in order.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str | None]] = []
        self.answers: dict[str, Said] = {}
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                recorder.seen.append((self.command, self.path, self.headers["Authorization"]))
                status, headers, body = recorder.answers.get(self.path, (404, {}, {"detail": "Not Found"}))
                raw = json.dumps(body).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(raw))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            do_POST = do_GET

            def log_message(self, *said: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.host = f"127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def serve(self, base: str, query: str = "") -> None:
        """Have OpenAI's interface under `base`."""
        answer = {"choices": [{"message": {"content": "Paris."}, "finish_reason": "stop"}]}
        self.answers[f"{base}/models{query}"] = (200, {}, {"data": [{"id": "m", "owned_by": "vllm"}]})
        self.answers[f"{base}/chat/completions{query}"] = (200, {}, answer)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Recorder]]:
    """`start()`: a recorder, stopped with the test; the key is in the environment, and no proxy is."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    started: list[Recorder] = []

    def make() -> Recorder:
        started.append(Recorder())
        return started[-1]

    yield make
    for recorder in started:
        recorder.http.shutdown()
        recorder.http.server_close()


def ask(url: str, **more: Any) -> list[Any]:
    """What a server answers to one request."""
    from prefdata.engines.protocol import Request, Sampling

    spec = ModelSpec(model="m", engine="openai", base_url=url, retries=0, timeout=5.0, **more)
    generator = open_generator(spec, remote_model_files(spec), "openai")
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=20)
    try:
        return list(generator.generate([Request("k", (), 0, sampling, ({"role": "user", "content": "hi"},))]))
    finally:
        generator.close()


def ask_tokens(url: str, tokenizer: Path) -> list[Any]:
    """What a server answers to one prompt in token ids."""
    from prefdata.engines.protocol import Request, Sampling

    spec = ModelSpec(model="m", engine="openai", base_url=url, retries=0, timeout=5.0, tokenizer=str(tokenizer))
    generator = open_generator(spec, remote_model_files(spec), "openai")
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=60)
    try:
        return list(generator.generate([Request("k", (5, 6), 0, sampling)]))
    finally:
        generator.close()


def error_of(url: str, kind: type[Exception] = EngineError) -> str:
    with pytest.raises(kind) as caught:
        ask(url)
    return str(caught.value)


def test_without_v1_the_message_says_so_and_nobody_else_is_asked(start, monkeypatch: pytest.MonkeyPatch) -> None:
    """`http://HOST:PORT` of a server that has /v1 only. A proxy sees who else would be asked: nobody."""
    server, proxy = start(), start()
    server.serve("/v1")
    monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    said = error_of(f"http://{server.host}")
    assert said == (
        f"there is a server at http://{server.host}, but no /models at that path; did you forget /v1? "
        f"Give --base-url http://{server.host}/v1."
    )
    assert ask(f"http://{server.host}/v1")[0].text == "Paris."
    assert proxy.seen == []
    assert {path for _, path, _ in server.seen} == {"/models", "/v1/models", "/version", "/v1/chat/completions"}


@pytest.mark.parametrize(
    ("given", "base", "query", "version"),
    [
        ("", "", "", "/version"),
        ("/", "", "", "/version"),
        ("/v1", "/v1", "", "/version"),
        ("/v1/", "/v1", "", "/version"),
        ("/api/v1", "/api/v1", "", "/api/version"),
        ("/a%2Fb//v1", "/a%2Fb//v1", "", "/a%2Fb//version"),
        ("/v1?api-version=2&x=a%20b", "/v1", "?api-version=2&x=a%20b", "/version?api-version=2&x=a%20b"),
        ("?api-version=2", "", "?api-version=2", "/version?api-version=2"),
    ],
)
def test_every_request_is_below_the_base_url_with_its_query(start, given, base, query, version) -> None:
    server = start()
    server.serve(base, query)
    assert ask(f"http://{server.host}{given}")[0].text == "Paris."
    paths = [("GET", f"{base}/models{query}"), ("GET", version), ("POST", f"{base}/chat/completions{query}")]
    assert server.seen == [(*one, f"Bearer {KEY}") for one in paths]


def test_addresses_of_every_form() -> None:
    forms = {
        "http://[::1]:8000/v1": ("http://[::1]:8000/v1", "http://[::1]:8000/v1/models", "http://[::1]:8000/version"),
        "https://HOST/": ("https://host", "https://host/models", "https://host/version"),
        " http://h:80/v1\n": ("http://h/v1", "http://h/v1/models", "http://h/version"),
        "http://u:secret@h:1/a?key=hush": (
            "http://h:1/a",
            "http://h:1/a/models?key=hush",
            "http://h:1/version?key=hush",
        ),
        "http://münchen.de/v1": 3 * ("http://xn--mnchen-3ya.de",),
    }
    for url, (shown, models, version) in forms.items():
        address = Address.parse(url)
        assert address.shown.startswith(shown)
        assert str(address.at("models")).startswith(models)
        assert str(address.beside("version")).startswith(version)


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://h/v1", "localhost:8000/v1", "127.0.0.1:8000", "//h/v1", "http://", "http:///v1", "http:h", "h/v1"),
        *("http://h:99999/v1", "http://h:0/v1", "http://h:-1", "http://h:8x/v1", "http://[::1/v1", "http://h\n/v1"),
        *("http://xn--/v1", "http://\udc80/v1", "http://h/v1#part", "file:///etc/passwd", "javascript:alert(1)"),
    ],
)
def test_what_is_no_address_of_a_server_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(UsageError, match=r"base URL|--base-url") as caught:
        Address.parse(url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["h:8x", "h:99999", "[::1", "", "h\n", "h/v1#x"])
@pytest.mark.parametrize("scheme", ["http", "ftp", "h ttp", ""])
def test_a_url_that_cannot_be_used_shows_no_password(scheme: str, host: str) -> None:
    url = f"{scheme}://user:hunter22@{host}/v1?api-key=hush-hush"
    with pytest.raises(UsageError) as caught:
        Address.parse(url)
    shown = "".join(traceback.format_exception(caught.value)) + without_secrets(url)
    assert "hunter22" not in shown
    assert "hush-hush" not in shown


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20), st.text(max_size=10), st.text(max_size=10))
def test_any_text_is_an_address_or_refused(a: str, b: str, c: str) -> None:
    for url in (a, f"http://{a}", f"http://{a}:{b}@{c}/v1"):
        without_secrets(url)
        try:
            address = Address.parse(url)
        except UsageError:
            continue
        assert address.at("models").host == address.beside("version").host
        assert address.at("models").userinfo == b""


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions"])
def test_a_redirect_is_not_followed(start, path: str, status: int) -> None:
    """Neither to another origin nor to another path: the message says where it leads."""
    server, other = start(), start()
    server.serve("/v1")
    other.serve("/v1")
    target = f"http://eve:secret@{other.host}{path}?token={KEY}"
    server.answers[path] = (status, {"Location": target}, {})
    said = error_of(f"http://{server.host}/v1")
    assert said.startswith(f"http://{server.host}/v1 redirects to http://{other.host}{path} ({status})")
    assert "--base-url" in said
    assert KEY not in said
    assert "secret" not in said
    assert other.seen == []
    assert sum(one[1] == path for one in server.seen) == 1  # it is not tried again


def test_a_redirect_of_what_is_not_needed_changes_nothing(start) -> None:
    server, other = start(), start()
    server.serve("/v1")
    for status, headers in ((302, {"Location": f"http://{other.host}/login"}), (401, {}), (500, {})):
        server.answers["/version"] = (status, headers, {})
        assert ask(f"http://{server.host}/v1")[0].text == "Paris."
    assert other.seen == []


def test_a_user_and_password_in_the_url_are_sent_instead_of_the_key(start) -> None:
    server = start()
    server.serve("/v1")
    assert ask(f"http://user:{PASSWORD}@{server.host}/v1")[0].text == "Paris."
    assert {sent for _, _, sent in server.seen} == {f"Basic {BASIC}"}


def repeats(url_or_key: str) -> Any:
    return {"error": {"message": f"bad: {url_or_key}", "code": url_or_key}, "choices": []}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500, 503])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions"])
@pytest.mark.parametrize("url", ["http://{host}/v1", f"http://user:{PASSWORD}@{{host}}/v1?api-key=hush-hush"])
def test_a_server_that_repeats_the_secrets_has_them_shown_nowhere(
    start, caplog: pytest.LogCaptureFixture, url: str, path: str, status: int
) -> None:
    caplog.set_level(logging.INFO)
    server = start()
    query = "?api-key=hush-hush" if "hush" in url else ""
    secrets = [*SECRETS, "hush-hush"] if query else [KEY]
    server.serve("/v1", query)
    echo = " ".join([f"Authorization: Bearer {KEY}", f"Basic {BASIC}", *secrets])
    server.answers[path + query] = (status, {"X-Echo": KEY, "Retry-After": "0"}, repeats(echo))
    server.answers[f"/version{query}"] = (200, {}, {"version": echo})
    try:
        shown = repr(ask(url.format(host=server.host)))
    except EngineError as error:
        shown = "".join(traceback.format_exception(error))
    assert [secret for secret in secrets if secret in shown] == []
    assert [secret for secret in SECRETS if secret in caplog.text] == []


def test_what_a_server_says_in_an_answer_holds_no_key(start) -> None:
    server = start()
    server.serve("/v1")
    for message, finish in (({"refusal": f"not with {KEY}"}, "stop"), ({"content": "x"}, f"died of {KEY}")):
        answer = {"choices": [{"message": message, "finish_reason": finish}]}
        server.answers["/v1/chat/completions"] = (200, {}, answer)
        (refused,) = ask(f"http://{server.host}/v1")
        assert KEY not in refused.detail
        assert "…" in refused.detail


def test_a_response_that_holds_the_key_is_not_stored(start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set is published; a key of a server that wants none (EMPTY) is a word like others."""
    server = start()
    server.serve("/v1")
    answer = {"choices": [{"message": {"content": f"The key is {KEY}. EMPTY."}, "finish_reason": "stop"}]}
    server.answers["/v1/chat/completions"] = (200, {}, answer)
    (refused,) = ask(f"http://{server.host}/v1")
    assert (refused.status, refused.detail) == ("rejected", "the response holds the API key, and is not stored")
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    assert ask(f"http://{server.host}/v1")[0].text == f"The key is {KEY}. EMPTY."


def test_a_response_that_holds_a_secret_of_the_url_is_not_stored(start) -> None:
    server = start()
    server.serve("/v1", "?api-key=hush%2Bhush%2Bhush%2Bhush")
    url = f"http://user:{PASSWORD}@{server.host}/v1?api-key=hush%2Bhush%2Bhush%2Bhush"
    for secret in (BASIC, "hush+hush+hush+hush", "hush%2Bhush%2Bhush%2Bhush"):
        answer = {"choices": [{"message": {"content": f"Sent: {secret}."}, "finish_reason": "stop"}]}
        server.answers["/v1/chat/completions?api-key=hush%2Bhush%2Bhush%2Bhush"] = (200, {}, answer)
        (refused,) = ask(url)
        assert (refused.status, refused.detail) == (
            "rejected",
            "the response holds a secret of --base-url, and is not stored",
        )


def test_token_ids_that_spell_the_key_are_not_stored(start, tiny_policy: Path) -> None:
    """The text that is stored is made of a server's token ids where it gives them; its own text may be another."""
    server = start()
    server.serve("/v1")
    (ids,) = load_tokenizer(tiny_policy)([f"It is {KEY}"], add_special_tokens=False)["input_ids"]
    answer = {"choices": [{"text": "Harmless.", "finish_reason": "stop", "token_ids": ids}]}
    server.answers["/v1/completions"] = (200, {}, answer)
    (refused,) = ask_tokens(f"http://{server.host}/v1", tiny_policy)
    assert refused.detail == "the response holds the API key, and is not stored"


@pytest.mark.parametrize("query", ["api_key=hush%2Bhush", "api_key=hush+hush", "api%5Fkey=hush%68ush"])
def test_a_secret_of_the_query_is_hidden_as_it_is_sent_too(query: str) -> None:
    address = Address.parse(f"http://h/v1?{query}")
    assert "hush" not in address.clean(f"GET /v1/models?{query}")


def test_a_backslash_leads_to_no_other_host() -> None:
    """Browsers end the host there; httpx takes what is before the @ for a user, and what follows for the host."""
    with pytest.raises(UsageError, match="holds a backslash"):
        Address.parse("http://127.0.0.1:8000\\@example.org/v1")


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "gopher://u:hunter22@h", "http://[::1", "http://h:8x"])
def test_a_proxy_that_cannot_be_used_is_named_and_shows_no_password(
    start, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    server = start()
    monkeypatch.setenv("HTTP_PROXY", proxy)
    said = error_of(f"http://{server.host}/v1", UsageError)
    assert "HTTP_PROXY" in said
    assert "hunter22" not in said
    assert server.seen == []


def run_of(folder: Path, prefdata: Callable[..., tuple[int, str, str]]) -> Path:
    (folder / "asked.jsonl").write_text('{"prompt": "Say one."}\n{"prompt": "Say two."}\n')
    assert prefdata("ingest", folder / "run", folder / "asked.jsonl", "--test", "0")[0] == 0
    return folder / "run"


def everything(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_no_secret_is_in_a_run_or_in_what_commands_print(start, tmp_path: Path, prefdata) -> None:
    """Sampling, judging and --print-config with a password in the URL; nothing of it is kept or shown."""
    server = start()
    server.serve("/v1", "?token=hush-hush")
    url = f"http://user:{PASSWORD}@{server.host}/v1?token=hush-hush"
    run = run_of(tmp_path, prefdata)
    engine = ("--engine", "openai", "--base-url", url)
    shown = [
        *prefdata("sample", run, "--model", "m", *engine, "-n", "1", "--name", "s", "--debug"),
        *prefdata("rank", run, "--judge", "m", *engine, "--judge-tries", "1", "--name", "j", "--debug"),
        *prefdata("status", run),
        *prefdata("sample", run, "--model", "m", *engine, "--print-config"),
    ]
    assert [part for part in shown if isinstance(part, int)] == [0, 1, 0, 0]  # it says nothing that judges
    assert f"http://***@{server.host}/v1?token=***" in shown[-2]
    kept = everything(run) + "".join(map(str, shown)).encode()
    assert [secret for secret in (*SECRETS, "hush-hush") if secret.encode() in kept] == []
    assert {sent for _, _, sent in server.seen} == {f"Basic {BASIC}"}
    assert repr(ModelSpec(model="m", base_url=url)).count("hush") == 0


@pytest.mark.parametrize("command", [("sample", "--model"), ("rank", "--judge")])
def test_an_error_with_debug_shows_no_secret(start, tmp_path: Path, prefdata, command) -> None:
    server = start()
    run = run_of(tmp_path, prefdata)
    if command[0] == "rank":
        answered = tmp_path / "answered.jsonl"
        answered.write_text('{"prompt": "Say one.", "responses": ["1", "2"]}\n')
        prefdata("ingest", run, answered, "--as", "candidates")
    for url in (f"http://user:{PASSWORD}@{server.host}", f"ftp://user:{PASSWORD}@h", f"http://user:{PASSWORD}@h:8x"):
        name, model = command
        code, out, err = prefdata(name, run, model, "m", "--engine", "openai", "--base-url", url, "--debug")
        assert code in (1, 2)
        assert [secret for secret in SECRETS if secret in out + err] == []
        assert "Traceback" in err


def test_a_config_that_was_printed_with_its_secret_hidden_is_not_used_as_it_is(start, tmp_path: Path, prefdata) -> None:
    config = tmp_path / "run.yaml"
    url = "http://user:hunter22@127.0.0.1:9/v1"
    _, printed, _ = prefdata("sample", "run", "--model", "m", "--engine", "openai", "--base-url", url, "--print-config")
    config.write_text(printed)
    assert yaml.safe_load(printed)["sample"]["base_url"] == "http://***@127.0.0.1:9/v1"
    code, _, err = prefdata("sample", run_of(tmp_path, prefdata), "-c", config)
    assert code == 2
    assert "Put the secret in" in err


def test_a_url_without_secrets_is_printed_as_it_was_given(prefdata) -> None:
    for url in ("http://H:80/v1/", "http://h/v1?api-version=2024-01-01"):
        _, printed, _ = prefdata("sample", "run", "--model", "m", "--base-url", url, "--print-config")
        assert yaml.safe_load(printed)["sample"]["base_url"] == url


def test_a_key_in_the_place_of_its_variables_name_is_not_repeated(tmp_path: Path, prefdata) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"sample: {{model: m, api_key_env: {KEY}}}\n")
    both = (prefdata("sample", "run", "--model", "m", "--api-key-env", KEY), prefdata("sample", "run", "-c", config))
    config.write_text(f"sample: {{model: m, base_url: ['http://u:{KEY}@h'], api_key_env: {{a: {KEY}}}}}\n")
    for code, out, err in (*both, prefdata("sample", "run", "-c", config)):
        assert code == 2
        assert KEY not in out + err
        assert "environment variable" in err or "base_url" in err
