"""Output of a conversation: to a person's terminal (`render.Terminal`), or to plain streams."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from edgemoe.cli.terminal.text import printable

if TYPE_CHECKING:
    from edgemoe.cli.terminal.heatmap import HeatMap

CurrentMap = Callable[[int, int], "HeatMap | None"]
"""Gives the router's map with at most the given rows and columns."""


class Screen(Protocol):
    """Destination of answers and of all output around them."""

    @property
    def map_size(self) -> tuple[int, int]:
        """Rows and columns that the router's map may occupy."""

    def note(self, text: str) -> None:
        """Show a quiet remark."""

    def remark(self, text: str) -> None:
        """Show a remark that the reader of a pipe needs too."""

    def error(self, text: str) -> None:
        """Show an error as one paragraph."""

    def text(self, text: str) -> None:
        """Show text that the user asked for, unchanged."""

    def table(self, rows: Sequence[tuple[str, str]], title: str | None = None) -> None:
        """Show names and values."""

    def heat_map(self, heat_map: HeatMap) -> None:
        """Show the router's map."""

    def stream(self, pieces: Iterable[str], current_map: CurrentMap | None = None) -> None:
        """Show an answer as it is generated."""

    def waiting(self, text: str) -> AbstractContextManager[None]:
        """Show that something takes a while."""


class Plain:
    """Plain text: answers go to stdout, each ended by a newline; remarks and errors to stderr; notes are dropped."""

    map_size = (64, 128)

    def note(self, text: str) -> None:
        """Drop the note: the reader of a pipe wants only the answers."""

    def remark(self, text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)

    def error(self, text: str) -> None:
        print(f"error: {printable(text)}", file=sys.stderr)

    def text(self, text: str) -> None:
        print(text, flush=True)

    def table(self, rows: Sequence[tuple[str, str]], title: str | None = None) -> None:
        if title is not None:
            print(f"{title}:", flush=True)
        for name, value in rows:
            print(f"{name}: {value}" if name else value, flush=True)

    def heat_map(self, heat_map: HeatMap) -> None:
        for row in heat_map.heat:
            print(" ".join(f"{value:.2f}" for value in row), flush=True)

    def stream(self, pieces: Iterable[str], current_map: CurrentMap | None = None) -> None:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
        print(flush=True)

    def waiting(self, text: str) -> AbstractContextManager[None]:
        return nullcontext()


def open_screen() -> Screen:
    """Open the screen that fits stdout: a terminal or plain streams."""
    if not sys.stdout.isatty():
        return Plain()
    from edgemoe.cli.terminal.render import Terminal

    return Terminal()
