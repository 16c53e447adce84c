"""The errors that edgemoe shows to users.

Every error has three parts: what is wrong, what was expected and found, and the way out. The first two
make the `message`, the last is the `hint`. The command line prints both as one paragraph.
"""

from __future__ import annotations

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


class EdgemoeError(Exception):
    """An error that the user can understand and resolve.

    `message` says what is wrong, with what was expected and what was found; `hint` is the way out.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class UsageError(EdgemoeError):
    """An option or argument with an invalid value."""

    exit_code = 2


class PromptLengthError(UsageError):
    """A prompt that leaves no room for an answer in the context."""

    def __init__(self, tokens: int, context_length: int, found: str = "") -> None:
        """`found` says what has these tokens, where they are only counted in a part of the text."""
        super().__init__(
            f"the prompt does not fit: expected fewer than {context_length} tokens (the context), found {tokens}"
            f"{found}.",
            "Shorten it, or split it into parts.",
        )
        self.tokens = tokens
        self.context_length = context_length


class ConversationError(EdgemoeError):
    """A conversation that a model's chat template refuses, or with which it fails."""


class SourceError(EdgemoeError):
    """A checkpoint (folder, hub id or GGUF) that is missing, damaged or not supported."""


class StoreError(EdgemoeError):
    """A store that is missing, damaged, or of another version."""


class BudgetError(EdgemoeError):
    """A memory budget below what the model needs."""


class MachineError(EdgemoeError):
    """A machine without something that edgemoe needs to run, such as threads or information on a process."""


class TraceError(EdgemoeError):
    """A recorded trace that is missing, damaged, of another shape, or that cannot be written."""


class KernelError(EdgemoeError):
    """A kernel backend that is unavailable, or an operation that it cannot do."""


class ReadError(EdgemoeError):
    """Expert bytes that could not be read, or that differ from their checksum."""
