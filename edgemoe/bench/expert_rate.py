"""How fast the kernels compute experts whose weights are near: few bytes can take longer than their reading does.

One row's product with a random matrix of each format is timed with all threads, on matrices that the caches hold. The
kernels of most formats wait for the memory; those of trellises and of sub1 may not.
"""

from __future__ import annotations

import math
import time

import numpy as np
import numpy.typing as npt

from edgemoe.conversion.encoding import encode
from edgemoe.conversion.random_blocks import draw_blocks, draw_bytes, draw_ternary
from edgemoe.io.direct import allocate_pages
from edgemoe.kernels import operations as op
from edgemoe.kernels.blocks import Blocks
from edgemoe.kernels.formats import Format, Matrix
from edgemoe.kernels.native.backend import NativeBackend
from edgemoe.kernels.select import KernelChoice
from edgemoe.model.planes import is_base
from edgemoe.store.manifest import Manifest

MATRIX_WEIGHTS = 1 << 21
"""About as many as an expert's matrix has: one or two MiB in most formats."""
PASS_SECONDS = 0.01
PASSES = 7
_FLOATS = ("f32", "f16", "bf16")
_NOT_TIMED = ("f8", "m8", "q4z")
"""Formats of checkpoints that no one draws at random; a byte or half a byte for a weight, so memory is their limit."""


def measure_experts(manifest: Manifest, kernels: KernelChoice) -> float:
    """Bytes of experts that the kernels compute in a second; infinite without experts, and if kernels aren't native.

    Bytes are those of the formats of all experts, in the shares that these have in a model (written or not). It takes a
    tenth of a second for each format, and the drawing of its matrix.
    """
    sizes = _bytes_of_formats(manifest)
    if not sizes or kernels.backend != "native":
        return math.inf
    backend = NativeBackend(kernels.threads, kernels.isa)
    try:
        seconds = sum(
            size / _product_rate(backend, fmt, columns)
            for (fmt, columns), size in sizes.items()
            if fmt.name not in _NOT_TIMED
        )
    finally:
        backend.close()
    return sum(sizes.values()) / seconds if seconds else math.inf


def _bytes_of_formats(manifest: Manifest) -> dict[tuple[Format, int], int]:
    """Bytes of all experts in each format, by the number of columns."""
    sizes: dict[tuple[Format, int], int] = {}
    numbers, counts = np.unique(manifest.records.layout, return_counts=True)
    for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        own = manifest.layouts[number].matrices
        first, last = (own.intermediate_size, own.hidden_size), (own.hidden_size, own.intermediate_size)
        matrices = [(own.up_format, *first), (own.down_format, *last)]
        if own.gated:
            matrices.append((own.gate_format, *first))
        for fmt, rows, columns in matrices:
            sizes[fmt, columns] = sizes.get((fmt, columns), 0) + count * fmt.matrix_bytes(rows, columns)
    for tensor in manifest.dense:
        if is_base(tensor.name) and tensor.format is not None:
            kind = tensor.format, tensor.columns
            sizes[kind] = sizes.get(kind, 0) + tensor.bytes
    return sizes


def _product_rate(backend: NativeBackend, fmt: Format, columns: int) -> float:
    """Bytes of a matrix of random weights that products with one row get through in a second, the fastest of passes."""
    matrix = _random_matrix(fmt, columns)
    source, output = (_allocate(4 * size).view(np.float32)[None] for size in (columns, matrix.rows))
    source[:] = np.random.default_rng(0).standard_normal(columns, np.float32)
    program = backend.program([op.Linear(source, (op.LinearPart(matrix, None, output),))])
    fastest_s = math.inf
    for _ in range(PASSES):
        began_s, runs = time.perf_counter(), 0
        while not runs or time.perf_counter() - began_s < PASS_SECONDS:
            program.run(1)
            runs += 1
        fastest_s = min(fastest_s, (time.perf_counter() - began_s) / runs)
    return matrix.nbytes / fastest_s


def _random_matrix(fmt: Format, columns: int) -> Matrix:
    rows = slice(0, max(1, MATRIX_WEIGHTS // columns))
    drawn: npt.NDArray[np.float32] | Blocks
    if fmt.name == "sub1":
        drawn = draw_ternary("", rows, columns, 1.0)
    elif fmt.name in _FLOATS:
        drawn = draw_bytes("", rows, columns).astype(np.float32) / np.float32(128) - np.float32(1)
    else:
        drawn = draw_blocks("", rows, columns, 1.0, fmt)
    encoded = encode(drawn, fmt, "a random matrix")
    data = _allocate(encoded.head.size + encoded.data.size)
    data[:] = np.concatenate([encoded.head, encoded.data])
    return Matrix(data, fmt, rows.stop, columns)


def _allocate(size: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(allocate_pages(size), np.uint8)
