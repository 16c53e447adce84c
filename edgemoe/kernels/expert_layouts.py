"""Where the matrices of experts lie: in their records, whose layouts may differ, and in the base planes of a layer.

Letters as in `operations.py`.
"""

# Annotations are evaluated here, not left as text, so that the marks in them can be read quickly.

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

import numpy as np

from edgemoe.errors import EdgemoeError
from edgemoe.kernels import sub1
from edgemoe.kernels.formats import PANEL_ROWS, Format, Matrix, panel_count
from edgemoe.kernels.marks import OFFSET, matrix, size
from edgemoe.kernels.operations import Bytes, FfnBiases

MATRIX_ALIGNMENT_BYTES = 64
"""Places of matrices in a record are multiples of this."""


class ExpertWeights(NamedTuple):
    """The matrices and biases of an expert."""

    first: Matrix
    """Gate and up, panel by panel in turn; gate alone where up is apart, and up where there is no gate."""
    down: Matrix
    biases: FfnBiases | None
    up: Matrix | None
    """Up where it is apart from gate."""


@dataclass(frozen=True)
class ExpertLayout:
    """Where an expert's matrices lie in its record: gate and up at 0, `down` at `down_offset`; biases if there are any.

    Gate and up of one format lie panel by panel in turn; up of another format lies apart, at `up_offset`. Biases are
    float32 vectors, of gate, of up and of down, each filled up to a multiple of 64 bytes. Experts that are not `gated`
    have no gate and no bias of it: up lies at 0. Behind gate and up in the code sub1, which differ in length from
    expert to expert, down begins at the next multiple of 64 bytes; then `down_offset` is 0.
    """

    hidden_size: Annotated[int, size("D")]
    intermediate_size: Annotated[int, size("F")]
    gate_format: Format
    up_format: Format
    down_format: Format
    down_offset: Annotated[int, OFFSET]  # bytes, a multiple of 64
    biases_offset: Annotated[int, OFFSET] = 0  # bytes, a multiple of 64; 0: no biases
    gated: bool = True
    up_offset: Annotated[int, OFFSET] = 0  # bytes, a multiple of 64; 0: up is not apart from gate

    @property
    def gate_bytes(self) -> int:
        """Bytes of gate: 0 without one."""
        return self.gate_format.matrix_bytes(self.intermediate_size, self.hidden_size) if self.gated else 0

    @property
    def up_bytes(self) -> int:
        return self.up_format.matrix_bytes(self.intermediate_size, self.hidden_size)

    @property
    def varying(self) -> bool:
        """Whether records of this layout differ in length."""
        return self.gate_format.varying or self.up_format.varying or self.down_format.varying

    @property
    def gate_up_bytes(self) -> int:
        """Bytes of gate and up, which share the head of their format if they have one; or of up without a gate."""
        shared = self.up_format.head_bytes if self.gated and self.gate_format == self.up_format else 0
        return self.gate_bytes + self.up_bytes - shared

    @property
    def down_bytes(self) -> int:
        return self.down_format.matrix_bytes(self.hidden_size, self.intermediate_size)

    def format_of(self, name: str) -> Format:
        """The format of `gate`, `up` or `down`."""
        return {"gate": self.gate_format, "up": self.up_format, "down": self.down_format}[name]

    def begin_of(self, name: str) -> int:
        """The place in the record of the matrix that has `gate`, `up` or `down`, in bytes."""
        return {"gate": 0, "up": self.up_offset, "down": self.down_offset}[name]

    def panels_of(self, name: str) -> tuple[int, int]:
        """The place in the record of the first panel of `gate`, `up` or `down`, and the bytes from one to the next."""
        fmt, columns = self.format_of(name), self.intermediate_size if name == "down" else self.hidden_size
        first, panel_bytes = self.begin_of(name) + fmt.head_bytes, fmt.panel_bytes(columns)
        if name == "down" or not self.gated or self.up_offset:
            return first, panel_bytes
        return first + panel_bytes * (name == "up"), 2 * panel_bytes

    def bias_offsets(self) -> dict[str, int]:
        """The place in the record of the biases of gate, up and down, in bytes, and of the `end` behind them."""
        F = self.intermediate_size
        sizes = {"gate": F, "up": F, "down": self.hidden_size, "end": 0}
        offsets, offset = {}, self.biases_offset
        for name in sizes if self.gated else ("up", "down", "end"):
            offsets[name] = offset
            offset += _vector_bytes(sizes[name])
        return offsets

    @property
    def bias_bytes(self) -> int:
        return self.bias_offsets()["end"] - self.biases_offset if self.biases_offset else 0

    def fault(self, record: Bytes) -> str | None:
        """Describe the first fault of a record whose matrices say themselves how long they are."""
        try:
            own = self.weights(record)
        except EdgemoeError as problem:
            return problem.message
        for each in (own.first, own.down):
            found = sub1.panels_fault(each.data, each.rows, each.columns) if each.format.varying else None
            if found is not None:
                return found
        return None

    def weights(self, record: Bytes) -> ExpertWeights:
        """Return the matrices and the biases of an expert's record, as views."""
        D, F = self.hidden_size, self.intermediate_size
        down_offset, up = self.down_offset, None
        if self.up_offset:
            first = Matrix(record[: self.gate_bytes], self.gate_format, F, D)
            up = Matrix(record[self.up_offset : self.up_offset + self.up_bytes], self.up_format, F, D)
        else:
            rows, size = 2 * PANEL_ROWS * panel_count(F) if self.gated else F, self.gate_up_bytes
            if self.up_format.varying:
                size = sub1.matrix_bytes(record)
                down_offset = -(-size // MATRIX_ALIGNMENT_BYTES) * MATRIX_ALIGNMENT_BYTES
            first = Matrix(record[:size], self.up_format, rows, D)
        behind = record[down_offset:]
        down = behind[: sub1.matrix_bytes(behind) if self.down_format.varying else self.down_bytes]
        biases = None
        if self.biases_offset:
            starts = self.bias_offsets()
            sizes = {"gate": F, "up": F, "down": D}
            views = {
                name: record[starts[name] :][: 4 * n].view(np.float32) for name, n in sizes.items() if name in starts
            }
            biases = FfnBiases(views.get("gate"), views["up"], views["down"])
        return ExpertWeights(first, Matrix(down, self.down_format, D, F), biases, up)


def _vector_bytes(elements: int) -> int:
    """Bytes of a float32 vector within a record, filled up to a multiple of 64: 16 elements, as in a panel."""
    return 4 * PANEL_ROWS * panel_count(elements)


@dataclass(frozen=True, eq=False)
class RecordLayouts:
    """The layouts of the records of one layer's experts, which may differ in formats."""

    layouts: tuple[ExpertLayout, ...]
    layout_of: Bytes
    """For each expert the number of its layout, `(E,)`."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RecordLayouts):
            return NotImplemented
        return self.layouts == other.layouts and np.array_equal(self.layout_of, other.layout_of)

    __hash__ = None  # type: ignore[assignment]

    def layout(self, expert: int) -> ExpertLayout:
        """The layout of an expert's record."""
        return self.layouts[int(self.layout_of[expert])]

    def __iter__(self) -> Iterator[Any]:
        """Yield the two arguments of `Experts`."""
        return iter((self.layouts, self.layout_of))


@dataclass(frozen=True, eq=False, repr=False)
class ExpertBases:
    """The base planes of all experts of a layer, which are always in RAM: two matrices, one expert after the other.

    A weight is the sum of its number in the base and of that in the expert's record, the residual. Products with both
    are summed, base first. Each expert has whole panels: `first` those of gate and up in turn, or of up without a gate.
    """

    first: Annotated[Matrix, matrix("U", "D")]
    down: Annotated[Matrix, matrix("W", "I")]

    def weights(self, expert: int, experts: int, first_rows: int, down_rows: int) -> tuple[Matrix, Matrix]:
        """Return the base of gate and up, and that of down, of one of so many experts, with so many rows."""

        def own(whole: Matrix, rows: int) -> Matrix:
            panels = panel_count(whole.rows) // experts
            return replace(whole.of_panels(expert * panels, (expert + 1) * panels), rows=rows)

        return own(self.first, first_rows), own(self.down, down_rows)
