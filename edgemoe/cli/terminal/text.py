"""Text that a terminal may be given."""

from __future__ import annotations

_UNPRINTABLE = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """Text for a terminal: control characters, with which a model could steer it, become U+FFFD."""
    return text.translate(_UNPRINTABLE)
