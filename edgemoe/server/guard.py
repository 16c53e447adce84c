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

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgemoe.server.exchange import WARNING_HEADER, Dialect
from edgemoe.server.refusals import RefusalError
from edgemoe.server.settings import LOOPBACK, ServerSettings

OPEN_PATHS = ("/health", "/v1/health", "/")
OPEN_FOLDER = "/static/"
"""Paths that need no key, and those of the page's files, which then asks for one."""
ASKED_METHOD = "access-control-request-method"
"""The header of a browser that asks, before a page's request, whether it may send that."""


class Guard:
    """Answers requests that may not pass, and passes on all others."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, dialect_of: Callable[[str], Dialect]) -> None:
        """`dialect_of` gives the form of errors on a path."""
        self._app = app
        self._settings = settings
        self._dialect_of = dialect_of
        self._keys = [_digest(key) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        allowing = self._allowing(headers)

        async def allowed(message: Message) -> None:
            if message["type"] == "http.response.start" and allowing:
                MutableHeaders(scope=message).update(allowing)
            await send(message)

        try:
            self._check_host(headers)
            if scope["method"] == "OPTIONS" and ASKED_METHOD in headers:
                await Response()(scope, receive, allowed)
                return
            self._check(scope["path"], headers, bool(allowing))
        except RefusalError as refusal:
            response = self._dialect_of(scope["path"]).refuse(refusal, "")
            response.headers["connection"] = "close"  # a body may follow that nobody reads
            await response(scope, receive, allowed)
            return
        await self._app(scope, receive, allowed)

    def _allowing(self, headers: Headers) -> dict[str, str]:
        """The headers by which a browser lets a page of another origin read a response; none where it may not."""
        origin, origins = headers.get("origin"), self._settings.origins
        if origin is None or not (
            "*" in origins or origin in origins or ("localhost" in origins and _is_local(origin))
        ):
            return {}
        allowing = {
            "access-control-allow-origin": origin,
            "access-control-allow-credentials": "true",
            "access-control-expose-headers": WARNING_HEADER,
            "vary": "origin",
        }
        if ASKED_METHOD in headers:
            allowing["access-control-allow-methods"] = "GET, POST, DELETE, OPTIONS"
            allowing["access-control-allow-headers"] = headers.get("access-control-request-headers", "*")
        return allowing

    def _check_host(self, headers: Headers) -> None:
        """Raises RefusalError for a request that calls the server by a name that is not its own."""
        host = headers.get("host", "")
        if self._settings.is_local and host and _name(host) not in LOOPBACK:
            raise RefusalError(
                f"the host {host[:80]!r} is not this server's: expected localhost or 127.0.0.1.",
                "Ask it by one of these names.",
                403,
            )

    def _check(self, path: str, headers: Headers, allowed: bool) -> None:
        """Raises RefusalError for a request that may not pass. `allowed`: pages of its origin may ask."""
        origin = headers.get("origin")
        own = origin is not None and urlsplit(origin).netloc == headers.get("host", "")
        if origin is not None and not own and not allowed:
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


def _is_local(origin: str) -> bool:
    """Whether a page comes from a server on this machine."""
    scheme, _, host = origin.partition("://")
    return scheme in ("http", "https") and _name(host) in LOOPBACK


def _name(host: str) -> str:
    """A host without its port, and without the brackets of IPv6."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def read_keys(lines: Sequence[str]) -> tuple[str, ...]:
    """The keys of a file: one in each line; empty lines and those that begin with # do not count."""
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
