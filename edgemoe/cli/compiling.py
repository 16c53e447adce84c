"""A line about what would else be an unexplained wait: kernels that are compiled when they are first used."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgemoe.session.model import Model


@contextmanager
def compiling_told(model: Model) -> Iterator[None]:
    """Within it, stderr gets one line where the model's kernels must be compiled first."""
    if model.engine.backend.name != "jit":
        yield
        return
    from edgemoe.kernels.jit.compile import compiling_told as told

    with told(_tell):
        yield


def _tell(kept: bool) -> None:
    often = "once on this machine" if kept else "at every start, as no folder could be written to keep them in"
    print(f"compiling the portable kernels ({often}); this can take a minute", file=sys.stderr, flush=True)
