"""The weights of a GGUF file that every token needs, as they come into memory when the file is opened as it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from edgemoe.conversion.encoding import encode
from edgemoe.conversion.gguf.source import FilePart, GgufSource
from edgemoe.conversion.plan import Piece
from edgemoe.conversion.source import read_slice
from edgemoe.errors import ReadError, SourceError
from edgemoe.experts.slots import READ_TIMEOUT_SECONDS
from edgemoe.io.direct import allocate_pages
from edgemoe.io.reads import ExpertFiles, RecordReader, open_reader
from edgemoe.kernels.expert_operations import MATRIX_ALIGNMENT_BYTES
from edgemoe.kernels.formats import PANEL_ROWS, Matrix
from edgemoe.kernels.landing import PLACE, part_of_matrix, staging_bytes
from edgemoe.kernels.pages import round_up
from edgemoe.kernels.reads import RecordRead
from edgemoe.kernels.row_types import ROW_TYPES
from edgemoe.process import start_threads
from edgemoe.store.dense import DenseValue
from edgemoe.store.manifest import DenseTensor

SLICE_WEIGHTS = 1 << 18
"""Weights that are converted at once: fewer than by a conversion, since the memory budget holds here too."""
THREADS = 1
"""Threads that convert, beside the one that waits for them."""
READER_THREADS = 4
READS_AT_ONCE = 256
"""Matrices that the reader has been asked for and that have not been waited for."""


def part_as_it_is(source: GgufSource, piece: Piece) -> FilePart | None:
    """Where a matrix lies in one piece, in the type whose weights its format has; None for any other, and a vector."""
    fmt = piece.place.format
    part = None if fmt is None else source.file_part(piece.source)
    if fmt is None or part is None:
        return None
    kind = ROW_TYPES.get(part.type_name)
    return part if kind is not None and kind.twin == fmt.name else None


class GgufDenseReading:
    """Brings the weights that every token needs into one block of memory, in the background.

    Matrices that are in the file as they will be used are read and landed by a reader's threads; others, and vectors,
    are converted. The views in `tensors` are valid when `wait` has returned. Matrices are in kernel layout, vectors
    float32.
    """

    def __init__(
        self,
        source: GgufSource,
        tensors: Sequence[DenseTensor],
        pieces: Sequence[Piece],
        memory_bytes: int,
        check: Callable[[], None],
    ) -> None:
        """Begins to read and to convert the pieces of these tensors. `check` raises an error if the file has changed.

        Raises BudgetError, and ReadError where a file cannot be opened.
        """
        self.bytes = memory_bytes
        self.tensors: dict[str, DenseValue] = {}
        self._source, self._check = source, check
        self._memory = np.frombuffer(allocate_pages(memory_bytes), np.uint8)
        begins: dict[str, int] = {}
        at = 0
        for tensor in tensors:
            data = self._memory[at : at + tensor.bytes]
            begins[tensor.name] = at - tensor.offset
            self.tensors[tensor.name] = (
                data.view(np.float32)
                if tensor.format is None
                else Matrix(data, tensor.format, tensor.rows, tensor.columns)
            )
            at += room_of(tensor)
        places = {piece.name: begins[piece.place.part] + piece.place.offset for piece in pieces}
        found = [(piece, part_as_it_is(source, piece)) for piece in pieces]
        self._left = deque(
            (piece, places[piece.name], start, stop)
            for piece, part in found
            if part is None
            for start, stop in _slices(piece)
        )
        self._failure: BaseException | None = None
        self._landing = _Landing(source, self._memory, [(p, part, places[p.name]) for p, part in found if part])
        self._threads = start_threads(THREADS, self._work)

    def _work(self) -> None:
        """Convert what is left, until there is nothing more or something failed."""
        while self._failure is None:
            try:
                piece, place, start, stop = self._left.popleft()
            except IndexError:
                return
            try:
                self._convert(piece, place, start, stop)
            except BaseException as error:
                self._failure = error

    def _convert(self, piece: Piece, place: int, start: int, stop: int) -> None:
        """Convert rows of a tensor whose first panel, or element, begins at `place`."""
        rows = read_slice(self._source, piece.source, start, stop)
        data = encode(rows, piece.place.format, f"{self._source.files[0].path}: {piece.source.tensor}").data
        if piece.place.format is None:
            self._memory[place + 4 * start : place + 4 * start + len(data)] = data
            return
        size, stride = piece.place.panel_bytes, piece.place.panel_stride
        for number, panel in enumerate(data.reshape(-1, size), start // PANEL_ROWS):
            self._memory[place + number * stride : place + number * stride + size] = panel

    def wait(self) -> None:
        """Return when every tensor is in its place. Raises SourceError, or StoreError where the file has changed."""
        self._work()
        self._join()
        try:
            if self._failure is not None:
                raise self._failure
            self._landing.wait()
        finally:
            self._landing.close()
        self._check()

    def close(self) -> None:
        """Stop converting, if it has not ended."""
        self._left.clear()
        self._join()
        self._landing.close()

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()
        self._threads = []


class _Landing:
    """Reads matrices of a file into their places in memory, in the background."""

    def __init__(
        self, source: GgufSource, memory: npt.NDArray[np.uint8], pieces: Sequence[tuple[Piece, FilePart, int]]
    ) -> None:
        """Each piece comes with its part of the file and its place in memory. Raises ReadError."""
        self._reader: RecordReader | None = None
        self._reading: deque[tuple[str, int]] = deque()  # names and tickets, the oldest first
        self._files = ExpertFiles([part.path for _, part, _ in pieces])
        self._path = source.files[0].path
        self._left = deque(
            (piece.source.tensor, _read(piece, part, place, self._files.descriptor(part.path), source, memory))
            for piece, part, place in pieces
        )
        if self._left:
            parts = [read.parts for _, read in self._left if read.parts is not None]
            staging = staging_bytes(np.concatenate(parts))
            try:
                self._reader = open_reader(memory, READER_THREADS, READS_AT_ONCE, staging_bytes=staging)
                self._submit()
            except BaseException:
                self.close()
                raise

    def _submit(self) -> None:
        assert self._reader is not None
        while self._left and len(self._reading) < READS_AT_ONCE:
            name, read = self._left.popleft()
            self._reading.append((name, self._reader.submit([read], demand=True)[0]))

    def wait(self) -> None:
        """Return when all have landed. Raises SourceError for one that cannot be read, or is not finite."""
        while self._reading:
            name, ticket = self._reading.popleft()
            assert self._reader is not None
            try:
                self._reader.wait(ticket, READ_TIMEOUT_SECONDS)
            except ReadError as error:
                raise SourceError(f"{self._path}: {name}: {error.message}", error.hint) from error
            self._reader.release(ticket)
            self._submit()

    def close(self) -> None:
        """Stop reading, if it has not ended."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._files.close()


def _read(
    piece: Piece, part: FilePart, place: int, descriptor: int, source: GgufSource, memory: npt.NDArray[np.uint8]
) -> RecordRead:
    """The read that lands a matrix at a place in memory, panel by panel."""
    own = piece.place
    assert own.format is not None
    parts = part_of_matrix(part.type_name, own.format.name, own.rows, own.columns, place, own.panel_stride)
    places = np.array([(part.offset, source.time_mark(part.path), descriptor, part.scale)], PLACE)
    return RecordRead(descriptor, part.offset, part.bytes, memory.ctypes.data, parts=parts, places=places)


def room_of(tensor: DenseTensor) -> int:
    """Bytes of a tensor's place in memory."""
    return round_up(tensor.bytes, MATRIX_ALIGNMENT_BYTES)


def _slices(piece: Piece) -> Iterator[tuple[int, int]]:
    """Yield row ranges of about `SLICE_WEIGHTS` weights, in whole panels."""
    step = max(PANEL_ROWS, SLICE_WEIGHTS // piece.place.columns // PANEL_ROWS * PANEL_ROWS)
    for start in range(0, piece.place.rows, step):
        yield start, min(start + step, piece.place.rows)
