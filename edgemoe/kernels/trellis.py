"""Trellis formats: their parameters, the meaning of their codes, and the layout of what they store.

A weight of these formats is chosen by a window of its row's code stream, not by a code of its own, so that a stream of
`k` new bits for `V` weights has far more than `2**k` values to choose from. A *chain* runs through every fourth column
of a row, from the row's beginning to its end. Each step appends a code of k bits to the chain's stream, before which
all bits are 0. With `l` for the last 4 bits of the stream after a step, and `h` for what `l` was `j` steps before, the
step's weight v (0 to V - 1) is, with two tables of 16 small integers each,

    value  = A[v][l ^ h] + B[v][h]
    weight = d * (factor + 1) * value

where d is a float16 and the factor (0 to 15) one for each 32 columns; formats with a scale of whole rows have no
factors, and weight = d * value. A matrix has its own tables; a value fits -31 to 31, a window 4 + k * j bits.

    format  k  V  j  scale  columns of a block  bytes of a block of 16 rows  bits for a weight, all told
    n4      4  1  1  group   32                 256                          4.1875
    n3      3  1  1  group   32                 192                          3.1875
    n2      2  1  2  group   32                 128                          2.1875
    n15     3  2  1  group   64                 192                          1.6875
    n1      1  1  4  row     32                  64                          1
    n075    3  4  1  row    128                 192                          0.75

A matrix is its tables, then panels of 16 rows:

    matrix  = V x (16 int8 A | 16 int8 B), zeros to 64 bytes | panel 0 | panel 1 | ...
    panel   = block 0 | block 1 | ... | scales | zeros to 64 bytes
    block   = k planes of 64 bytes, for 8 steps: byte r * 4 + c of the planes, one after the other, has the codes of the
              chain of row r and columns c, c + 4, ..., from the first plane's highest bit on; weight v of step i is
              that of column 4 * (i * V + v) + c
    scales  = for each 256 columns (the last may be fewer) 16 float16, and 4 lines of 16 bytes: byte r of line p has the
              factors of groups 2p (low nibble) and 2p + 1 of row r; or 16 float16 if they are of whole rows

Codes are kept as `(rows, 4 * steps)`: code 4 * i + c is that of step i of chain c, so that it is the code of a column
where V is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.panel_sizes import GROUP_COLUMNS, PANEL_ROWS

CHAINS = 4
"""Chains of a row: as many as columns share a 32-bit lane."""
BLOCK_STEPS = 8
SCALE_COLUMNS = 256
"""Columns that share a float16 scale where groups of 32 have factors."""
LARGEST_VALUE = 31
LARGEST_FACTOR = 15

_LINE_BYTES = PANEL_ROWS * CHAINS
_NIBBLE = 15

Bytes = npt.NDArray[np.uint8]
Values = npt.NDArray[np.int8]
Number = TypeVar("Number", np.int8, np.float64)


@dataclass(frozen=True)
class Trellis:
    """The parameters of one format; the module's docstring says what they mean."""

    name: str
    step_bits: int
    """k: bits that a step appends to a chain's stream."""
    step_weights: int
    """V: weights of a step."""
    lag: int
    """j: steps between the two nibbles of a window."""
    has_factors: bool
    """Whether scales are of 256 columns, with a factor for each 32, or of whole rows."""

    @property
    def window_bits(self) -> int:
        """Bits of the stream that a value depends on: at most 8."""
        return 4 + self.step_bits * self.lag

    @property
    def state_bits(self) -> int:
        """Bits of a window that later ones see too."""
        return self.window_bits - self.step_bits

    @property
    def block_columns(self) -> int:
        return BLOCK_STEPS * CHAINS * self.step_weights

    @property
    def unit_columns(self) -> int:
        """The columns that a chain has of a block."""
        return BLOCK_STEPS * self.step_weights

    @property
    def block_bytes(self) -> int:
        """Bytes of a block of 16 rows."""
        return _LINE_BYTES * self.step_bits

    @property
    def table_bytes(self) -> int:
        """Bytes of the tables at a matrix's beginning."""
        return -(-32 * self.step_weights // 64) * 64

    def padded(self, columns: int) -> int:
        """The columns of whole blocks that hold `columns` columns."""
        return -(-columns // self.block_columns) * self.block_columns

    def code_count(self, columns: int) -> int:
        """The number of codes of a row."""
        return self.padded(columns) // self.step_weights

    def payload_bytes(self, columns: int) -> int:
        """Bytes of all blocks of a panel."""
        return self.padded(columns) // self.block_columns * self.block_bytes

    def scale_count(self, columns: int) -> int:
        """The number of float16 scales of a row."""
        return -(-columns // SCALE_COLUMNS) if self.has_factors else 1

    def factor_count(self, columns: int) -> int:
        """The number of factors of a row."""
        return -(-columns // GROUP_COLUMNS) if self.has_factors else 0

    def scale_bytes(self, columns: int) -> int:
        """Bytes of the scales and factors of a panel."""
        factors = SCALE_COLUMNS // GROUP_COLUMNS // 2 if self.has_factors else 0
        return self.scale_count(columns) * PANEL_ROWS * (2 + factors)

    def panel_bytes(self, columns: int) -> int:
        """Bytes of a panel of 16 rows."""
        return -(-(self.payload_bytes(columns) + self.scale_bytes(columns)) // 64) * 64


TRELLISES = {
    trellis.name: trellis
    for trellis in (
        Trellis("n4", 4, 1, 1, has_factors=True),
        Trellis("n3", 3, 1, 1, has_factors=True),
        Trellis("n2", 2, 1, 2, has_factors=True),
        Trellis("n15", 3, 2, 1, has_factors=True),
        Trellis("n1", 1, 1, 4, has_factors=False),
        Trellis("n075", 3, 4, 1, has_factors=False),
    )
}


def window_values(tables: npt.NDArray[Number], trellis: Trellis) -> npt.NDArray[Number]:
    """The values of every window of `window_bits` bits, `(windows, V)`, by tables `(V, 2, 16)`.

    The newest bits of a window are its lowest.
    """
    windows = np.arange(1 << trellis.window_bits)
    last, before = windows & _NIBBLE, windows >> trellis.step_bits * trellis.lag
    values: npt.NDArray[Number] = (tables[:, 0, last ^ before] + tables[:, 1, before]).T
    return values


def stream_windows(codes: Bytes, trellis: Trellis) -> Bytes:
    """The window after each step, of codes `(rows, codes)`: likewise."""
    steps = codes.shape[1] // CHAINS
    windows = codes.copy()
    for back in range(1, min(steps, -(-trellis.window_bits // trellis.step_bits))):
        windows[:, back * CHAINS :] |= codes[:, : (steps - back) * CHAINS] << np.uint8(back * trellis.step_bits)
    return windows & np.uint8((1 << trellis.window_bits) - 1)


def decode(codes: Bytes, tables: Values, trellis: Trellis) -> Values:
    """The values that codes stand for: `(rows, codes)` to `(rows, padded columns)`."""
    rows = len(codes)
    values = window_values(tables, trellis)[stream_windows(codes, trellis)]
    by_quads = values.reshape(rows, -1, CHAINS, trellis.step_weights).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(by_quads).reshape(rows, -1)


def dequantise(values: Values, scales: npt.NDArray[np.float16], factors: Bytes | None) -> npt.NDArray[np.float32]:
    """The exact weights of values `(rows, columns)`; scales `(rows, scale_count)`, factors `(rows, factor_count)`."""
    columns = values.shape[1]
    multipliers: npt.NDArray[np.float32] = scales.astype(np.float32)
    if factors is not None:
        multipliers = np.repeat(multipliers, SCALE_COLUMNS // GROUP_COLUMNS, axis=1)[:, : factors.shape[1]]
        multipliers = multipliers * (factors + np.float32(1))
        multipliers = np.repeat(multipliers, GROUP_COLUMNS, axis=1)[:, :columns]
    return values * multipliers


def pack_codes(codes: Bytes, trellis: Trellis) -> Bytes:
    """The blocks of panels, `(panels, payload_bytes)`, of codes `(rows, codes)` of whole panels."""
    k = trellis.step_bits
    panels = len(codes) // PANEL_ROWS
    steps = codes.reshape(panels, PANEL_ROWS, -1, BLOCK_STEPS, CHAINS)
    words = np.zeros((panels, steps.shape[2], PANEL_ROWS, CHAINS), np.uint32)
    for step in range(BLOCK_STEPS):
        words |= steps[:, :, :, step].transpose(0, 2, 1, 3).astype(np.uint32) << np.uint32(k * (BLOCK_STEPS - 1 - step))
    planes = [(words >> np.uint32(8 * (k - 1 - plane))).astype(np.uint8) for plane in range(k)]
    return np.stack(planes, axis=2).reshape(panels, -1)


def unpack_codes(payload: Bytes, trellis: Trellis) -> Bytes:
    """The codes of panels' blocks: the inverse of `pack_codes`."""
    k = trellis.step_bits
    panels = len(payload)
    planes = payload.reshape(panels, -1, k, PANEL_ROWS, CHAINS)
    words = np.zeros((panels, planes.shape[1], PANEL_ROWS, CHAINS), np.uint32)
    for plane in range(k):
        words |= planes[:, :, plane].astype(np.uint32) << np.uint32(8 * (k - 1 - plane))
    shifts = np.arange(BLOCK_STEPS - 1, -1, -1, dtype=np.uint32) * np.uint32(k)
    steps = words[:, :, :, None, :] >> shifts[:, None] & np.uint32((1 << k) - 1)
    return steps.astype(np.uint8).transpose(0, 2, 1, 3, 4).reshape(panels * PANEL_ROWS, -1)


def pack_scales(scales: npt.NDArray[np.float16], factors: Bytes | None) -> Bytes:
    """The section of scales of panels, `(panels, scale_bytes)`, of rows of whole panels."""
    panels, count = len(scales) // PANEL_ROWS, scales.shape[1]
    by_row = np.ascontiguousarray(scales.reshape(panels, PANEL_ROWS, count).transpose(0, 2, 1))
    halves = by_row.view(np.uint8).reshape(panels, count, -1)
    if factors is None:
        return halves.reshape(panels, -1)
    share = SCALE_COLUMNS // GROUP_COLUMNS
    every = np.zeros((len(scales), count * share), np.uint8)
    every[:, : factors.shape[1]] = factors
    nibbles = every[:, ::2] | every[:, 1::2] << 4
    lines = nibbles.reshape(panels, PANEL_ROWS, count, share // 2).transpose(0, 2, 3, 1).reshape(panels, count, -1)
    return np.concatenate([halves, lines], axis=2).reshape(panels, -1)


def unpack_scales(section: Bytes, trellis: Trellis, columns: int) -> tuple[npt.NDArray[np.float16], Bytes | None]:
    """The scales and factors of panels: the inverse of `pack_scales`."""
    panels, count = len(section), trellis.scale_count(columns)
    parts = section.reshape(panels, count, -1)
    halves = np.ascontiguousarray(parts[:, :, : 2 * PANEL_ROWS]).view(np.float16)
    scales: Any = halves.transpose(0, 2, 1).reshape(panels * PANEL_ROWS, count)
    if not trellis.has_factors:
        return scales, None
    lines = parts[:, :, 2 * PANEL_ROWS :].reshape(panels, count, -1, PANEL_ROWS)
    nibbles = lines.transpose(0, 3, 1, 2).reshape(panels * PANEL_ROWS, -1)
    every = np.stack([nibbles & _NIBBLE, nibbles >> 4], axis=2).reshape(panels * PANEL_ROWS, -1)
    return scales, np.ascontiguousarray(every[:, : trellis.factor_count(columns)])


def pack_tables(tables: Values, trellis: Trellis) -> Bytes:
    """The bytes at a matrix's beginning, `table_bytes` of them, of tables `(V, 2, 16)`."""
    head = np.zeros(trellis.table_bytes, np.uint8)
    head[: tables.size] = tables.reshape(-1).view(np.uint8)
    return head


def unpack_tables(head: Bytes, trellis: Trellis) -> Values:
    """The tables of a matrix: the inverse of `pack_tables`."""
    return head[: 32 * trellis.step_weights].view(np.int8).reshape(trellis.step_weights, 2, 16).copy()
