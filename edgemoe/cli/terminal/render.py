"""All drawing on the terminal: the only module that imports rich."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, ConsoleRenderable, Group
from rich.live import Live
from rich.markdown import Markdown
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.style import Style
from rich.table import Table
from rich.text import Text

from edgemoe.cli.terminal.heatmap import HeatMap
from edgemoe.cli.terminal.text import printable

REFRESH_SECONDS = 0.08
SHADES = " .:-=+*#%@"

_LIST_ITEM = re.compile(r"\s*([-*+]|\d{1,9}[.)])\s")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})", re.MULTILINE)


class Terminal:
    """A screen for a person: markdown as it streams, quiet notes, tables, maps."""

    def __init__(self) -> None:
        # without emoji and markup codes, so that the model's text is shown unchanged
        self.console = Console(highlight=False, emoji=False, markup=False)

    def note(self, text: str) -> None:
        """Print a quiet line."""
        self.console.print(printable(text), style="dim")

    def remark(self, text: str) -> None:
        """Print a quiet line, like `note`: a person sees both."""
        self.note(text)

    def error(self, text: str) -> None:
        """Print an error as one paragraph."""
        self.console.print(Text("error: ", style="bold red").append(printable(text), style="default"))

    def text(self, text: str) -> None:
        """Print text unchanged."""
        self.console.print(printable(text), soft_wrap=True)

    def table(self, rows: Sequence[tuple[str, str]], title: str | None = None) -> None:
        """Print names and values."""
        table = Table(box=None, show_header=False, pad_edge=False, title=title, title_justify="left")
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for row in rows:
            table.add_row(*map(printable, row))
        self.console.print(table)

    def heat_map(self, heat_map: HeatMap) -> None:
        """Print the map of the last answer permanently."""
        self.console.print(draw_heat_map(heat_map, self._coloured))

    def stream(self, pieces: Iterable[str], current_map: Callable[[int, int], HeatMap | None] | None = None) -> None:
        """Show an answer as it is generated, as markdown, with the router's map (given rows and columns) below it."""
        view = MarkdownStream(self.console)
        next_refresh = 0.0
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            live.update(Text("...", style="dim"), refresh=True)
            for piece in pieces:
                view.feed(printable(piece))
                began = time.monotonic()
                if began >= next_refresh:
                    live.update(self._growing(view, current_map), refresh=True)
                    # drawing a long block takes long: limit it to a tenth of the time
                    next_refresh = max(began + REFRESH_SECONDS, began + 10 * (time.monotonic() - began))
            live.update(Text(""), refresh=True)
        view.finish()

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Show that something takes a while."""
        with self.console.status(text, spinner="dots"):
            yield

    @property
    def map_size(self) -> tuple[int, int]:
        """Rows and columns that a map of experts may occupy."""
        lines, width = max(4, self.console.height // 2 - 3), max(8, self.console.width - 4)
        return (2 * lines, width) if self._coloured else (lines, width // 2)

    @property
    def _coloured(self) -> bool:
        return self.console.color_system is not None and not self.console.no_color

    def _growing(
        self, view: MarkdownStream, current_map: Callable[[int, int], HeatMap | None] | None
    ) -> ConsoleRenderable:
        heat_map = current_map(*self.map_size) if current_map else None
        below = draw_heat_map(heat_map, self._coloured) if heat_map else Text("", end="")
        lines_below = len(below.plain.splitlines()) + 2 if heat_map else 1
        return Group(view.tail(max(3, self.console.height - lines_below - 1)), below)


class MarkdownStream:
    """Markdown that grows: finished blocks are printed permanently, the last block is redrawn as it grows."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open = ""
        self._first = True

    def feed(self, piece: str) -> None:
        """Take a piece of text; prints the blocks that it completes."""
        self._open += piece
        while "\n" in piece and (done := finished_length(self._open)):
            self._print(self._open[:done])
            self._open = self._open[done:]

    def tail(self, most_lines: int) -> ConsoleRenderable:
        """The last lines of the block that is still growing."""
        if not self._open.strip():
            return Text("")
        lines = self._console.render_lines(Markdown(self._open, code_theme="ansi_dark"), pad=False)
        shown = Text() if self._first else Text("\n")
        for line in lines[-most_lines:]:
            for segment in line:
                shown.append(segment.text, segment.style)
            shown.append("\n")
        shown.rstrip()
        return shown

    def finish(self) -> None:
        """Print the rest."""
        self._print(self._open)
        self._open = ""

    def _print(self, text: str) -> None:
        if not text.strip():
            return
        if not self._first:
            self._console.print()
        self._first = False
        self._console.print(Markdown(text, code_theme="ansi_dark"))


def finished_length(text: str) -> int:
    """Characters of the first markdown block of `text` if no later text can change it, else 0.

    Blocks end at an empty line outside of fenced code. A list continues after an empty line if the next line belongs to
    it, so that its end is only known there.
    """
    place, fence, in_list = 0, "", False
    for line in text.splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        stripped, opening = line.strip(), _FENCE.match(line)
        indented, is_item = line.startswith((" ", "\t")), _LIST_ITEM.match(line) is not None
        if fence:
            if stripped.startswith(fence) and not stripped.strip(fence[0]):
                fence = ""
        elif stripped and in_list and not is_item and not indented and _blank_before(text, place):
            return place
        elif opening:
            fence = opening[1]
        elif stripped:
            in_list = in_list or is_item
        elif not in_list and text[:place].strip():
            return place + len(line)
        place += len(line)
    return 0


def _blank_before(text: str, place: int) -> bool:
    return text[:place].endswith("\n\n")


def draw_heat_map(heat_map: HeatMap, coloured: bool) -> Text:
    """Draw layers down, experts across. In colour two layers share a line; without, shades, and `|` for memory."""
    rows, columns = heat_map.heat.shape
    text = Text()
    if coloured:
        wide = 2 if columns <= 32 else 1
        for row in range(0, rows, 2):
            for column in range(columns):
                upper = _colour(heat_map.heat[row, column], heat_map.resident[row, column])
                lower = (
                    _colour(heat_map.heat[row + 1, column], heat_map.resident[row + 1, column])
                    if row + 1 < rows
                    else None
                )
                text.append("▀" * wide, Style(color=upper, bgcolor=lower))
            text.append("\n")
        meaning = "brighter: used more; orange: in memory, blue: on disk"
    else:
        for row in range(rows):
            for column in range(columns):
                shade = SHADES[round(heat_map.heat[row, column] * (len(SHADES) - 1))]
                text.append(shade + ("|" if heat_map.resident[row, column] >= 0.5 else " "))
            text.append("\n")
        meaning = f"'{SHADES.strip()}': least to most used; '|': in memory"
    text.append(f"{heat_map.layers} layers down, {heat_map.experts} experts across; {meaning}", style="dim")
    return text


def _colour(heat: float, resident: float) -> str:
    """The colour of a cell: dark to bright with the heat, blue on disk to orange in memory."""
    brightness = 0.12 + 0.88 * float(heat) ** 0.7
    disk, memory = (70, 130, 255), (255, 160, 40)
    mixed = (round((d + (m - d) * float(resident)) * brightness) for d, m in zip(disk, memory, strict=True))
    return "#{:02x}{:02x}{:02x}".format(*mixed)


class ProgressBar:
    """A bar on stderr with a text beside it; shows nothing if stderr is not a terminal. Use it in a `with`.

    The bar moves by itself, unless `still`: then it is drawn only on updates, and takes no time in between.
    """

    def __init__(self, title: str, still: bool = False) -> None:
        self._still = still
        console = Console(stderr=True, highlight=False, emoji=False, markup=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[beside]}"),
            console=console,
            auto_refresh=not still,
            disable=not console.is_terminal,
        )
        self._task: TaskID = self._progress.add_task(title, total=None, beside="")

    def __enter__(self) -> ProgressBar:
        if not self._progress.disable:
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._progress.disable:  # up to version 14.2 rich prints an empty line at the end of a hidden bar
            self._progress.stop()

    def note(self, text: str) -> None:
        """Print a paragraph above the bar, on stderr, whether or not stderr is a terminal."""
        self._progress.console.print(printable(text), soft_wrap=True)

    def update(self, title: str, done: int, total: int | None, beside: str) -> None:
        """Draw `done` of `total` (None: unknown) between a title and a text."""
        self._progress.update(
            self._task, refresh=self._still, description=title, completed=done, total=total, beside=beside
        )
