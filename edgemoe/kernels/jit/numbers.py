"""Conversions for Numba: float16, for which it has no arithmetic (a half is passed as its 16 bits), and e8m0 scales."""

from __future__ import annotations

import numpy as np

from edgemoe.kernels.jit.compile import jit

_TWO_TO_112 = np.float32(2.0**112)
_HALF = np.float32(0.5)
_INFINITY = np.uint32(0x7F800000)


@jit
def halved_scale(e: np.uint8) -> np.float32:
    """Return `2**(e - 128)`: half of the e8m0 scale of that byte, by which doubled integers are multiplied.

    The exponent of a normal float32 begins at bit 23; of the two scales below, 2**-128 is bit 21 and 2**-127 bit 22.
    For `e` of 0 and 1 the second expression is the larger one, from 2 on the first.
    """
    normal = np.int32((np.int32(e) - 1) << 23)
    below_normal = np.int32((np.int32(e) + 1) << 21)
    return np.int32(max(normal, below_normal)).view(np.float32)


@jit
def half_to_float(bits: np.uint16) -> np.float32:
    """Convert the bits of a float16 to float32, exactly for all 65536 bit patterns.

    Exponent and fraction, shifted to their places in a float32, encode the number times 2**-112, denormals included.
    """
    magnitude = np.uint32(np.uint32(bits & 0x7FFF) << np.uint32(13))
    scaled = np.float32(magnitude.view(np.float32) * _TWO_TO_112).view(np.uint32)
    # An exponent of all ones means infinity or a NaN, and becomes an exponent of all ones.
    finite = magnitude < np.uint32(0x0F800000)
    result = scaled if finite else np.uint32(magnitude | _INFINITY)
    sign = np.uint32(np.uint32(bits & 0x8000) << np.uint32(16))
    return np.uint32(result | sign).view(np.float32)


@jit
def float_to_half(value: np.float32) -> np.uint16:
    """Bits of the float16 nearest to a float32, half to even; infinity beyond float16's range, 0x7e00 for a NaN."""
    bits = np.float32(value).view(np.uint32)
    sign = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000))
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    if magnitude > _INFINITY:
        return np.uint16(0x7E00)
    if magnitude >= np.uint32(0x47800000):  # 65536
        return np.uint16(sign | np.uint32(0x7C00))
    if magnitude < np.uint32(0x38800000):  # below 2**-14: the last bit of 0.5 in float32 is that of a denormal float16
        rounded = np.float32(magnitude.view(np.float32) + _HALF).view(np.uint32)
        return np.uint16(sign | np.uint32(rounded - np.uint32(0x3F000000)))
    odd = np.uint32(np.uint32(magnitude >> np.uint32(13)) & np.uint32(1))
    rounded = np.uint32(np.uint32(magnitude - np.uint32(0x38000000)) + np.uint32(np.uint32(0xFFF) + odd))
    return np.uint16(sign | np.uint32(rounded >> np.uint32(13)))
