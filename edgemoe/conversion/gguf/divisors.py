"""Finds the rule of positions in a GGUF's divisors of frequencies, the only form in which files have some rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgemoe.conversion.gguf.file import GgufTensor
from edgemoe.conversion.gguf.keys import Metadata
from edgemoe.conversion.gguf.names import ROPE_FACTORS, TAKE_ANOTHER
from edgemoe.errors import SourceError

_LLAMA = ((4.0, 8192), (1.0, 8192))
"""The published bounds of Llama 3, and of Llama 4: `high_freq_factor`, `original_max_position_embeddings`."""


def llama3_scaling(
    metadata: Metadata,
    rotated: int,
    theta: Any,
    factors: GgufTensor,
    bounds: Sequence[tuple[float, int]] = _LLAMA,
    pairs: int | None = None,
) -> dict[str, Any] | None:
    """The `llama3` rule, from its effect; None where it has none.

    The file divides each frequency by a factor: 1 for short wavelengths, `factor` for long ones, a blend in between.
    The bounds of the blend must be those of published models, `bounds`; others are refused. The file may have divisors
    of 1 beyond those of the rotated channels, for `pairs` in all.
    """
    pairs = pairs or rotated // 2
    if factors.shape != (pairs,) or factors.type_name != "F32":
        raise SourceError(
            f"{factors.path}: {ROPE_FACTORS}: expected {pairs} F32 values, "
            f"found {factors.shape} of {factors.type_name}.",
            TAKE_ANOTHER,
        )
    found = factors.read(0, 1).view("<f4")[0].astype(np.float64)
    factor = float(found.max())
    if factor == 1.0 and found.min() == 1.0:
        return None
    if not isinstance(theta, float):
        raise metadata.wrong("rope.freq_base", "a number", theta)
    rest = np.ones(pairs - rotated // 2)
    for high, original in bounds:
        if np.allclose(found, np.append(_divisors(factor, high, original, theta, rotated), rest), rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    published = f"1, {' or '.join(f'{high:g}' for high, _ in bounds)}, {bounds[0][1]}"
    raise SourceError(
        f"{factors.path}: {ROPE_FACTORS}: expected the factors of the llama3 rule ({published}), found others.",
        TAKE_ANOTHER,
    )


def _divisors(factor: float, high: float, original: int, theta: float, rotated: int) -> np.ndarray[Any, Any]:
    """The divisor of each pair's frequency, with a `low_freq_factor` of 1."""
    with np.errstate(all="ignore"):
        wavelengths = 2 * np.pi * theta ** (np.arange(0, rotated, 2) / rotated)
        if high == 1:  # there is no blend: the upper bound of short wavelengths is the lower one of long ones
            return np.where(wavelengths > original, factor, 1)
        blend = np.clip((original / wavelengths - 1) / (high - 1), 0.0, 1.0)
        return np.asarray(1 / ((1 - blend) / factor + blend))
