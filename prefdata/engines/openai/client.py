"""HTTP client of a server: it retries a busy server, reports refusals, and never shows the key.

A server may send anything. A response is read within limits of time and size (`exchange`); one that cannot be used
is a `RequestRefused` of one request, and the server's message is one line in ours.
"""

from __future__ import annotations

import email.utils
import json
import os
import random
import time
from collections.abc import Callable
from http import HTTPStatus
from threading import Event
from typing import Any

import httpx

from prefdata.engines.openai.address import Address
from prefdata.engines.openai.exchange import Response, Unreadable, bounded, exchange
from prefdata.errors import EngineError, UsageError
from prefdata.printable import printable

FIRST_PAUSE = 0.5
"""Seconds; the longest first pause. Each further one is at most twice as long, with full jitter."""

LONGEST_PAUSE = 60.0
LONGEST_RETRY_AFTER = 600.0
GREETING_TIMEOUT = 30.0
SECRET_KEY = 16
"""Characters from which on a secret is looked for in responses: no text holds one by chance."""

BUSY = (408, 409, 425, 429)
"""Temporary statuses, in addition to all of 500 and above."""

REDIRECTS = (301, 302, 303, 307, 308)
HTTP_WORDS = {status.value: status.phrase for status in HTTPStatus}
DROPPED = ("abort", "error", "insufficient_system_resource", "ERROR")
"""Finish reasons of a response that the server aborted."""


class RequestRefused(Exception):
    """A request that the server refuses: the status, its error code, and its message."""

    def __init__(self, status: int, code: str, said: str) -> None:
        """Store the three; `said` does not contain the key."""
        super().__init__(said)
        self.status = status
        self.code = code
        self.said = said


class Server:
    """One server; requests may be sent from several threads at a time."""

    def __init__(self, url: str, *, key_env: str, timeout: float, retries: int, connections: int) -> None:
        """Prepare; nothing is sent.

        Args:
            url: the base URL, up to and with `/v1` where the server has that.
            key_env: the environment variable that holds the key; none is sent where it is not set.
            timeout: seconds that a response may take, from the request to its last byte.
            retries: how often a request is sent again.
            connections: at a time.

        Raises:
            UsageError: the URL or the key is not valid.
        """
        self._address = Address.parse(url)
        self.url = self._address.shown
        self._key_env = key_env
        self._key = os.environ.get(key_env, "").strip()
        self._retries = retries
        self._timeout = timeout
        if not self._key.isascii() or not self._key.isprintable() or " " in self._key:
            raise UsageError(f"{key_env} holds characters that no key has. Set it again.")
        # A password in the URL replaces the key: a request has one Authorization header.
        bearer = {"Authorization": f"Bearer {self._key}"} if self._key and not self._address.auth else {}
        try:
            self._client = bounded(
                httpx.Client(
                    headers={**bearer, "Accept-Encoding": "gzip"},
                    auth=self._address.auth,
                    limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
                    follow_redirects=False,  # the key is for this origin alone
                )
            )
        except (ImportError, ValueError, httpx.InvalidURL):
            raise UsageError(
                "the proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names cannot be used (http:// and https:// can). "
                "Change it, or name the server's host in NO_PROXY."
            ) from None

    def models(self) -> list[dict[str, Any]]:
        """Return the models that the server lists; none where it has no list.

        Raises:
            EngineError: there is no server, it does not take the key, or it has its interface under `/v1`.
        """
        try:
            response = exchange(self._client, "GET", self._address.at("models"), GREETING_TIMEOUT)
        except httpx.TransportError as error:
            raise EngineError(
                f"no server answers at {self.url}: {self.line(_described(error))}. Start it, or correct --base-url."
            ) from None
        except Unreadable:  # a server need not have a list
            return []
        if response.status in (401, 403):
            raise self.wrong_key(self._refused(response))
        self._refuse_redirect(response)
        listed = _listed(response.json_object()) if response.status == 200 else None
        if listed is None and _listed(self._get(self._address.at("v1/models"))) is not None:
            raise EngineError(
                f"there is a server at {self.url}, but no /models at that path; did you forget /v1? "
                f"Give --base-url {self.url}/v1."
            )
        return listed or []

    def version(self) -> str | None:
        """Return the server's version, where it says one: vLLM does."""
        version = (self._get(self._address.beside("version")) or {}).get("version")
        return self.line(version)[:100] if isinstance(version, str) else None

    def _get(self, url: httpx.URL) -> dict[str, Any] | None:
        """Return the JSON at this path, or None: a server need not have it."""
        try:
            response = exchange(self._client, "GET", url, GREETING_TIMEOUT)
        except (httpx.TransportError, Unreadable):
            return None
        return response.json_object() if response.status == 200 else None

    def post(
        self, path: str, body: dict[str, Any], is_refusal: Callable[[RequestRefused], bool], left: Event
    ) -> dict[str, Any]:
        """Return the JSON object that the server answers; the request is sent again while the server is busy.

        `is_refusal` is whether a status of 500 and above is a refusal nevertheless, by the server's message. The
        request is not sent again once `left` is set: nobody waits for the response any more.

        Raises:
            Refused: it refuses, or no reply could be read.
            EngineError: it was busy, broken or unreachable each time, or redirects elsewhere.
        """
        for attempt in range(self._retries + 1):
            pause = random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt))
            unread: RequestRefused | None = None
            try:
                response = exchange(self._client, "POST", self._address.at(path), self._timeout, body)
            except httpx.TransportError as error:
                last = _described(error)
            except Unreadable as error:
                unread = RequestRefused(200, "", f"the response {error}")
                if not error.again:
                    raise unread from None
            else:
                self._refuse_redirect(response)
                answer = response.json_object() if response.status == 200 else None
                if answer is not None and (problem := _problem(answer)) is None:
                    return answer
                refused = self._refused(response)
                last = f"{response.status} {refused.said}"
                if response.status not in BUSY and (400 <= response.status < 500 or is_refusal(refused)):
                    raise refused
                if response.status == 200 and not (answer and answer.get("error")):
                    what = problem if answer else f"is not a JSON object: {refused.said[:100]}"
                    unread = RequestRefused(200, "", f"the response {what}")
                pause += min(_retry_after(response), LONGEST_RETRY_AFTER)
            if attempt < self._retries and left.wait(pause):
                break
        if unread is not None:
            raise unread
        times = "once" if self._retries == 0 else f"{self._retries + 1} times"
        raise EngineError(
            f"{self.url} failed {times} (last: {self.line(last)}). Check the server and run the same command again: "
            "it continues where this one stopped."
        )

    def wrong_key(self, refused: RequestRefused) -> EngineError:
        """Return the error for a key that is missing or refused."""
        if self._address.auth:
            return EngineError(
                f"{self.url} does not take the user and password of the URL: {refused.status} {refused.said}. "
                "Correct them in --base-url; or leave them out, and the key is sent."
            )
        what = (
            f"does not take the key in {self._key_env}" if self._key else f"needs a key, and {self._key_env} is empty"
        )
        return EngineError(
            f"{self.url} {what}: {refused.status} {refused.said}. Set it, or name another --api-key-env."
        )

    def close(self) -> None:
        """End the connections."""
        self._client.close()

    def _refuse_redirect(self, response: Response) -> None:
        if response.status in REDIRECTS and "location" in response.headers:
            target = self.line(self._address.elsewhere(response.headers["location"]))
            raise EngineError(
                f"{self.url} redirects to {target} ({response.status}), and the key is sent to no other address. "
                "If that is the server, give its address as --base-url."
            )

    def _refused(self, response: Response) -> RequestRefused:
        answer = response.json_object() or {}
        error = answer.get("error") or answer
        if not isinstance(error, dict):
            return RequestRefused(response.status, "", self.line(_words(error)))
        message = error.get("message") or error.get("detail") or response.text or HTTP_WORDS.get(response.status, "")
        codes = " ".join(_words(error[name]) for name in ("code", "type") if error.get(name))
        return RequestRefused(response.status, self.line(codes), self.line(_words(message)))

    def secret_in(self, text: str) -> str | None:
        """Return which secret that was sent a text holds; a short one (EMPTY, for a server that wants none) is none."""
        if len(self._key) >= SECRET_KEY and self._key in text:
            return "the API key"
        found = any(len(secret) >= SECRET_KEY and secret in text for secret in self._address.secrets)
        return "a secret of --base-url" if found else None

    def without_secrets(self, text: str) -> str:
        """Remove the key and the URL's secrets from a server's text, which may repeat them."""
        whole = text.encode("utf-8", "backslashreplace").decode()
        return self._address.clean(whole.replace(self._key, "…") if self._key else whole)

    def line(self, text: str) -> str:
        """Return one line of a server's text, of limited length, without secrets and a full stop."""
        return printable(" ".join(self.without_secrets(text).split())[:500].rstrip("."))


def _problem(answer: dict[str, Any]) -> str | None:
    """Why a server's response is not one, or None: a request that it dropped has none."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return "has no choices"
    finish = choices[0].get("finish_reason")
    return f"was dropped by the server ({finish})" if finish in DROPPED else None


def _words(value: Any) -> str:
    """Return a server's error as text; it may be any JSON value."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "a message that is nested too deeply to be shown"


def _listed(answer: dict[str, Any] | None) -> list[dict[str, Any]] | None:
    """Return the entries of a list in OpenAI's format, or None where it is not such a list."""
    found = None if answer is None else answer.get("data")
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else None


def _retry_after(response: Response) -> float:
    """Seconds that the server asks to wait (Retry-After, as seconds or a date); 0 without."""
    text = response.headers.get("retry-after", "").strip()
    if not text:
        return 0.0
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):  # not a date, or out of range
        return 0.0


def _described(error: Exception) -> str:
    return f"{type(error).__name__} {str(error).strip()}".strip()
