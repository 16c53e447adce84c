"""The request that a reader of expert records takes, and the error text for a checksum mismatch."""

from __future__ import annotations

from typing import NamedTuple

NOT_AS_WRITTEN = (
    "what was read is not what was written: its checksum differs.",
    "Is the store being replaced, or the disk failing? edgemoe verify lists what is damaged; copy the store again.",
)
"""Message and hint of the error; the caller adds where the damage is."""


class RecordRead(NamedTuple):
    """The bytes of a record in an open file, and the address in memory where they go."""

    descriptor: int
    offset: int
    length: int
    address: int
    crc32c: int | None = None
    """Expected CRC-32C of the bytes, which the reader checks; None: not known, not checked."""
