"""The one way in which the project compiles a function with Numba."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from edgemoe.errors import KernelError
from edgemoe.paths import platform_cache_folder

try:
    import numba
    from numba.core.caching import FunctionCache
    from numba.core.event import Event, Listener, install_listener
except ImportError as error:
    raise KernelError(
        f"Numba cannot be imported ({error}): quantising weights, replaying traces and the portable kernels need it.",
        "Install it: pip install numba. For musl systems (Alpine) there is no ready-made package of it: the README"
        " says what works without, and how.",
    ) from error

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {
    "nogil": True,  # callers run these on threads of their own
    "fastmath": False,  # sums keep their order, and so their bits
    "error_model": "numpy",  # a division by zero gives infinity: a branch would keep loops from vectorising
}


def jit(function: Function) -> Function:
    """Compile at the first call and keep the machine code on disk, where a folder for it can be written.

    That is the `__pycache__` beside the function's module or else Numba's folder in the user's cache, if there is one.
    """
    return _compile(function, ())


def jit_calling(*files: str) -> Callable[[Function], Function]:
    """As `jit`, for a function that calls compiled functions of other source files.

    Numba puts their machine code into the caller's, but looks at the caller's file only: here the caller is compiled
    anew when one of `files` changes too.
    """
    return lambda function: _compile(function, files)


def _compile(function: Function, files: tuple[str, ...]) -> Function:
    compiled = numba.njit(**_OPTIONS)(function)
    if not _can_be_kept(function):
        return cast(Function, compiled)
    with suppress(RuntimeError):  # Numba found no folder that it can write: compile in each process instead
        compiled._cache = _ForgivingCache(function, files)  # what cache=True sets, but for the class
    return cast(Function, compiled)


def _can_be_kept(function: Callable[..., Any]) -> bool:
    """Whether Numba, asked for a folder, finds one: for a user without a home it makes one that is called `~`."""
    folder = Path(function.__code__.co_filename).parent
    beside = folder / "__pycache__" if (folder / "__pycache__").exists() else folder
    chosen = numba.config.CACHE_DIR  # type: ignore[attr-defined]  # made from the environment
    return bool(chosen) or os.access(beside, os.W_OK) or platform_cache_folder() is not None


class _ForgivingCache(FunctionCache):
    """Numba's cache of machine code, which loses only speed where its files are damaged or the disk is full."""

    def __init__(self, function: Callable[..., Any], files: tuple[str, ...]) -> None:
        super().__init__(function)
        if files:
            states = [Path(file).stat() for file in files]
            stamp = (self._cache_file._source_stamp, *((state.st_mtime_ns, state.st_size) for state in states))
            self._cache_file._source_stamp = stamp

    def load_overload(self, signature: Any, target: Any) -> Any:
        try:
            return super().load_overload(signature, target)
        except Exception:  # whatever unpickling a damaged file raises
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, signature: Any, data: Any) -> None:
        with suppress(OSError):
            super().save_overload(signature, data)


@contextmanager
def compiling_told(tell: Callable[[bool], None]) -> Iterator[None]:
    """Within it, `tell` is called before the first function is compiled; not for code that is taken from disk.

    It is told whether the code will be kept. It may be called on any thread that runs kernels.
    """
    with install_listener("numba:compile", _FirstCompilation(tell)):
        yield


class _FirstCompilation(Listener):
    def __init__(self, tell: Callable[[bool], None]) -> None:
        self._tell = tell
        self._told = False

    def on_start(self, event: Event) -> None:
        if not self._told:  # one thread at a time is here: Numba compiles under a lock
            self._told = True
            self._tell(event.data["dispatcher"].stats.cache_path is not None)

    def on_end(self, event: Event) -> None:
        """Nothing: only the beginning is news."""
