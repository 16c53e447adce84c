"""A server in a process of its own, and a client that asks it: bytes while it is timed, what they say afterwards."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import re
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from edgemoe.bench.protocol import LAST_LINES
from edgemoe.errors import EdgemoeError

OPENING_SECONDS = 600.0
ANSWER_SECONDS = 3600.0
HOST = "127.0.0.1"


class Answer(NamedTuple):
    """An answer as a client sees it."""

    asked_s: float
    """When it was asked for."""
    arrived_s: Sequence[float]
    """When its pieces arrived."""
    tokens: int

    @property
    def first_s(self) -> float:
        """How long its first piece was waited for."""
        return self.arrived_s[0] - self.asked_s


class Received(io.RawIOBase):
    """The bytes that came through a socket, to be read again, with the time at which each part of them came.

    A client's own work takes processors from the server beside it, so it only takes bytes while it is timed, and looks
    at them afterwards.
    """

    def __init__(self, connection: socket.socket) -> None:
        """Receives until the server closes the connection."""
        self._parts: list[tuple[float, bytes]] = []
        while part := connection.recv(io.DEFAULT_BUFFER_SIZE):
            self._parts.append((time.perf_counter(), part))
        self._parts.reverse()
        self.at_s = 0.0
        """When the part came that was read last."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._parts:
            return 0
        self.at_s, part = self._parts.pop()
        taken = min(len(buffer), len(part))
        buffer[:taken] = part[:taken]
        if taken < len(part):
            self._parts.append((self.at_s, part[taken:]))
        return taken

    def makefile(self, *_: Any) -> io.BufferedReader:
        """The file that `http.client` reads in the place of a socket's."""
        return io.BufferedReader(self)


class HttpServer:
    """A server's process, from when it can be asked until it is closed. A context manager."""

    def __init__(self, command: Sequence[str], port: int | None = None) -> None:
        """Waits until the model is open. With `port` None the process says its port as `edgemoe serve` does.

        Raises EdgemoeError where it ends before that.
        """
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        self._command = command[0]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._said
        )
        try:
            self.port = self._wait(lambda: self._said_port() if port is None else port)
            self._wait(self._healthy)
        except BaseException:
            self.close()
            raise

    def _wait(self, found: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + OPENING_SECONDS
        while not (value := found()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = self._text().strip().splitlines()[-LAST_LINES:]
                raise EdgemoeError(
                    f"{self._command}: the server did not begin; its last output: {' / '.join(lines)}.",
                    "It may need more memory than there is.",
                )
            time.sleep(0.05)
        return value

    def _text(self) -> str:
        self._said.seek(0)
        return self._said.read().decode("utf-8", "replace")

    def _said_port(self) -> int | None:
        found = re.search(r"serving at http://[^ ]*:(\d+) ", self._text())
        return int(found[1]) if found else None

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=OPENING_SECONDS)
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.request("GET", "/health")
            return connection.getresponse().status == http.HTTPStatus.OK
        return False

    def answer(self, prompt: Sequence[int], tokens: int) -> Answer:
        """Ask for an answer of so many tokens. Raises EdgemoeError."""
        body = {
            "prompt": list(prompt), "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        headers = {"Content-Type": "application/json", "Connection": "close"}
        with contextlib.closing(http.client.HTTPConnection(HOST, self.port, timeout=ANSWER_SECONDS)) as connection:
            asked_s = time.perf_counter()
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            received = Received(connection.sock)
        reply = http.client.HTTPResponse(received)  # type: ignore[arg-type]
        reply.begin()
        if reply.status != http.HTTPStatus.OK:
            raise EdgemoeError(f"A server answered with status {reply.status}: {reply.read()[:300]!r}.")
        arrived_s, written = [], 0
        for line in reply:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[len(b"data: ") :])
            if any(choice.get("text") for choice in event.get("choices", ())):
                arrived_s.append(received.at_s)
            written = (event.get("usage") or {}).get("completion_tokens", written)
        return Answer(asked_s, arrived_s, written)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Read what the page's live picture is made of, as fast as the server sends it. Raises EdgemoeError."""
        with contextlib.closing(http.client.HTTPConnection(HOST, self.port, timeout=ANSWER_SECONDS)) as connection:
            connection.request("GET", "/edgemoe/live")
            reply = connection.getresponse()
            if reply.status != http.HTTPStatus.OK:
                raise EdgemoeError(f"The server answered with status {reply.status}: {reply.read()[:300]!r}.")
            reader = threading.Thread(target=_discard, args=(connection.sock,), daemon=True)
            reader.start()
            yield
            connection.sock.shutdown(socket.SHUT_RDWR)
            reader.join()

    def close(self) -> None:
        """End the process, and wait for its end."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def __enter__(self) -> HttpServer:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.close()


def _discard(connection: socket.socket) -> None:
    """Take what comes through a socket until that is closed."""
    while connection.recv(1 << 16):
        pass
