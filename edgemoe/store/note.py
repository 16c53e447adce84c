"""A note about a store: a small file in the user's cache, for the store's next start to read.

There is one file for each store and kind of note, named by the digest of the store's manifest. A note is only a hint:
it affects how fast an answer comes, or what a person is told of it, never its tokens. A missing, damaged, foreign or
huge file is ignored, and where one cannot be written none is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 20
MOST_NOTES = 16
"""The most files of a kind that are kept; the oldest are deleted."""


class StoreNote:
    """The note of one kind about one store. No method raises."""

    def __init__(self, folder: Path, digest: str, suffix: str, kind: str, version: int) -> None:
        """`digest` names the store, `suffix` ends the file's name. A note of another kind or version counts as none."""
        self.path = folder / f"{digest[:32]}{suffix}"
        self._suffix = suffix
        self._marks = {kind: version, "store": digest}

    def read(self) -> dict[str, Any]:
        """The data that was written, unchecked; empty without a note of this store."""
        try:
            with self.path.open("rb") as file:
                text = file.read(MOST_BYTES + 1)
            data = json.loads(text) if len(text) <= MOST_BYTES else None
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(data, dict) or any(data.get(mark) != value for mark, value in self._marks.items()):
            return {}
        return data

    def write(self, data: Mapping[str, Any]) -> None:
        """Replace the note; the file is written whole or not at all."""
        text = json.dumps({**self._marks, **data}, separators=(",", ":")).encode()
        if len(text) > MOST_BYTES:
            return
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with contextlib.suppress(OSError, ValueError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(text)
                temporary.replace(self.path)
            finally:
                temporary.unlink(missing_ok=True)
            self._keep_few()

    def _keep_few(self) -> None:
        notes = sorted(self.path.parent.glob(f"*{self._suffix}"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in notes[MOST_NOTES:]:
            path.unlink(missing_ok=True)
