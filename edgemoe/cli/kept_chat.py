"""Keeps a conversation that a signal ends (SIGTERM, a closed terminal); the next conversation says where it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgemoe.cli.interrupts import TERMINATION
from edgemoe.errors import EdgemoeError
from edgemoe.paths import state_folder
from edgemoe.session.chat import ChatSession

CUT_OFF_NAME = "cut_off_chat.json"
KEPT_NAME = "kept_chat.json"
"""New name of the kept file after a later conversation has shown it."""


@contextmanager
def kept_if_ended(session: ChatSession) -> Iterator[None]:
    """Within it a signal that ends the process saves the conversation to a file, as far as it went."""

    def keep() -> None:
        folder = state_folder()
        if session.messages and folder is not None:
            with contextlib.suppress(OSError, EdgemoeError):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                session.save(folder / CUT_OFF_NAME)

    TERMINATION.last_words = keep
    try:
        yield
    finally:
        TERMINATION.last_words = None
        if TERMINATION.code is not None:
            keep()


def take_kept() -> Path | None:
    """The file of a conversation that a signal ended, returned only once; None if there is no such file."""
    folder = state_folder()
    if folder is None:
        return None
    try:
        return (folder / CUT_OFF_NAME).replace(folder / KEPT_NAME)
    except OSError:
        return None
