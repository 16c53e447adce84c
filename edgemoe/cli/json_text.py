"""JSON as every `--json` writes it: the same ASCII bytes on every stdout, whatever its encoding."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol


class Report(Protocol):
    """What a verb found out."""

    def to_json(self) -> dict[str, Any]:
        """All of it, as plain JSON."""


def json_text(data: Any, indent: int | None = 2) -> str:
    """One JSON value as text without a last newline.

    Letters beyond ASCII are escaped, so that no stream can spoil them. A path that is not UTF-8, or that Python read in
    a locale without letters, has its bytes in surrogates (PEP 383): they become the letters that they are in UTF-8, and
    U+FFFD where they are none. JSON has no NaN and no infinity (RFC 8259): they become null.
    """
    return json.dumps(_plain(data), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return _letters(value)
    if isinstance(value, dict):
        return {_letters(key) if isinstance(key, str) else key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _letters(text: str) -> str:
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:  # other surrogates: halves of pairs
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def write_json(report: Report, path: Path) -> None:
    """Write all figures of a report to a file. Raises OSError."""
    path.write_text(json_text(report.to_json()) + "\n", encoding="utf-8")
