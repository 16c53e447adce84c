"""The portable kernels, which Numba compiles at their first call."""

from edgemoe.kernels.jit.backend import JitBackend

__all__ = ["JitBackend"]
