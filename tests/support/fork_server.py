"""A Python that forks for each command, so that commands do not import again what all of them import.

`python -m tests.support.fork_server SOCKET IMPORTS` imports the modules named in IMPORTS once. Each request on the
socket, a length and a marshalled dictionary (`forks.py` sends it), begins a process. That runs a program as `python -c`
does, with arguments, environment, folder and standard streams of its own, and ends as every Python ends, but without
taking all modules apart, which copies the memory that it shares: 40 ms of 45. The server itself imports little, so that
a program can begin where hardly any module is loaded.
"""

from __future__ import annotations

import atexit
import gc
import marshal
import os
import select
import signal
import socket
import sys
import threading
from typing import Any

FIELDS = ("r", "w", "w")
"""Modes of the standard streams."""


def serve(control: socket.socket) -> dict[str, Any] | None:
    """Answer requests until the socket is closed; returns the request in the process that is to do it."""
    ended: dict[int, int] = {}
    woken, wakes = os.pipe()
    for descriptor in (woken, wakes):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)  # a signal without a handler wakes nobody
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            while ended:
                process, status = os.waitpid(-1, os.WNOHANG)
                if not process:
                    break
                tell = ended.pop(process)
                os.write(tell, str(os.waitstatus_to_exitcode(status)).encode())
                os.close(tell)
        if control not in ready:
            continue
        size, descriptors, _, _ = socket.recv_fds(control, 4, 4, socket.MSG_WAITALL)
        if not size:
            return None
        request = marshal.loads(control.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
        tell, *streams = descriptors
        process = os.fork()
        if not process:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in (woken, wakes, tell, *ended.values()):
                os.close(descriptor)
            control.close()
            _take_streams(streams, request["streams"], request["terminal"])
            return request
        ended[process] = tell
        for descriptor in streams:
            os.close(descriptor)
        control.sendall(process.to_bytes(4, "big"))


def _take_streams(descriptors: list[int], numbers: list[int], terminal: bool) -> None:
    """Make the descriptors the standard streams of these numbers, anew as Python does; others are closed."""
    if terminal:
        os.setsid()
    for number, (name, mode) in enumerate(zip(("stdin", "stdout", "stderr"), FIELDS, strict=True)):
        stream = getattr(sys, name)
        if number in numbers:
            os.dup2(descriptors[numbers.index(number)], number)
            errors = "backslashreplace" if name == "stderr" else stream.errors
            fresh = os.fdopen(number, mode, encoding=stream.encoding, errors=errors, closefd=False)
            if name == "stderr":
                fresh.reconfigure(line_buffering=True)
            setattr(sys, name, fresh)
        else:
            os.close(number)
            setattr(sys, name, None)
        setattr(sys, f"__{name}__", getattr(sys, name))
    for descriptor in descriptors:
        os.close(descriptor)
    if terminal:
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def end(code: object) -> None:
    """End this process as Python does where a code is a number and the streams take what is left; else return."""
    threading._shutdown()  # waits for threads, as Python does first
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError):
                return
    if code is None or isinstance(code, int):
        os._exit((code or 0) & 0xFF)


if __name__ == "__main__":
    gc.disable()
    for module in sys.argv[2:]:
        __import__(module)
    gc.freeze()  # no child then looks for garbage in what all share: that copies the memory, for a quarter of a second
    gc.enable()
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    if request is not None:
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        for number in request["ignored"]:
            signal.signal(number, signal.SIG_IGN)
        sys.argv = ["-c", *map(os.fsdecode, request["arguments"])]
        try:
            exec(compile(request["program"], "<string>", "exec"), {"__name__": "__main__"})
        except SystemExit as ended:
            end(ended.code)
            raise
        end(0)
