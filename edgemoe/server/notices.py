"""Notices from the engine thread to the event loop: one wake-up for all that a step has brought, as the next begins.

The two threads share one interpreter lock. A loop that is woken between two steps takes the lock from the engine thread
wherever NumPy gives it up, and the next step waits for it; while a step is computed in C nobody else needs the lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

Notice = Callable[[], None]


class Notices:
    """Functions that the event loop is to call. Its methods are called on the engine thread."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.AbstractEventLoop, list[Notice]] = {}

    def add(self, loop: asyncio.AbstractEventLoop, notice: Notice) -> None:
        """Let a loop call a function, at the next `send`."""
        self._waiting.setdefault(loop, []).append(notice)

    def send(self) -> None:
        """Wake the loops for which there are notices; called before anything that may take long."""
        if self._waiting:
            waiting, self._waiting = self._waiting, {}
            for loop, notices in waiting.items():
                with suppress(RuntimeError):  # the loop is closed: nobody hears it any more
                    loop.call_soon_threadsafe(_call, notices)


def _call(notices: Iterable[Notice]) -> None:
    for notice in notices:
        notice()
