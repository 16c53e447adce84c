"""The triangular factor of second moments, and its inverse: how errors of columns feed back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_SMALLEST_HALF = 16


def lower_inverse(matrix: Floats) -> Floats:
    """The inverse of a lower triangular matrix, half by half."""
    half = len(matrix) // 2
    if half < _SMALLEST_HALF:
        return np.linalg.inv(matrix.astype(np.float64)).astype(np.float32)
    inverse = np.zeros_like(matrix)
    first, last = (lower_inverse(part) for part in (matrix[:half, :half], matrix[half:, half:]))
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[half:, :half] = -last @ (matrix[half:, :half] @ first)
    return inverse


def lower_factor(moments: Doubles) -> Doubles:
    """The lower triangular factor of the moments, or of them and a multiple of the identity."""
    diagonal = np.einsum("ii->i", moments)
    mean, added = float(diagonal.mean()), 0.0
    while True:
        try:
            return np.linalg.cholesky(moments).astype(np.float64)
        except np.linalg.LinAlgError:
            diagonal -= added * mean
            added = max(1e-6, 10 * added)
            diagonal += added * mean
