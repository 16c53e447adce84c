"""Text that is safe to write to a terminal."""

from __future__ import annotations

_UNPRINTABLE = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """Make text safe for a terminal: control characters, with which a model could control it, become U+FFFD."""
    return text.translate(_UNPRINTABLE)
