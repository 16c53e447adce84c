"""Streams that outlive their connection: a page that is loaded anew takes up its answer where it had come to.

A client names its stream in `KEEP_HEADER`. The latest `MOST_BYTES` of it stay in RAM, and the answer goes on for
`ALONE_SECONDS` while nobody reads it. Other streams end with their connection.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress

from edgemoe.server.refusals import RefusalError

KEEP_HEADER = "x-edgemoe-stream"
NAME = re.compile(r"[A-Za-z0-9-]{16,64}")
ALONE_SECONDS = 60.0
ENDED_SECONDS = 300.0
"""How long a stream is kept after its end."""
MOST_STREAMS = 32
MOST_BYTES = 1 << 20


class _Kept:
    """One stream: the events that it still has, and the task that takes them from their source."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        self.first = 0
        """The number of the first event that it still has."""
        self.parts: deque[bytes] = deque()
        self.error: Exception | None = None
        self.readers = 0
        self.changed = asyncio.Event()
        self.left_s = time.monotonic()
        """When the last reader left, or the stream ended."""
        self._bytes = 0
        self.task = asyncio.ensure_future(self._take(events))

    async def _take(self, events: AsyncGenerator[bytes, None]) -> None:
        try:
            async for part in events:
                self.parts.append(part)
                self._bytes += len(part)
                while self._bytes > MOST_BYTES:
                    self._bytes -= len(self.parts.popleft())
                    self.first += 1
                self._tell()
        except Exception as error:
            self.error = error
        finally:
            await events.aclose()
            self.left_s = time.monotonic()
            self._tell()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Whether nobody needs it any more."""
        alone_s = ENDED_SECONDS if self.task.done() else ALONE_SECONDS
        return self.readers == 0 and time.monotonic() - self.left_s > alone_s

    async def read(self, number: int) -> AsyncGenerator[bytes, None]:
        """The events from a number on. Raises the error with which the stream ends."""
        self.readers += 1
        try:
            while True:
                changed = self.changed
                while number < self.first + len(self.parts):
                    if number < self.first:
                        raise RefusalError("the stream goes on further than what is kept of it.", status=410)
                    number += 1
                    yield self.parts[number - 1 - self.first]
                    changed = self.changed
                if self.task.done() or self.error is not None:
                    break
                await changed.wait()
            if self.error is not None:
                raise self.error
        finally:
            self.readers -= 1
            self.left_s = time.monotonic()


class KeptStreams:
    """All streams that are kept. Its methods are called on the thread of the event loop."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}
        self._sweeping: asyncio.Future[None] | None = None

    def keep(self, name: str, events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """Keep a stream by a name that its client made up; returns its events. Raises RefusalError."""
        if not NAME.fullmatch(name) or name in self._kept:
            raise RefusalError(f"{KEEP_HEADER}: expected a new name of 16 to 64 letters and digits.", param=KEEP_HEADER)
        self._drop_old()
        if len(self._kept) >= MOST_STREAMS and not self._drop_ended():
            raise RefusalError(f"{MOST_STREAMS} streams are kept already.", "Ask again later.", 429, retry_s=10)
        self._kept[name] = kept = _Kept(events)
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.ensure_future(self._sweep())
        return kept.read(0)

    def resume(self, name: str, number: int) -> AsyncGenerator[bytes, None]:
        """The events of a kept stream from a number on. Raises RefusalError where it is not kept."""
        kept = self._kept.get(name)
        if kept is None:
            raise RefusalError("there is no such stream any more.", "Ask for the rest of the answer.", 404)
        return kept.read(number)

    async def end(self, name: str) -> bool:
        """End a stream, and with it the work for it; returns whether there was one."""
        kept = self._kept.pop(name, None)
        if kept is None:
            return False
        kept.task.cancel()
        with suppress(asyncio.CancelledError):
            await kept.task
        return True

    def _drop_old(self) -> None:
        for name, kept in list(self._kept.items()):
            if kept.is_over:
                del self._kept[name]
                kept.task.cancel()

    def _drop_ended(self) -> bool:
        """Forget the oldest stream that has ended and is not being read; returns whether there was one."""
        ended = next((name for name, kept in self._kept.items() if kept.task.done() and not kept.readers), None)
        if ended is not None:
            del self._kept[ended]
        return ended is not None

    async def _sweep(self) -> None:
        while self._kept:
            await asyncio.sleep(1)
            self._drop_old()
