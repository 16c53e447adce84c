"""One request and its response: reads the body within its limits, and answers with JSON or a stream of events.

A client that leaves ends the work for it: the coroutine or the stream that makes its answer is cancelled.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edgemoe.server.fields import Fields
from edgemoe.server.kept_streams import KEEP_HEADER
from edgemoe.server.messages import Conversation
from edgemoe.server.refusals import RefusalError, refusal_of
from edgemoe.server.service import Service
from edgemoe.session.constraint import Structure
from edgemoe.session.tools import ToolPrompt, ToolWishes

Result = TypeVar("Result")
WARNING_HEADER = "x-edgemoe-warning"
DIFFERS_HEADER = "x-edgemoe-prefix-differs"
"""Names the first message that differs from an earlier conversation, whose prefix is therefore not found further."""
CLIENT_LEFT = 499
"""The status of requests whose client has left: nobody receives it."""


to_json: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
"""JSON in one line; an encoder that is made once, as a stream has an object for each token."""


def json_response(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response with a JSON value."""
    return Response(to_json(data), status, dict(headers or {}), "application/json")


def event(data: Any, name: str | None = None) -> bytes:
    """An event of a stream."""
    text = data if isinstance(data, str) else to_json(data)
    return (f"event: {name}\n" * (name is not None) + f"data: {text}\n\n").encode()


class TextEvents:
    """Events of a stream that differ in one text: the JSON around it is made once, and not for each token."""

    def __init__(self, make: Callable[..., Any]) -> None:
        """`make` gives the object of an event; a text is the last of its arguments."""
        self._make = make
        self._around: dict[tuple[Any, ...], tuple[bytes, bytes]] = {}

    def of(self, text: str, *which: Any) -> bytes:
        """The event with a text, and with these arguments before it."""
        if which not in self._around:
            mark = secrets.token_hex(16)
            before, after = event(self._make(*which, mark)).split(to_json(mark).encode())
            self._around[which] = before, after
        before, after = self._around[which]
        return before + to_json(text).encode() + after


@dataclass(frozen=True)
class Dialect:
    """How an interface tells errors, and that a stream is alive."""

    error_body: Callable[[RefusalError, str], dict[str, Any]]
    """The body of an error, whose second argument is the id of the request."""
    error_event: str | None = None
    """The name of a stream's event with an error."""
    ping: bytes = b": ping\n\n"

    def refuse(self, refusal: RefusalError, request_id: str) -> Response:
        """The response of a request that is refused."""
        return json_response(self.error_body(refusal, request_id), refusal.status, refusal.headers)


class Exchange:
    """A request in one dialect."""

    def __init__(self, service: Service, dialect: Dialect, request: Request) -> None:
        self.service = service
        self.dialect = dialect
        self.request = request
        self.id = secrets.token_hex(12)
        self._differs: str | None = None

    async def fields(self) -> Fields:
        """The fields of the body. Raises RefusalError for one that is too large, too slow, or no JSON object."""
        return Fields.of_body(await self._body())

    def check_model(self, fields: Fields) -> None:
        """Raise RefusalError where OpenAI's interface requires a model's name, which may be any.

        llama-server's forms of the same paths, without /v1, do not require it.
        """
        if self.request.url.path.startswith("/v1/"):
            fields.require("model", f"the model's name, such as {self.service.name!r}")

    async def chat(
        self,
        conversation: Conversation,
        variables: Mapping[str, Any],
        wishes: ToolWishes,
        structure: Structure | None,
    ) -> ToolPrompt:
        """The prompt of a conversation to be answered, noted among the earlier ones. Raises RefusalError."""
        prompt = await self.service.chat(conversation, variables, wishes, structure)
        self._differs = self.service.earlier.note(conversation.messages, {**variables, "tools": wishes.offered})
        return prompt

    async def whole(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of work that ends if the client leaves. Raises ClientDisconnect then."""
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected(self.request.receive))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientDisconnect
            return await task
        finally:
            await _cancelled(task, gone)

    def answer(self, data: Any, fields: Fields) -> Response:
        """A response with JSON, and the warnings about a request's fields."""
        return json_response(data, headers=self._headers(fields))

    def stream(self, events: AsyncGenerator[bytes, None], fields: Fields, ping_s: float | None = None) -> Response:
        """A response of events, which begins at once."""
        key = self.request.headers.get(KEEP_HEADER)
        if key is not None:
            events = self.service.streams.keep(key, events)
        headers = self._headers(fields)
        return EventStream(events, self.dialect, self.id, headers, ping_s or self.service.settings.ping_seconds)

    def _headers(self, fields: Fields) -> dict[str, str]:
        return {**warnings(fields), **({DIFFERS_HEADER: self._differs} if self._differs else {})}

    async def _body(self) -> bytes:
        settings = self.service.settings
        declared = self.request.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > settings.body_limit_bytes:
            raise _too_large(settings.body_limit_bytes)
        try:
            return await asyncio.wait_for(self._read(settings.body_limit_bytes), settings.body_seconds)
        except (asyncio.TimeoutError, TimeoutError):
            raise RefusalError(
                f"the body did not arrive within {settings.body_seconds:.0f} seconds.", "Send it again.", 408
            ) from None

    async def _read(self, limit: int) -> bytes:
        body = bytearray()
        async for part in self.request.stream():
            body += part
            if len(body) > limit:
                raise _too_large(limit)
        return bytes(body)


def _too_large(limit: int) -> RefusalError:
    return RefusalError(f"the body is too large: expected at most {limit >> 10} KiB.", "Shorten the messages.", 413)


def warnings(fields: Fields) -> dict[str, str]:
    """The header about fields of a request that nobody knows, or that have no effect."""
    unknown = [f"unknown, ignored: {', '.join(fields.unknown())}"] if fields.unknown() else []
    text = "; ".join(unknown + fields.remarks)
    shown = "".join(character if " " <= character <= "~" else "?" for character in text)
    return {WARNING_HEADER: shown[:1000]} if shown else {}


class EventStream(Response):
    """A stream of events, with a sign of life where none comes for a while. An error becomes its last event."""

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        dialect: Dialect,
        request_id: str,
        headers: Mapping[str, str],
        ping_s: float,
    ) -> None:
        super().__init__(None, 200, {"cache-control": "no-cache", **headers}, "text/event-stream; charset=utf-8")
        del self.headers["content-length"]
        self._events = events
        self._dialect = dialect
        self._request_id = request_id
        self._ping_s = ping_s
        self._written_s = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing, gone = asyncio.ensure_future(self._write(send)), asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait({writing, gone}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                await writing
        finally:
            await _cancelled(writing, gone)
            await self._events.aclose()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

        async def write(part: bytes) -> None:
            await send({"type": "http.response.body", "body": part, "more_body": True})

        await write(b": here\n\n")  # sends the headers too
        living = asyncio.ensure_future(self._stay_alive(write))
        try:
            async for part in self._events:
                self._written_s = time.monotonic()
                await write(part)
        except Exception as error:
            body = self._dialect.error_body(refusal_of(error), self._request_id)
            await write(event(body, self._dialect.error_event))
        finally:
            await _cancelled(living)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _stay_alive(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Write a sign of life whenever nothing has been written for a while; ends by being cancelled."""
        while True:
            silent_s = time.monotonic() - self._written_s
            if silent_s >= self._ping_s:
                self._written_s = time.monotonic()
                await write(self._dialect.ping)
            else:
                await asyncio.sleep(self._ping_s - silent_s)


async def disconnected(receive: Receive) -> None:
    """Return once the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
        with suppress(BaseException):
            await task


Handler = Callable[[Exchange], Awaitable[Response]]


def endpoint(service: Service, dialect: Dialect, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """A function that answers requests by a handler, whose errors it tells in a dialect."""

    async def respond(request: Request) -> Response:
        exchange = Exchange(service, dialect, request)
        try:
            return await handler(exchange)
        except ClientDisconnect:
            return Response(status_code=CLIENT_LEFT)
        except Exception as error:
            refusal = refusal_of(error)
            response = dialect.refuse(refusal, exchange.id)
            if refusal.status in (408, 413):
                response.headers["connection"] = "close"  # the rest of the body is not read
            return response

    return respond
