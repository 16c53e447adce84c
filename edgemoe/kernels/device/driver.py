"""NVIDIA's driver: the functions of it that are called, with the types of their arguments."""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

from edgemoe.kernels.device.runtime import DeviceError

SUCCESS, OUT_OF_MEMORY, NO_DEVICE, NOT_READY = 0, 2, 100, 600
"""The statuses that mean more than that a call failed."""
INTEGRATED, CAPABILITY_MAJOR, CAPABILITY_MINOR = 18, 75, 76
"""Attributes of a device."""
ERROR_LOG, ERROR_LOG_BYTES = 5, 6
"""Options of a module: where the compiler tells its errors, and how many bytes there are."""
WITHOUT_TIMING = 2
"""The flag of an event that is only asked whether it has come."""

FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_void_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuModuleLoadDataEx": (POINTER(c_void_p), c_void_p, c_uint, POINTER(c_int), POINTER(c_void_p)),
    "cuModuleUnload": (c_void_p,),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventQuery": (c_void_p,),
    "cuEventDestroy_v2": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuLaunchKernel": (c_void_p, *(c_uint,) * 7, c_void_p, POINTER(c_void_p), POINTER(c_void_p)),
}
"""Every function returns a status. With `_v2` a name is the one that the driver's header means by the name without."""

NUMBERS = {"i32": c_int, "float": c_float}
"""The types of a kernel's numbers."""


def load_driver() -> Any:
    """Return the driver's library. Raises DeviceError where there is none, or one that lacks a function."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        where = "macOS has none" if sys.platform == "darwin" else str(error)
        raise DeviceError(
            f"There is no NVIDIA driver here: {where}.", "Install the driver of your graphics card, or go without."
        ) from error
    for name, types in FUNCTIONS.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise DeviceError(
                f"The NVIDIA driver here is too old: it has no {name}.", "Install a newer one."
            ) from error
        function.argtypes, function.restype = types, c_int
    return library
