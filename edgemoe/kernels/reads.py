"""The request that a reader of expert records takes, the size of its pieces, and texts of errors."""

from __future__ import annotations

from typing import NamedTuple

from edgemoe.kernels.landing import Parts, Places

NOT_AS_WRITTEN = (
    "what was read is not what was written: its checksum differs.",
    "Is the store being replaced, or the disk failing? edgemoe verify lists what is damaged; copy the store again.",
)
"""Message and hint of the error; the caller adds where the damage is."""

CHECK_THE_FILE = "Check the disk, and a store with edgemoe verify; download a GGUF file again."
MAKE_ANEW = "The file was cut short: convert the store again, or download the GGUF file again."
"""Ways out of reads that fail or end early, of a store's file or a GGUF file."""
NOT_FINITE = (
    "a weight or scale in it is infinite or not a number.",
    "Was the file damaged, or made by a faulty program? Download it again, or take another one.",
)
CHANGED_FILE = (
    "its file was changed while it was open.",
    "Close the model, and open it again when nothing writes to the file.",
)
BAD_RECORD = (
    "its matrices contradict themselves: their panels are not as long as their classes say, or a level is not finite.",
    "The store was altered or is incomplete: copy it again, or convert the checkpoint again.",
)
"""Messages and hints of records that lie in parts, or whose matrices say themselves how long they are."""

PIECE_BYTES = 1 << 20
"""Reader threads split a record into pieces of this size, a multiple of the alignment of direct I/O."""


class RecordRead(NamedTuple):
    """The bytes of a record in an open file, and the address in memory where they go.

    Or, with `parts`, the slot in which they land, each from its place; `length` is the sum of their bytes.
    """

    descriptor: int
    offset: int
    length: int
    address: int
    crc32c: int | None = None
    """Expected CRC-32C of the bytes, which the reader checks; None: not known, not checked."""
    parts: Parts | None = None
    places: Places | None = None
