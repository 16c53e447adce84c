"""What a conversation is shown on: a person's terminal (`render.Terminal`), or plain streams."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from edgemoe.cli.terminal.text import printable

if TYPE_CHECKING:
    from edgemoe.cli.terminal.heatmap import HeatMap

CurrentMap = Callable[[int, int], "HeatMap | None"]
"""Gives the router's map for at most so many rows and columns."""


class Screen(Protocol):
    """Where answers and all that surrounds them go."""

    @property
    def map_size(self) -> tuple[int, int]:
        """Rows and columns that the router's map may take."""

    def note(self, text: str) -> None:
        """A quiet remark."""

    def remark(self, text: str) -> None:
        """A remark that the reader of a pipe needs too."""

    def error(self, text: str) -> None:
        """One paragraph that something went wrong."""

    def text(self, text: str) -> None:
        """Text that was asked for, as it is."""

    def table(self, rows: Sequence[tuple[str, str]], title: str | None = None) -> None:
        """Names and values."""

    def heat_map(self, heat_map: HeatMap) -> None:
        """The router's map."""

    def stream(self, pieces: Iterable[str], current_map: CurrentMap | None = None) -> None:
        """An answer, as it comes."""

    def waiting(self, text: str) -> AbstractContextManager[None]:
        """Show that something takes a while."""


class Plain:
    """Plain text: answers go to stdout, each ended by a newline; remarks and errors to stderr, notes are left out."""

    map_size = (64, 128)

    def note(self, text: str) -> None:
        """Nothing: who reads a pipe wants the answers."""

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
    """The screen that stdout is."""
    if not sys.stdout.isatty():
        return Plain()
    from edgemoe.cli.terminal.render import Terminal

    return Terminal()
