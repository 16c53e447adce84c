"""The processor as a device: the device's text, compiled by the C compiler that is here.

It is how the text is tested where there is no device, and no faster than the native kernels: it runs on one thread.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from edgemoe.kernels.device.entries import program_text
from edgemoe.kernels.device.runtime import Argument, CopiesInLine, DeviceError, Place
from edgemoe.kernels.device.table import kernels
from edgemoe.kernels.operations import Bytes
from edgemoe.paths import cache_folder
from edgemoe.process import available_memory_bytes

COMPILER_VARIABLE = "CC"
FLAGS = ("-std=c11", "-O2", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-shared")
_COMPILE_SECONDS = 300

Pieces = Callable[[int], Iterable[tuple[int, int]]]
"""Cuts a number of items into ranges, in the order in which they are run."""


class _Argument(ctypes.Union):
    """The `argument` of dialect.h."""

    _fields_ = (("buffer", ctypes.c_void_p), ("whole", ctypes.c_int32), ("number", ctypes.c_float))


def _whole(items: int) -> Iterable[tuple[int, int]]:
    yield 0, items


class HostRuntime(CopiesInLine):
    """The C dialect of the device's text. Its memory is the host's, but only weights are shared with it."""

    name = "host"
    unified = coherent = True

    def __init__(self, pieces: Pieces = _whole, flags: Sequence[str] = ()) -> None:
        """`flags` for the compiler come after its own. Raises DeviceError where there is no compiler, or it fails."""
        self._pieces = pieces
        name = os.environ.get(COMPILER_VARIABLE) or "cc"
        compiler = shutil.which(name)
        if compiler is None:
            raise DeviceError(
                f"The device `host` needs a C compiler, and there is no {name}.", "Install one, or set CC."
            )
        library = _library(compiler, (*FLAGS, *flags), cache_folder())
        self._kernels = {name: getattr(library, f"em_{name}") for name in kernels()}
        for function in self._kernels.values():
            function.restype, function.argtypes = None, [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32]

    def free_bytes(self) -> int:
        return available_memory_bytes()

    def allocate(self, size: int) -> Bytes:
        """Return memory that begins at a multiple of 64 bytes."""
        memory = np.empty(size + 64, np.uint8)
        start = -memory.ctypes.data % 64
        return memory[start : start + size]

    def adopt(self, host: Bytes) -> Bytes:
        return host

    def upload(self, to: Place, host: Bytes) -> None:
        to.block.buffer[to.at : to.at + host.size] = host

    def download(self, of: Place, size: int) -> Bytes:
        copied: Bytes = of.block.buffer[of.at : of.at + size].copy()
        return copied

    def launch(self, kernel: str, arguments: Sequence[Argument], items: int) -> None:
        packed = (_Argument * len(arguments))()
        for one, argument in zip(packed, arguments, strict=True):
            if isinstance(argument, Place):
                one.buffer = argument.block.buffer.__array_interface__["data"][0] + argument.at
            elif isinstance(argument, float):
                one.number = argument
            elif argument is not None:
                one.whole = argument
        for begin, end in self._pieces(items):
            self._kernels[kernel](ctypes.addressof(packed), begin, end)

    def finish(self) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Nothing to free but memory."""


@functools.cache
def _library(compiler: str, flags: Sequence[str], folder: Path | None) -> ctypes.CDLL:
    """Return the library of the device's text: that of an earlier start, if its text, flags and compiler were these."""
    text = program_text("host")
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="edgemoe-device-") as temporary:
            made = Path(temporary) / "device.so"
            _compile(compiler, text, flags, made)
            return ctypes.CDLL(str(made))  # it stays loaded without its file
    digest = hashlib.sha256("\0".join((text, *flags, compiler)).encode()).hexdigest()[:32]
    kept = folder / "device" / f"{digest}.so"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        made = kept.with_suffix(f".{os.getpid()}")
        _compile(compiler, text, flags, made)
        made.replace(kept)
    return ctypes.CDLL(str(kept))


def _compile(compiler: str, text: str, flags: Sequence[str], path: Path) -> None:
    command = [compiler, *flags, "-x", "c", "-", "-o", str(path), "-lm"]
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(f"The C compiler {compiler} cannot compile the device's text: {error}.") from error
    if done.returncode:
        raise DeviceError(f"The C compiler {compiler} refuses the device's text: {done.stderr.strip()[:2000]}")
