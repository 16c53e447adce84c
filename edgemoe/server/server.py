"""The server as a whole: the engine thread, the event loop, and their beginning and end."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgemoe.errors import UsageError
from edgemoe.server.app import make_app
from edgemoe.server.engine_thread import EngineThread
from edgemoe.server.service import Service
from edgemoe.server.settings import ServerSettings, server_url
from edgemoe.session.model import Model

GRACE_SECONDS = 3
"""The time in which connections may end by themselves when the server is stopped."""
HEAD_LIMIT_BYTES = 64 << 10
KEEP_ALIVE_SECONDS = 75


class PatientProtocol(H11Protocol):
    """HTTP/1.1 for one connection, which is closed where the head of its first request does not arrive in time."""

    head_seconds = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.head_seconds, self._head_is_late)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None:
            self._head_timer.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.cancel()
        super().connection_lost(exc)

    def _head_is_late(self) -> None:
        self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()


class _Loop(uvicorn.Server):
    """The event loop, which ends all answers before it waits for connections to close."""

    def __init__(self, config: uvicorn.Config, before_end: Callable[[], None]) -> None:
        super().__init__(config)
        self._before_end = before_end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._before_end()
        await super().shutdown(sockets)


class Server:
    """A server of one model. Use it in a `with` to have it in the background, or `run` it."""

    def __init__(self, load: Callable[[], Model], settings: ServerSettings) -> None:
        """`load` opens the model, on the engine thread. Raises UsageError where the port cannot be used."""
        self.settings = settings
        first, *others = settings.hosts
        self._sockets = [_listen(first, settings.port)]
        self._sockets += [_listen(host, self.port) for host in others]
        self.engine = EngineThread(load, settings.queue, self._model_changed)
        self.service = Service(self.engine, settings)
        self.on_ready: Callable[[Model], None] | None = None
        """Called on the engine thread once the model is open."""
        self._settled = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="server", daemon=True)
        self._loop = _Loop(self._config(), self.engine.stop)

    @property
    def port(self) -> int:
        return int(self._sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """The first address, without a path."""
        return server_url(self.settings.hosts[0], self.port)

    def run(self) -> None:
        """Serve until a signal or `stop` ends it; raises the error for which the model could not be opened."""
        self.engine.start()
        self._serve()
        if self.engine.error is not None:
            raise self.engine.error

    def start(self) -> Server:
        """Serve in the background; returns once the model is open, or raises the error for which it is not."""
        self.engine.start()
        self._thread.start()
        self._settled.wait()
        if self.engine.error is not None:
            self._thread.join()
            raise self.engine.error
        return self

    def stop(self) -> None:
        """End all answers, and close connections and the model; may be called from any thread, and again."""
        self._loop.should_exit = True

    def wait(self) -> None:
        """Wait for the end of a server in the background."""
        self._thread.join()

    def close(self) -> None:
        """Stop a server in the background, and wait for its end."""
        self.stop()
        if self._thread.ident is not None:
            self.wait()

    def __enter__(self) -> Server:
        return self if self._thread.ident is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self) -> None:
        try:
            self._loop.run(self._sockets)
        finally:
            self.engine.stop()
            self.engine.join(GRACE_SECONDS)  # the opening of a model cannot be interrupted
            self.service.close()
            for one in self._sockets:
                one.close()

    def _model_changed(self) -> None:
        model = self.engine.model
        if self.engine.error is not None:
            self.stop()
        elif model is not None and self.on_ready is not None:
            self.on_ready(model)
        self._settled.set()

    def _config(self) -> uvicorn.Config:
        PatientProtocol.head_seconds = self.settings.body_seconds
        settings: dict[str, Any] = {
            "http": PatientProtocol,
            "ws": "none",
            "lifespan": "off",
            "log_config": None,
            "log_level": "error",
            "access_log": False,
            "server_header": False,
            "timeout_keep_alive": KEEP_ALIVE_SECONDS,
            "timeout_graceful_shutdown": GRACE_SECONDS,
            "h11_max_incomplete_event_size": HEAD_LIMIT_BYTES,
        }
        return uvicorn.Config(make_app(self.service), **settings)


def _listen(host: str, port: int) -> socket.socket:
    """A socket at an address. Raises UsageError where it cannot be used."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, number, _, address = found[0]
        made = socket.socket(family, kind, number)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(1024)
    except OSError as error:
        raise UsageError(
            f"`port={port}`: the server cannot listen at {host}, port {port}: {error.strerror or error}.",
            "Choose another port (0 takes a free one), or stop the program that uses it.",
        ) from None
    return made
