"""A server with OpenAI's interface that says what a test wants it to say."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-tell-nobody-0123456789"


class FakeServer:
    """A server on a real socket. `answer(path, body, nth)` says (status, headers, body) to the nth POST of that body.

    Attributes:
        bodies: what was POSTed, in order.
        most: the most requests that were under way at one time.
    """

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[..., tuple[int, dict[str, str], Any]] = lambda path, body, nth: (200, {}, chat("hi"))
        self.models: Any = {"data": [{"id": "m", "owned_by": "someone"}]}
        self.version: Any = None
        self.busy = self.most = 0
        self._lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                found = {"/v1/models": fake.models, "/version": fake.version}.get(self.path)
                self.reply(*(found if isinstance(found, tuple) else (200 if found else 404, {}, found or {})))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with fake._lock:
                    fake.bodies.append(body)
                    fake.headers.append(dict(self.headers))
                    nth = sum(one == body for one in fake.bodies)
                    fake.busy += 1
                    fake.most = max(fake.most, fake.busy)
                said = fake.answer(self.path, body, nth)
                with fake._lock:
                    fake.busy -= 1
                self.reply(*said)

            def reply(self, status: int, headers: dict[str, str], body: Any) -> None:
                if status == 0:  # the line goes dead
                    self.close_connection = True
                    self.connection.close()
                    return
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(raw))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *said: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda request, address: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self.http.shutdown()
        self.http.server_close()


def chat(text: str | None, finish: str = "stop", **message: Any) -> dict[str, Any]:
    logprobs = {"content": [{"token": "x", "logprob": -0.5}, {"token": "y", "logprob": -1.25}]}
    choice = {"message": {"content": text, **message}, "finish_reason": finish, "logprobs": logprobs}
    return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}


def error(message: str, code: str = "") -> dict[str, Any]:
    return {"error": {"message": message, "code": code}}
