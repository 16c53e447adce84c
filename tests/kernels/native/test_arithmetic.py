"""Bits do not depend on what another library did to the arithmetic of the thread that asks."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from edgemoe.kernels import operations as op
from edgemoe.kernels.native.backend import NativeBackend
from edgemoe.kernels.native.library import available_isas
from tests.kernels.builders import aligned, numbers

TINY = np.float32(1e-40)
FLUSHES = {"x86_64": (28, 0x8040), "aarch64": (0, 1 << 24)}
"""Where glibc's `fenv_t` has the control register, and its bits that take the smallest numbers for zeros."""


@contextmanager
def flushed() -> Iterator[None]:
    """Take the smallest numbers for zeros in this thread, as a library that is linked with -ffast-math does."""
    at, bits = FLUSHES[platform.machine()]
    library, before, changed = ctypes.CDLL("libm.so.6"), (ctypes.c_uint8 * 64)(), (ctypes.c_uint8 * 64)()
    library.fegetenv(before)
    library.fegetenv(changed)
    register = ctypes.c_uint32.from_buffer(changed, at)
    register.value |= bits
    library.fesetenv(changed)
    try:
        yield
    finally:
        library.fesetenv(before)


@pytest.mark.skipif(
    platform.machine() not in FLUSHES or platform.libc_ver()[0] != "glibc", reason="knows the fenv_t of glibc alone"
)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("isa", available_isas())
def test_the_smallest_numbers_stay(isa: str, threads: int) -> None:
    random, rows, width = np.random.default_rng(5), 64, 256
    given, weight = numbers("normal", (rows, width), random), numbers("normal", (width,), random)
    weight *= TINY
    found = []
    for flushes in (False, True):
        backend = NativeBackend(isa=isa, threads=threads)
        output = aligned((rows, width), np.float32)
        program = backend.program([op.RmsNorm(given, weight, 1e-5, output)])
        if flushes:
            with flushed():
                assert TINY * np.float32(0.5) == 0  # so it is for all other code
                program.run(rows)
                assert TINY * np.float32(0.5) == 0  # and stays so
        else:
            program.run(rows)
        backend.close()
        found.append(output.tobytes())
    assert np.count_nonzero(np.frombuffer(found[0], np.float32)) == rows * width
    assert found[0] == found[1]
