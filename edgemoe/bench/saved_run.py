"""Runs: the distributions of a model over a text, kept in a file as the reference of later evaluations.

A run is, in little-endian bytes:

    MAGIC, the length of the header in 8 bytes, the header (JSON: `RunHeader`)
    the ids of the text, int32, and the CRC-32 of all before (4 bytes)
    for each window a block: a row for each scored position, and the CRC-32 of all of them (4 bytes)

A row is the logits of the whole vocabulary (float32, `V`): exactly the model's. With `top` it is the `top` likeliest
tokens (int32), their logits (float32), and three float64: the logarithm of the sum of all exponentials, the same of the
other tokens, and the logit of the token that follows. Every number is exact either way; what is lost with `top` is how
the others share what is left for them, so a divergence counts them as one token, and can only be smaller for it.

A run that was cut off has its first windows, and can be compared with over these.

Letters: `V` vocabulary.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgemoe.bench.windows import Window, cut_into_windows
from edgemoe.errors import StoreError, UsageError
from edgemoe.lab.divergence import Ids, Logits, ReferenceRow, Row
from edgemoe.session.text_ids import TextIds
from edgemoe.sizes import format_size

MAGIC = b"edgemoe run\n"
RUN_VERSION = 1
HEADER_LIMIT_BYTES = 16 << 20
CHECKSUM_BYTES = 4
TOTALS = np.dtype("<f8")
LOGITS = np.dtype("<f4")
IDS = np.dtype("<i4")


@dataclass(frozen=True)
class RunHeader:
    """All that a run says about itself."""

    edgemoe_run: int
    model: Mapping[str, Any]
    """The evaluated model, as `ModelFacts` writes it."""
    text: str
    """The text's name."""
    vocab_size: int
    head: Sequence[int]
    tokens: int
    context: int
    stride: int
    top: int | None
    pieces: Mapping[str, str]
    """Some tokens of the vocabulary by id, which tell tokenizers apart."""

    @property
    def row_bytes(self) -> int:
        if self.top is None:
            return self.vocab_size * LOGITS.itemsize
        return self.top * (IDS.itemsize + LOGITS.itemsize) + 3 * TOTALS.itemsize

    def windows(self) -> list[Window]:
        return cut_into_windows(self.tokens, len(self.head), self.context, self.stride)

    def block_bytes(self, window: Window) -> int:
        return window.scored * self.row_bytes + CHECKSUM_BYTES

    def file_bytes(self) -> int:
        """The size of a whole run."""
        return self._start + sum(map(self.block_bytes, self.windows()))

    @property
    def _start(self) -> int:
        return len(self.encoded()) + self.tokens * IDS.itemsize + CHECKSUM_BYTES

    def encoded(self) -> bytes:
        """The file's beginning, up to the ids."""
        text = json.dumps(asdict(self)).encode()
        return MAGIC + len(text).to_bytes(8, "little") + text


def check_room(header: RunHeader, folder: Path) -> None:
    """Raise UsageError where a folder's disk has too little room for a run."""
    free = shutil.disk_usage(folder).free
    if header.file_bytes() > free:
        raise UsageError(
            f"the distributions take {format_size(header.file_bytes())}, and {folder} has {format_size(free)} left.",
            "Score fewer tokens (`tokens`), or keep fewer of each position (such as `top=4096`).",
        )


class RunWriter:
    """Writes a run, row by row."""

    def __init__(self, file: io.BufferedRandom, header: RunHeader, ids: Ids) -> None:
        """Write what stands before the first window. Raises OSError."""
        self._file = file
        self._top = header.top
        self._scratch: Row = np.full(header.vocab_size, np.nan)
        self._checksum = 0
        begin = header.encoded() + ids.astype(IDS, copy=False).tobytes()
        file.write(begin + zlib.crc32(begin).to_bytes(CHECKSUM_BYTES, "little"))

    def add(self, logits: Logits, following: int) -> None:
        """Write the row of a position."""
        if self._top is None:
            self._write(logits.astype(LOGITS, copy=False).data)
            return
        row = ReferenceRow.keeping(logits, self._top, following, self._scratch)
        assert row.ids is not None
        self._write(row.ids.astype(IDS, copy=False).data)
        self._write(row.logits.astype(LOGITS, copy=False).data)
        self._write(np.array([row.total, row.rest, row.followed], TOTALS).data)

    def end_window(self) -> None:
        """End a window, whose rows have all been written."""
        self._file.write(self._checksum.to_bytes(CHECKSUM_BYTES, "little"))
        self._file.flush()
        self._checksum = 0

    def _write(self, data: memoryview) -> None:
        self._checksum = zlib.crc32(data, self._checksum)
        self._file.write(data)


class SavedRun:
    """A run that is open, whose rows are read one after another."""

    def __init__(self, file: io.BufferedReader | io.BufferedRandom, name: str) -> None:
        """Read what stands before the first window; `name` is the run's in errors. Raises StoreError, OSError."""
        self._file = file
        self._name = name
        size = os.fstat(file.fileno()).st_size
        file.seek(0)
        if file.read(len(MAGIC)) != MAGIC:
            raise StoreError(f"{name}: expected a run, found something else.", "Make one with `save`.")
        length = file.read(8)
        text = file.read(min(int.from_bytes(length, "little"), HEADER_LIMIT_BYTES))
        try:
            self.header = RunHeader(**json.loads(text))
            if self.header.edgemoe_run != RUN_VERSION:
                raise StoreError(
                    f"{name}: expected a run of version {RUN_VERSION}, found {self.header.edgemoe_run}.",
                    "It is of another version of edgemoe: evaluate its model again.",
                )
            data = file.read(self.header.tokens * IDS.itemsize)
            checksum = zlib.crc32(MAGIC + length + text + data)
            if file.read(CHECKSUM_BYTES) != checksum.to_bytes(CHECKSUM_BYTES, "little"):
                raise self._damaged()
            windows = self.header.windows()
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise self._damaged() from None
        ids = np.frombuffer(data, IDS)
        self.text = TextIds(ids.astype(np.int32), tuple(self.header.head))
        self._first_row = file.tell()
        left = size - self._first_row
        self.windows: list[Window] = []
        """The windows that the run has; fewer than its text's where it was cut off."""
        for window in windows:
            left -= self.header.block_bytes(window)
            if left < 0:
                break
            self.windows.append(window)
        self.complete = len(self.windows) == len(windows)
        if not self.windows:
            raise StoreError(f"{name}: the run was cut off in its first window.", "Evaluate its model again.")

    def rewind(self) -> None:
        """Go back to the first window."""
        self._file.seek(self._first_row)

    def rows(self, window: Window) -> Iterator[ReferenceRow]:
        """The rows of the next window, in order. Raises StoreError after the last if they were altered."""
        header = self.header
        row, checksum = bytearray(header.row_bytes), 0
        for _ in range(window.scored):
            if self._file.readinto(row) < len(row):
                raise self._damaged()
            checksum = zlib.crc32(row, checksum)
            yield _row(row, header.top)
        if self._file.read(CHECKSUM_BYTES) != checksum.to_bytes(CHECKSUM_BYTES, "little"):
            raise self._damaged()

    def _damaged(self) -> StoreError:
        return StoreError(
            f"{self._name}: the run is damaged: it is not what was written.", "Evaluate its model again with `save`."
        )


def _row(data: bytearray, top: int | None) -> ReferenceRow:
    if top is None:
        return ReferenceRow(np.frombuffer(data, LOGITS))
    ids = np.frombuffer(data, IDS, top)
    logits = np.frombuffer(data, LOGITS, top, ids.nbytes)
    total, rest, followed = np.frombuffer(data, TOTALS, 3, ids.nbytes + logits.nbytes).tolist()
    return ReferenceRow(logits, ids, total, rest, followed)


def is_run(path: Path) -> bool:
    """Whether a file is a run, by its first bytes."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False
