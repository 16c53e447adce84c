"""What a reader is asked for."""

from __future__ import annotations

from typing import NamedTuple

NOT_AS_WRITTEN = (
    "what was read is not what was written: its checksum differs.",
    "Is the store being replaced, or the disk failing? edgemoe verify tells what is damaged; copy the store again.",
)
"""The message and hint of an error that says where."""


class RecordRead(NamedTuple):
    """The bytes of a record in an open file, and the address in memory where they go."""

    descriptor: int
    offset: int
    length: int
    address: int
    crc32c: int | None = None
    """Of the bytes, where it is known, as is `sha256`; a reader checks the one that it can take quickly, if any."""
    sha256: str | None = None
