"""One exchange with a server, within limits of time and size, whatever the server sends.

A timeout of httpx is per read. Here the whole exchange has one, from the connection to the last byte: a server that
sends a byte a second, in its headers too, is abandoned at the timeout. A body is read up to a limit, and
decompressed up to the same limit.
"""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

LARGEST = 64 << 20
"""Bytes of a body, decompressed: some hundred thousand tokens with their log-probabilities."""


class Unreadable(Exception):
    """A response that cannot be read; `again`: whether a retry may help."""

    def __init__(self, problem: str, *, again: bool = True) -> None:
        """Keep the problem: what follows the words "the response"."""
        super().__init__(problem)
        self.again = again


@dataclass(frozen=True)
class Response:
    """A whole response: its status, its headers and its body."""

    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def text(self) -> str:
        """The body as UTF-8 text, whatever its headers say."""
        return self.body.decode("utf-8", "replace")

    def json_object(self) -> dict[str, Any] | None:
        """Return the JSON object of the body, or None where it is not one."""
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


def exchange(client: httpx.Client, method: str, url: httpx.URL, seconds: float, body: Any = None) -> Response:
    """Send a request and read the whole response within so many seconds.

    Raises:
        httpx.TransportError: no reply, or not in time.
        Unreadable: the response began, and is too large, broken or not over in time.
    """
    _clock.end = time.monotonic() + seconds
    try:
        with client.stream(method, url, json=body, timeout=seconds) as response:
            return Response(response.status_code, response.headers, _body(response))
    finally:
        _clock.end = None


def bounded(client: httpx.Client) -> httpx.Client:
    """Return the client itself, whose connections (proxies' too) end with the time that `exchange` gives."""
    for transport in (client._transport, *client._mounts.values()):
        if isinstance(transport, httpx.HTTPTransport):
            transport._pool._network_backend = _Backend(transport._pool._network_backend)  # no setting in httpx
    return client


def _body(response: httpx.Response) -> bytes:
    try:
        return _read(response)
    except Unreadable:
        if response.status_code == 200:
            raise
        return b""  # the status tells the problem


def _read(response: httpx.Response) -> bytes:
    try:
        return b"".join(_within(LARGEST, _decompressed(response)))
    except httpx.TimeoutException:
        raise Unreadable("did not end within --timeout") from None
    except httpx.TransportError as error:
        raise Unreadable(f"broke off ({type(error).__name__})") from None
    except zlib.error:
        raise Unreadable("is broken gzip") from None


def _within(limit: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > limit:
            raise Unreadable(f"is larger than {limit >> 20} MiB", again=False)
        yield piece


def _decompressed(response: httpx.Response) -> Iterator[bytes]:
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        yield from response.iter_raw()
    elif encoding in ("gzip", "x-gzip"):
        unzip = zlib.decompressobj(wbits=31)
        for chunk in response.iter_raw():
            yield unzip.decompress(chunk, LARGEST + 1)  # one byte more is too much already
        if not unzip.eof:
            raise Unreadable("is truncated gzip")
    else:
        raise Unreadable(f"is compressed by {encoding[:40]!r}, which was not requested", again=False)


class _Clock(threading.local):
    """The deadline of this thread's exchange."""

    end: float | None = None

    def left(self, timeout: float | None) -> float | None:
        """Return the seconds that a read or a write may take.

        Raises:
            TimeoutError: none is left.
        """
        if self.end is None:
            return timeout
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left if timeout is None else min(left, timeout)


_clock = _Clock()


class _Backend(httpcore.NetworkBackend):
    def __init__(self, inner: httpcore.NetworkBackend) -> None:
        self._inner = inner

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.NetworkStream:  # fmt: skip
        return _Stream(self._inner.connect_tcp(host, port, timeout, local_address, socket_options))

    def connect_unix_socket(self, path: str, timeout: float | None = None, socket_options: Any = None) -> Any:
        return _Stream(self._inner.connect_unix_socket(path, timeout, socket_options))

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return self._inner.read(max_bytes, _clock.left(timeout))
        except TimeoutError as error:
            raise httpcore.ReadTimeout(error) from None

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            self._inner.write(buffer, _clock.left(timeout))
        except TimeoutError as error:
            raise httpcore.WriteTimeout(error) from None

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> Any:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)

    def close(self) -> None:
        self._inner.close()
