"""The decorators with which every function that Numba compiles is marked, and the cache of its machine code."""

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
    """Compile at the first call and keep the machine code on disk, if there is a writable folder for it.

    The folder is the `__pycache__` beside the function's module, or else Numba's folder in the user's cache.
    """
    return _compile(function, ())


def jit_calling(*files: str) -> Callable[[Function], Function]:
    """As `jit`, for a function that calls compiled functions of other source files.

    Numba copies their machine code into the caller's, but recompiles only when the caller's own file changes: with
    this decorator a change of one of `files` recompiles the caller too.
    """
    return lambda function: _compile(function, files)


def _compile(function: Function, files: tuple[str, ...]) -> Function:
    compiled = numba.njit(**_OPTIONS)(function)
    if not _can_be_kept(function):
        return cast(Function, compiled)
    with suppress(RuntimeError):  # Numba found no folder that it can write: compile in each process instead
        compiled._cache = _ForgivingCache(function, files)  # as cache=True does, but with this class
    return cast(Function, compiled)


def _can_be_kept(function: Callable[..., Any]) -> bool:
    """Whether Numba has a proper folder for its cache; for a user without a home it would create one named `~`."""
    folder = Path(function.__code__.co_filename).parent
    beside = folder / "__pycache__" if (folder / "__pycache__").exists() else folder
    chosen = numba.config.CACHE_DIR  # type: ignore[attr-defined]  # made from the environment
    return bool(chosen) or os.access(beside, os.W_OK) or platform_cache_folder() is not None


class _ForgivingCache(FunctionCache):
    """Numba's cache of machine code; damaged files or a full disk cost a recompilation and raise no error."""

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
def report_compilation(report: Callable[[bool], None]) -> Iterator[None]:
    """Call `report` before the first compilation within this context; loading machine code from disk does not count.

    The argument of `report` is whether the code will be kept on disk. Any thread that runs kernels may call it.
    """
    with install_listener("numba:compile", _FirstCompilation(report)):
        yield


class _FirstCompilation(Listener):
    def __init__(self, report: Callable[[bool], None]) -> None:
        self._report = report
        self._reported = False

    def on_start(self, event: Event) -> None:
        if not self._reported:  # without a race: Numba compiles under a lock
            self._reported = True
            self._report(event.data["dispatcher"].stats.cache_path is not None)

    def on_end(self, event: Event) -> None:
        """Do nothing: only the start of the first compilation is reported."""
