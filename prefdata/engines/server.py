"""Talking to a server over HTTP: patient where it is busy, plain where it refuses, silent about the key."""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import time
from collections.abc import Callable
from typing import Any

import httpx

from prefdata.errors import EngineError, UsageError

FIRST_PAUSE = 0.5
"""Seconds; the longest first pause. Each further one is twice as long at most, and each is drawn (full jitter)."""

LONGEST_PAUSE = 60.0
LONGEST_RETRY_AFTER = 600.0
GREETING_TIMEOUT = 30.0
BUSY = (408, 409, 425, 429)
"""Statuses that pass, beside all of 500 and above."""


class Refused(Exception):
    """The server will not do this: its status, its code for it, and what it said."""

    def __init__(self, status: int, code: str, said: str) -> None:
        """Keep the three; `said` is free of the key."""
        super().__init__(said)
        self.status = status
        self.code = code
        self.said = said


class Server:
    """One server, for use in one event loop."""

    def __init__(self, url: str, *, key_env: str, timeout: float, retries: int, connections: int) -> None:
        """Get ready; nothing is sent.

        Args:
            url: up to and with `/v1`.
            key_env: the environment variable that holds the key; none is sent where it is not set.
            timeout: seconds to wait for an answer.
            retries: how often a request is sent again.
            connections: at a time.

        Raises:
            UsageError: the URL or the key cannot be one.
        """
        self.url = url.rstrip("/")
        self._key_env = key_env
        self._key = os.environ.get(key_env, "").strip()
        self._retries = retries
        if not self._key.isascii() or not self._key.isprintable() or " " in self._key:
            raise UsageError(f"{key_env} holds characters that no key has. Set it again.")
        try:
            said = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise UsageError(f"{url} is no URL: {error}. Write --base-url as http://HOST:PORT/v1.") from None
        if said.scheme not in ("http", "https") or not said.host:
            raise UsageError(f"{url} is no URL of a server. Write --base-url as http://HOST:PORT/v1.")
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=timeout,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    async def get(self, path: str) -> dict[str, Any] | None:
        """What the server has there, or None where it has nothing of the kind; `path` may leave `/v1` by `../`.

        Raises:
            EngineError: there is no server, or it does not take the key.
        """
        url = f"{self.url.rpartition('/')[0]}/{path[3:]}" if path.startswith("../") else f"{self.url}/{path}"
        try:
            response = await self._client.get(url, timeout=GREETING_TIMEOUT)
        except httpx.TransportError as error:
            raise EngineError(
                f"no server answers at {self.url}: {self._clean(_line(error))}. Start it, or mend --base-url."
            ) from None
        if response.status_code in (401, 403):
            raise self.wrong_key(self._refused(response))
        return _json_object(response) if response.status_code == 200 else None

    async def post(self, path: str, body: dict[str, Any], is_whole: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The server's answer, asked for again while the server is busy, cannot be reached, or answers by halves.

        Raises:
            Refused: it will not do this.
            EngineError: it was busy, broken or away each time.
        """
        for attempt in range(self._retries + 1):
            pause = random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt))
            try:
                response = await self._client.post(f"{self.url}/{path}", json=body)
            except httpx.TransportError as error:
                said = _line(error)
            else:
                answer = _json_object(response) if response.status_code == 200 else None
                if answer is not None and is_whole(answer):
                    return answer
                refused = self._refused(response)
                said = f"{response.status_code} {refused.said}"
                if response.status_code not in BUSY and 400 <= response.status_code < 500:
                    raise refused
                pause += min(_retry_after(response), LONGEST_RETRY_AFTER)
            if attempt < self._retries:
                await asyncio.sleep(pause)
        times = "once" if self._retries == 0 else f"{self._retries + 1} times"
        raise EngineError(
            f"{self.url} failed {times} (last: {self._clean(said)}). See to the server and run the same command again: "
            "it continues where this one stopped."
        )

    def wrong_key(self, refused: Refused) -> EngineError:
        """The error for a key that is missing or not taken."""
        what = (
            f"does not take the key in {self._key_env}" if self._key else f"wants a key, and {self._key_env} is empty"
        )
        return EngineError(
            f"{self.url} {what}: {refused.status} {refused.said}. Set it, or name another --api-key-env."
        )

    async def close(self) -> None:
        """End the connections."""
        await self._client.aclose()

    def _refused(self, response: httpx.Response) -> Refused:
        said = (_json_object(response) or {}).get("error") or _json_object(response) or {}
        if not isinstance(said, dict):
            return Refused(response.status_code, "", self._clean(str(said)))
        message = said.get("message") or said.get("detail") or response.text or response.reason_phrase
        return Refused(response.status_code, str(said.get("code") or said.get("type") or ""), self._clean(str(message)))

    def _clean(self, said: str) -> str:
        """One line of what was said, not too long, and without the key: a server may repeat it."""
        line = " ".join((said.replace(self._key, "…") if self._key else said).split())
        return line[:500].rstrip(".")


def _json_object(response: httpx.Response) -> dict[str, Any] | None:
    try:
        value = response.json()
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait: it says them, or a date; 0 where it says nothing."""
    said = response.headers.get("retry-after", "").strip()
    if not said:
        return 0.0
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return 0.0


def _line(error: Exception) -> str:
    return f"{type(error).__name__} {str(error).strip()}".strip()
