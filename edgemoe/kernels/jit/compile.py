"""The one way in which the project compiles a function with Numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {
    "nogil": True,  # callers run these on threads of their own
    "fastmath": False,  # sums keep their order, and so their bits
    "error_model": "numpy",  # a division by zero gives infinity: a branch would keep loops from vectorising
}


def jit(function: Function) -> Function:
    """Compile at the first call and keep the machine code on disk, where a folder for it can be written."""
    try:
        return cast(Function, numba.njit(cache=True, **_OPTIONS)(function))
    except RuntimeError:  # Numba found no folder that it can write: compile in each process instead
        return cast(Function, numba.njit(**_OPTIONS)(function))
