"""The input line: several lines, history across runs, completion of commands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from edgemoe.paths import state_folder


class TolerantHistory(FileHistory):
    """History in a file; if the file cannot be read or written, the history of this run alone."""

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        try:
            super().store_string(string)
        except OSError:
            return  # the history in memory still has it


class CommandCompleter(Completer):
    """Completes `/names` at the beginning of the input."""

    def __init__(self, commands: Mapping[str, str]) -> None:
        """`commands` maps names to descriptions."""
        self._commands = commands

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        typed = document.text_before_cursor
        if typed.startswith("/") and " " not in typed:
            for name, does in self._commands.items():
                if name.startswith(typed[1:]):
                    yield Completion(f"/{name}", -len(typed), display_meta=does)


def key_bindings() -> KeyBindings:
    """Enter sends; Alt-Enter, or Enter after a backslash, begins a new line. A paste never sends."""
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state and buffer.complete_state.current_completion:
            buffer.complete_state = None
        elif buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.newline()
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline()

    return bindings


def history() -> History:
    """The history of earlier runs, or an empty one if no folder can keep it."""
    folder = state_folder()
    if folder is None:
        return InMemoryHistory()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return InMemoryHistory()
    return TolerantHistory(str(folder / "chat_history"))


def continuation(prompt_width: int, line_number: int, wrap_count: int) -> FormattedText:
    """Prefix of further lines: a dot; empty for a line that was only wrapped by the screen."""
    return FormattedText([("class:dim", "  " if wrap_count else "· ")])


def prompt_reader(commands: Mapping[str, str]) -> Callable[[], str | None]:
    """Return a function that asks for one input; it returns None when the person ends with Ctrl-D.

    `commands`, names with their descriptions, are completed.
    """
    session: PromptSession[str] = PromptSession(
        history=history(),
        multiline=True,
        key_bindings=key_bindings(),
        completer=CommandCompleter(commands),
        complete_while_typing=True,
        reserve_space_for_menu=5,
        prompt_continuation=continuation,
    )

    def read() -> str | None:
        while True:
            try:
                return session.prompt(FormattedText([("bold", "> ")]))
            except KeyboardInterrupt:
                continue  # Ctrl-C clears the typed text
            except EOFError:
                return None

    return read
