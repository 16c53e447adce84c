"""A conversation that is ended from outside (SIGTERM, a closed terminal) is kept, and the next one says where."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgemoe.cli.interrupts import TERMINATION
from edgemoe.errors import EdgemoeError
from edgemoe.session.chat import ChatSession

CUT_OFF_NAME = "cut_off_chat.json"
KEPT_NAME = "kept_chat.json"
"""The cut-off one after it was told of."""


def state_folder() -> Path:
    """Where what outlives a run lies. Raises OSError where it cannot be made."""
    import platformdirs

    folder = Path(platformdirs.user_state_dir("edgemoe"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


@contextmanager
def kept_if_ended(session: ChatSession) -> Iterator[None]:
    """Within it a signal that ends the process leaves the conversation as a file, as far as it went."""

    def keep() -> None:
        if session.messages:
            with contextlib.suppress(OSError, EdgemoeError):
                session.save(state_folder() / CUT_OFF_NAME)

    TERMINATION.last_words = keep
    try:
        yield
    finally:
        TERMINATION.last_words = None
        if TERMINATION.code is not None:
            keep()


def take_kept() -> Path | None:
    """The file of a conversation that was cut off, told once; None where there is none."""
    try:
        folder = state_folder()
        return (folder / CUT_OFF_NAME).replace(folder / KEPT_NAME)
    except OSError:
        return None
