"""Signals: Ctrl-C while an answer is generated, and ends from outside (SIGTERM, a closed terminal).

Python handles a signal between two of its own steps. A read from a disk that hangs, or a long piece of a prompt on a
slow disk, is a single step of C, so a watching thread ends the process if Python has not handled the signal in time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from edgemoe.errors import INTERRUPTED

ENDS = (signal.SIGTERM, signal.SIGHUP)
GRACE_SECONDS = 5.0
"""Time allowed to close open files and engines, or to handle a Ctrl-C."""
PLAIN_TERMINAL = b"\x1b[?25h\x1b[?2004l\x1b[0m\r\n"
"""Bytes that restore a terminal: cursor on, no marks around pastes, plain text."""


class Terminated(SystemExit):
    """Raised on SIGTERM or SIGHUP. Context managers close on the way out; the process ends with 128 + the signal."""


class Termination:
    """Turns SIGTERM and SIGHUP into Terminated, unless the parent process has set them to be ignored.

    If that does not end the process in time, a watching thread restores the terminal and exits. The thread does the
    same if Ctrl-C is pressed twice and Python handles neither.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        """The exit code of the signal that came, None if none did."""
        self.last_words: Callable[[], None] | None = None
        """Called by the watching thread before it exits."""
        self._wakeup: tuple[int, int] | None = None
        self._terminal: list[Any] | None = None
        self._counts_interrupts = True
        self._unheard = 0
        self._heard = threading.Event()

    def watch(self) -> None:
        """Start watching; call once, in the main thread."""
        for number in ENDS:
            if signal.getsignal(number) == signal.SIG_DFL:  # not under nohup
                signal.signal(number, self._end)
        self._terminal = terminal_settings()
        read, write = os.pipe()
        os.set_blocking(write, False)
        self._wakeup = read, write
        self.rearm()
        with contextlib.suppress(RuntimeError):  # if the system starts no thread, a hanging call into C blocks signals
            threading.Thread(target=self._stand_by, daemon=True).start()

    def rearm(self) -> None:
        """Let signals wake the watching thread again: an input prompt has replaced the wake-up descriptor since."""
        if self._wakeup is not None:
            signal.set_wakeup_fd(self._wakeup[1], warn_on_full_buffer=False)

    def count_interrupts(self, on: bool) -> None:
        """Set whether a second Ctrl-C, with the first unhandled, ends the process: on unless other code sees it."""
        self._counts_interrupts = on
        self.heard()

    def heard(self) -> None:
        """Record that Python has handled a Ctrl-C."""
        self._unheard = 0
        self._heard.set()

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.code = 128 + number
        signal.signal(number, signal.SIG_DFL)  # the next one ends the process at once
        raise Terminated(self.code)

    def _stand_by(self) -> None:
        assert self._wakeup is not None
        while True:
            for number in os.read(self._wakeup[0], 64):
                if number in ENDS and signal.getsignal(number) != signal.SIG_IGN:
                    time.sleep(GRACE_SECONDS)
                    self._leave(128 + number)
                elif number == signal.SIGINT and self._counts_interrupts:
                    self._unheard += 1
                    if self._unheard == 1:
                        self._heard.clear()
                    elif not self._heard.wait(GRACE_SECONDS):
                        self._leave(INTERRUPTED)

    def _leave(self, code: int) -> None:
        try:
            if self.last_words is not None:
                self.last_words()
            restore_terminal(self._terminal)
        finally:
            os._exit(code)


TERMINATION = Termination()


def terminal_settings() -> list[Any] | None:
    """Settings of the terminal on stdin, None if stdin is not a terminal."""
    try:
        return termios.tcgetattr(sys.stdin.fileno())
    except (OSError, ValueError, termios.error):
        return None


def restore_terminal(settings: list[Any] | None) -> None:
    """Restore the terminal's settings, as far as the terminal still exists."""
    with contextlib.suppress(OSError, ValueError, termios.error):
        if settings is not None:
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, settings)
        if sys.stdout.isatty():
            os.write(sys.stdout.fileno(), PLAIN_TERMINAL)


@contextmanager
def on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Within it the first Ctrl-C calls `stop`, so that no computation is torn; a second raises KeyboardInterrupt."""

    def handle(number: int, frame: FrameType | None) -> None:
        TERMINATION.heard()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    before = signal.signal(signal.SIGINT, handle)
    TERMINATION.rearm()
    TERMINATION.count_interrupts(True)
    try:
        yield
    finally:
        TERMINATION.count_interrupts(False)
        signal.signal(signal.SIGINT, before)
