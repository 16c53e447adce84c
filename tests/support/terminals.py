"""A forked command in a pseudo-terminal, in the manner of `pexpect.spawn`."""

from __future__ import annotations

import time

from pexpect.fdpexpect import fdspawn

from tests.support.forks import Forked


class Terminal(fdspawn):
    """A person's side of the terminal; `pid` is the command's."""

    def __init__(self, forked: Forked, descriptor: int) -> None:
        super().__init__(descriptor, encoding="utf-8", timeout=60)
        self.pid = forked.pid
        self.delaybeforesend: float | None = None
        self._forked = forked

    def send(self, text: str) -> int:
        if self.delaybeforesend:
            time.sleep(self.delaybeforesend)
        return int(super().send(text))

    def kill(self, number: int) -> None:
        self._forked.send_signal(number)

    def wait(self) -> int:
        self.exitstatus = self._forked.wait()
        return self.exitstatus

    def hang_up(self) -> None:
        """Close the terminal, which its command sees."""
        super().close()

    def close(self) -> None:
        """End a command that still runs, and close the terminal."""
        self._forked.close()
        self.hang_up()
