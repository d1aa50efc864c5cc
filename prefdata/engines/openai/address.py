"""A server's address: one origin, to which every request goes, and the part of it that may be shown.

A base URL may hold secrets: a user with a password, or a key in its query. They are sent to that origin only, and no
message, report or table shows them.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus, urlencode

import httpx

from prefdata.errors import UsageError

HIDDEN = "***"
"""The replacement of a secret in a URL that is shown."""

_SECRET = re.compile(r"auth|code|cred|key|pass|secret|sig|token", re.IGNORECASE)
_EXAMPLE = "Write --base-url as http://HOST:PORT/v1."
_SHORTEST = 4
"""Characters of a secret that is looked for in what a server says."""


@dataclass(frozen=True, repr=False)
class Address:
    """A parsed base URL.

    Attributes:
        shown: scheme, host, port and path: what messages say.
        auth: the user name and the password of the URL, or None.
        secrets: texts that may not be shown.
    """

    shown: str
    auth: tuple[str, str] | None
    secrets: tuple[str, ...]
    _base: httpx.URL
    _path: bytes

    @classmethod
    def parse(cls, url: str) -> Address:
        """Parse a base URL; nothing is looked up or sent.

        Raises:
            UsageError: it is not the URL of a server, with a message that shows no secret of it.
        """
        found = _parsed(url)
        base = found.copy_with(userinfo=b"")
        path = base.raw_path.partition(b"?")[0].rstrip(b"/")
        shown = str(base.copy_with(raw_path=path or b"/")).rstrip("/")
        auth = (found.username, found.password) if found.userinfo else None
        return cls(shown, auth, _secrets(found), base, path)

    def at(self, name: str) -> httpx.URL:
        """Return the URL of a path below the base, with the base's query."""
        return self._with(self._path + b"/" + name.encode())

    def beside(self, name: str) -> httpx.URL:
        """Return the URL with the base's last part replaced, or below the origin where the base is the origin."""
        return self._with(self._path.rpartition(b"/")[0] + b"/" + name.encode())

    def _with(self, path: bytes) -> httpx.URL:
        return self._base.copy_with(raw_path=path + (b"?" + self._base.query if self._base.query else b""))

    def elsewhere(self, location: str) -> str:
        """Return where a redirect leads, as it may be shown."""
        try:
            target = self._base.join(location)
            return str(target.copy_with(userinfo=b"", query=None, fragment=None))
        except (httpx.InvalidURL, ValueError):
            return "an address that cannot be read"

    def clean(self, text: str) -> str:
        """Return the text without the secrets: a server may repeat what it was sent."""
        for secret in self.secrets:
            text = text.replace(secret, "…")
        return text


def without_secrets(url: str) -> str:
    """Return a base URL with `***` for a user with a password, and for each key or token in its query."""
    try:
        found = httpx.URL(url.strip())
        host = found.host
    except (httpx.InvalidURL, ValueError):
        host = ""
    if not host:
        return HIDDEN if _may_hold_secrets(url) else url
    given = found.params.multi_items()
    kept = [(name, HIDDEN if _SECRET.search(name) else value) for name, value in given]
    hidden: dict[str, Any] = {"userinfo": HIDDEN.encode()} if found.userinfo else {}
    hidden |= {"query": urlencode(kept, safe="*").encode()} if kept != given else {}
    hidden |= {"fragment": HIDDEN} if found.fragment else {}
    return str(found.copy_with(**hidden)) if hidden else url


def _may_hold_secrets(url: str) -> bool:
    return "@" in url or "?" in url


def _parsed(url: str) -> httpx.URL:
    shown = url if url and url.isprintable() else repr(url)
    shown = "the base URL is" if _may_hold_secrets(url) else f"{shown} is"
    try:
        found = httpx.URL(url.strip())
        host = found.host
    except (httpx.InvalidURL, ValueError):
        raise UsageError(f"{shown} not a URL. {_EXAMPLE}") from None
    if found.scheme not in ("http", "https") or not host:
        raise UsageError(f"{shown} not the URL of a server. {_EXAMPLE}")
    if "\\" in url:  # browsers end the host there, and httpx does not: a request may go to another one than was meant
        raise UsageError(f"{shown} not the URL of a server: it holds a backslash. {_EXAMPLE}")
    if found.port is not None and not 0 < found.port < 1 << 16:
        raise UsageError(f"{shown} not the URL of a server: a port is 1 to 65535. {_EXAMPLE}")
    if found.fragment:
        raise UsageError(f"{shown} not a base URL: what follows a # is never sent. Leave it out.")
    if HIDDEN in found.userinfo.decode() or HIDDEN in dict(found.params).values():
        raise UsageError(f"the base URL holds {HIDDEN}, which --print-config writes for a secret. Put the secret in.")
    return found


def _secrets(url: httpx.URL) -> tuple[str, ...]:
    """Return a URL's secrets, in every form in which they are sent; the longest first."""
    found = {value for name, value in url.params.multi_items() if _SECRET.search(name)}
    encoded = (part.partition("=") for part in url.query.decode("ascii", "replace").split("&"))
    found |= {value for name, _, value in encoded if _SECRET.search(unquote_plus(name))}
    if url.userinfo:
        pair = f"{url.username}:{url.password}"
        found |= {url.password or url.username, pair, base64.b64encode(pair.encode()).decode()}
        found |= set(url.userinfo.decode().split(":", 1)[-1:])
    return tuple(sorted((secret for secret in found if len(secret) >= _SHORTEST), key=len, reverse=True))
