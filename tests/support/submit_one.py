"""One read of a reader, which takes several at a time."""

from __future__ import annotations

from edgemoe.io.reads import RecordReader
from edgemoe.kernels.reads import RecordRead


def submit_one(
    reader: RecordReader,
    descriptor: int,
    offset: int,
    length: int,
    address: int,
    demand: bool,
    crc32c: int | None = None,
) -> int:
    """Queue it; returns its ticket."""
    [ticket] = reader.submit([RecordRead(descriptor, offset, length, address, crc32c)], demand)
    return ticket
