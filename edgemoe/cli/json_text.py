"""JSON as every `--json` option writes it: the same ASCII bytes on every stdout, whatever its encoding."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol


class Report(Protocol):
    """The result of a verb, which can be written as JSON."""

    def to_json(self) -> dict[str, Any]:
        """The whole result as plain JSON."""


def json_text(data: Any, indent: int | None = 2) -> str:
    """One JSON value as text without a last newline.

    Characters beyond ASCII are escaped, so that any encoding can carry them. Python keeps the bytes of a path that is
    not UTF-8, or that it read in an ASCII locale, in surrogates (PEP 383): bytes that are valid UTF-8 become their
    characters, all others U+FFFD. JSON has no NaN and no infinity (RFC 8259): they become null.
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
