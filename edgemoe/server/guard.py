"""The guard: checks of the host, the origin and the key of a request, before anything else of it is looked at.

Pages of other sites can send requests to a server on this machine through a person's browser. It cannot hide where they
come from: the name by which it called the server is in `Host` (so that a name that was made to point here is told from
this machine's own), and the page's site in `Origin`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from edgemoe.server.exchange import Dialect
from edgemoe.server.refusals import RefusalError
from edgemoe.server.settings import LOOPBACK, ServerSettings

OPEN_PATHS = ("/health", "/v1/health", "/")
OPEN_FOLDER = "/static/"
"""Paths that need no key, and those of the page's files, which then asks for one."""


class Guard:
    """Answers requests that may not pass, and passes on all others."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, dialect_of: Callable[[str], Dialect]) -> None:
        """`dialect_of` gives the form of errors on a path."""
        self._app = app
        self._settings = settings
        self._dialect_of = dialect_of
        self._keys = [_digest(key) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope["path"], Headers(scope=scope))
            except RefusalError as refusal:
                response = self._dialect_of(scope["path"]).refuse(refusal, "")
                response.headers["connection"] = "close"  # a body may follow that nobody reads
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> None:
        """Raises RefusalError for a request that may not pass."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._settings.host in LOOPBACK and host and _name(host) not in LOOPBACK:
            raise RefusalError(
                f"the host {host[:80]!r} is not this server's: expected localhost or 127.0.0.1.",
                "Ask it by one of these names.",
                403,
            )
        own = origin is not None and urlsplit(origin).netloc == host
        if origin is not None and not own and origin not in self._settings.origins:
            raise RefusalError(
                f"a page of {origin[:80]!r} may not ask this server.", "Start the server with that origin allowed.", 403
            )
        is_open = path in OPEN_PATHS or path.startswith(OPEN_FOLDER)
        if self._keys and not is_open and not self._has_key(headers):
            raise RefusalError(
                "the API key is missing or wrong.",
                "Send it as Authorization: Bearer KEY, or as X-Api-Key: KEY.",
                401,
                "invalid_api_key",
            )

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", ""), bearer.strip() if scheme.lower() == "bearer" else ""]
        # All are compared, in full: how long it takes says nothing of a key.
        matches = [hmac.compare_digest(_digest(one), key) for one in given if one for key in self._keys]
        return any(matches)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _name(host: str) -> str:
    """A host without its port, and without the brackets of IPv6."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def read_keys(lines: Sequence[str]) -> tuple[str, ...]:
    """The keys of a file: one in each line; empty lines and those that begin with # do not count."""
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
