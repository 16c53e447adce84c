"""A client that shows what a server sends: statuses, headers and the frames of streams, without any library's help."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgemoe.server.server import Server


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


@dataclass(frozen=True)
class Frame:
    """One event of a stream."""

    name: str | None
    data: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class Client:
    def __init__(self, server: Server, key: str | None = None) -> None:
        self.server = server
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        connection = self.connect()
        try:
            response = self._send(connection, method, path, body, headers)
            return Reply(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, **headers)

    def post(self, path: str, /, **body: Any) -> Reply:
        return self.ask("POST", path, {"model": "letters", **body})

    def stream(self, path: str, /, **body: Any) -> list[Frame]:
        connection = self.connect()
        try:
            response = self._send(connection, "POST", path, {"model": "letters", **body, "stream": True}, {})
            assert response.status == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            return list(frames(response))
        finally:
            connection.close()

    def _send(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, data, {**self._headers, **named})
        return connection.getresponse()


def frames(response: http.client.HTTPResponse) -> Iterator[Frame]:
    """The events of a stream; comments are left out."""
    name: str | None = None
    for line in iter(response.readline, b""):
        field, _, value = line.decode().rstrip("\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield Frame(name, value)
            name = None
