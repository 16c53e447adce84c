"""The portable kernels, compiled by Numba when they are first called."""

from edgemoe.kernels.jit.backend import JitBackend

__all__ = ["JitBackend"]
