"""A line on stderr that explains a long wait: kernels or the replay being compiled at their first use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgemoe.session.model import Model


@contextmanager
def report_compilation(model: Model) -> Iterator[None]:
    """Within it, stderr gets one line if the model's kernels must be compiled first."""
    if model.engine.backend.name != "jit":
        yield
        return
    from edgemoe.kernels.jit.compile import report_compilation as reporting

    with reporting(lambda kept: _print("the portable kernels", "a minute", kept)):
        yield


@contextmanager
def report_replay_compilation() -> Iterator[None]:
    """Within it, stderr gets one line if the replay of traces must be compiled first."""
    from edgemoe.kernels.jit.compile import report_compilation as reporting

    with reporting(lambda kept: _print("the replay of traces", "some seconds", kept)):
        yield


def _print(what: str, time: str, kept: bool) -> None:
    often = "once on this machine" if kept else "at every start, as no folder for compiled code is writable"
    print(f"compiling {what} ({often}); this can take {time}", file=sys.stderr, flush=True)
