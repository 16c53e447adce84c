"""What a reader is asked for."""

from __future__ import annotations

from typing import NamedTuple


class RecordRead(NamedTuple):
    """The bytes of a record in an open file, and the address in memory where they go."""

    descriptor: int
    offset: int
    length: int
    address: int
    crc32c: int | None = None
    """Of the bytes, where it is known, as is `sha256`; a reader checks the one that it can take quickly, if any."""
    sha256: str | None = None
