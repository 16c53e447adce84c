"""A system that starts few threads, as where `ulimit -u` or the pids limit of a control group is reached."""

import threading

import pytest


def few_threads(monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    """Python starts so many threads from now on, and then raises what it raises where the system refuses one."""
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def begin(thread: threading.Thread) -> None:
        if len(started) >= left:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", begin)
