"""The bytes and the values of formats with a trellis, number by number, as the docstring of `trellis.py` draws them."""

from __future__ import annotations

import numpy as np

from edgemoe.kernels.blocks import Blocks
from edgemoe.kernels.formats import panel_count

NUMBERS = {"n4": (4, 1, 1), "n3": (3, 1, 1), "n2": (2, 1, 2), "n15": (3, 2, 1), "n1": (1, 1, 4), "n075": (3, 4, 1)}
"""k, V and j of each format."""


def packed_trellis_slowly(blocks: Blocks) -> bytes:
    rows, columns = blocks.shape
    k, V, _ = NUMBERS[blocks.format.name]
    tables, factors, scales = np.asarray(blocks.tables), blocks.factors, np.asarray(blocks.scales)
    whole = bytearray()
    for v in range(V):
        whole += tables[v, 0].tobytes() + tables[v, 1].tobytes()
    whole += bytes(-len(whole) % 64)
    for panel in range(panel_count(rows)):
        body = bytearray()
        for block in range(-(-columns // (32 * V))):
            planes = bytearray(64 * k)
            for r in range(min(16, rows - panel * 16)):
                for c in range(4):
                    codes = blocks.values[panel * 16 + r, block * 32 + c : (block + 1) * 32 : 4].tolist()
                    bits = "".join(f"{code:0{k}b}" for code in codes)
                    for plane in range(k):
                        planes[plane * 64 + r * 4 + c] = int(bits[8 * plane : 8 * plane + 8], 2)
            body += planes
        for shared in range(scales.shape[1]):
            halves = np.zeros(16, np.float16)
            halves[: rows - panel * 16] = scales[panel * 16 : panel * 16 + 16, shared]
            body += halves.tobytes()
            for pair in range(4 if factors is not None else 0):
                for row in range(panel * 16, panel * 16 + 16):
                    both = 0
                    for half in range(2):
                        group = shared * 8 + 2 * pair + half
                        if row < rows and group < factors.shape[1]:
                            both |= int(factors[row, group]) << 4 * half
                    body.append(both)
        whole += body + bytes(-len(body) % 64)
    return bytes(whole)


def trellis_value(blocks: Blocks, row: int, column: int) -> int:
    """The value of one weight, from the bits of its chain's whole stream."""
    k, V, j = NUMBERS[blocks.format.name]
    tables = np.asarray(blocks.tables)
    chain, step, v = column % 4, column // (4 * V), column // 4 % V
    codes = blocks.values[row, chain::4].tolist()
    stream = "0" * 32 + "".join(f"{code:0{k}b}" for code in codes)

    def nibble(number: int) -> int:
        end = 32 + (number + 1) * k
        return int(stream[end - 4 : end], 2)

    last, before = nibble(step), nibble(step - j)
    return int(tables[v, 0, last ^ before]) + int(tables[v, 1, before])
