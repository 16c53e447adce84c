"""Texts that a person gives as a file to measure a model on."""

from __future__ import annotations

import os
from pathlib import Path

from edgemoe.cli.options import utf8
from edgemoe.errors import UsageError

TEXT_LIMIT_BYTES = 16 << 20


def read_text_file(file: Path, flag: str = "--text") -> str:
    """The text in a file. Raises UsageError where it is empty, too long, binary or not UTF-8; OSError."""
    path = Path(os.path.expanduser(file))  # noqa: PTH111 (it leaves an unknown ~user as it is)
    with path.open("rb") as opened:
        data = opened.read(TEXT_LIMIT_BYTES + 1)
    if len(data) > TEXT_LIMIT_BYTES:
        raise UsageError(f"{flag}: {file}: expected at most {TEXT_LIMIT_BYTES >> 20} MiB.", "Give a shorter text.")
    if (at := data.find(0)) >= 0:
        raise UsageError(
            f"{flag}: {file}: expected a text, found a binary file (a byte 0 at {at}).", "Give a file of plain text."
        )
    text = utf8(data, f"{flag}: {file}")
    if not text.strip():
        raise UsageError(f"{flag}: {file}: expected a text, found an empty file.", "Give one with some pages.")
    return text
