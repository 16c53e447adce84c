"""The `edgemoe` command from its first moment, in which little is imported: Ctrl-C ends it quietly at any time."""

from __future__ import annotations

import os
import signal
import sys

from edgemoe.errors import INTERRUPTED

TYPE_CHECKING = False  # that of typing, whose import takes too long here
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


def main() -> None:
    """The entry point of the `edgemoe` command, and of `python -m edgemoe`.

    While it imports, and when all is done, nothing can be torn: Ctrl-C ends the process at once. Between these it
    raises KeyboardInterrupt, as ever.
    """
    _on_interrupt(_leave)
    try:
        from edgemoe.cli.starting import collection_paused

        with collection_paused():
            from edgemoe.cli.main import main as command

        _on_interrupt(signal.default_int_handler)
        command()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    finally:
        _on_interrupt(_leave)


def _on_interrupt(handler: Callable[[int, FrameType | None], object]) -> None:
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _leave):  # else the caller has it ignored
        signal.signal(signal.SIGINT, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
