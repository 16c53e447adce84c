"""Measures what a device does for a model: whether its bits are the processor's, its rates, and its tokens a second.

Before that, opening the device has compared every kernel with the processor's on random numbers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.device.backend import DeviceBackend
from edgemoe.kernels.device.lowering import GROUP_BYTES
from edgemoe.kernels.device.runtime import Block, Place, Runtime
from edgemoe.kernels.device.table import product_kernel
from edgemoe.kernels.formats import FORMATS, GROUP_COLUMNS, PANEL_ROWS, group_count
from edgemoe.kernels.operations import Floats
from edgemoe.kernels.select import select_backend
from edgemoe.session.stores import open_store

MATRIX_BYTES = 256 << 20
"""More than a device has of caches; less where it has not four times as much free."""
COLUMNS = 4096
REPEATS = 5
PROMPT_TOKENS, DECODED_TOKENS = 32, 32


@dataclass(frozen=True)
class DeviceRates:
    """Rates in bytes per second, medians of some runs; those of kernels count what they read and write."""

    upload: float
    download: float
    copy: float
    """The rate of a kernel that does nothing but read numbers and write them."""
    product: float
    """The rate of the product of a q4 matrix with one token, which reads the matrix."""


@dataclass(frozen=True)
class DeviceReport:
    """A device beside the processor, on one model."""

    device: str | None
    """Its name; None where none works, or once it has failed."""
    failure: str | None
    """Why it was used no more, if it failed."""
    rates: DeviceRates | None
    logits: int
    equal_logits: int
    """How many logits have the processor's bits; all must."""
    tokens_per_s: float
    processor_tokens_per_s: float


def measure_device(model: Path, options: EngineOptions, matrix_bytes: int = MATRIX_BYTES) -> DeviceReport:
    """Compare and measure the device of some options. Raises as `open_engine`."""
    alone, processor_tokens_per_s, _ = _decoded(model, replace(options, device=None, vram=None))
    beside, tokens_per_s, backend = _decoded(model, options)
    failure = backend.failure if isinstance(backend, DeviceBackend) else None
    rates = None
    if backend.device is not None:
        with closing(select_backend(options.threads, options.device, options.vram)) as opened:
            assert isinstance(opened, DeviceBackend)
            rates = measure_rates(opened.runtime, matrix_bytes)
    equal = int(np.count_nonzero(alone.view(np.uint32) == beside.view(np.uint32)))
    told = None if failure is None else failure.message
    return DeviceReport(backend.device, told, rates, alone.size, equal, tokens_per_s, processor_tokens_per_s)


def measure_rates(runtime: Runtime, matrix_bytes: int = MATRIX_BYTES) -> DeviceRates:
    """Measure a device's copies, and two of its kernels. Raises DeviceError if it fails."""
    fmt, groups = FORMATS["q4"], group_count(COLUMNS)
    panel_bytes = fmt.panel_bytes(COLUMNS)
    panels = max(1, min(matrix_bytes, runtime.free_bytes() // 4) // panel_bytes)
    rows, size = panels * PANEL_ROWS, panels * panel_bytes
    matrix, host = Place(Block(runtime.allocate(size)), 0), np.zeros(size, np.uint8)
    token = Place(Block(runtime.allocate(groups * (GROUP_COLUMNS + GROUP_BYTES))), 0)
    output = Place(Block(runtime.allocate(4 * rows)), 0)
    runtime.upload(token, np.zeros(groups * (GROUP_COLUMNS + GROUP_BYTES), np.uint8))
    per_group = Place(token.block, groups * GROUP_COLUMNS)
    numbers = (rows, groups, panel_bytes, 0, 1.0, 0)

    def rate(moved: int, run: Callable[[], object]) -> float:
        times = []
        for _ in range(REPEATS + 1):  # the first warms up
            began = time.perf_counter()
            run()
            runtime.finish()
            times.append(time.perf_counter() - began)
        return moved / statistics.median(times[1:])

    return DeviceRates(
        rate(size, lambda: runtime.upload(matrix, host)),
        rate(size, lambda: runtime.download(matrix, size)),
        rate(2 * size, lambda: runtime.launch("clip", (matrix, 1.0), size // 4)),
        rate(
            size,
            lambda: runtime.launch(product_kernel(fmt), (matrix, token, per_group, None, output, *numbers), rows),
        ),
    )


def _decoded(model: Path, options: EngineOptions) -> tuple[Floats, float, Backend]:
    """Return the logits of a prompt's end and of greedy tokens, tokens per second, and the backend, which is closed."""
    with open_engine(open_store(model), options) as engine:
        random = np.random.default_rng(0)
        prompt = random.integers(0, engine.spec.vocab_size, PROMPT_TOKENS).tolist()
        logits = [engine.forward(prompt).copy()]
        began = time.perf_counter()
        for _ in range(DECODED_TOKENS):
            logits.append(engine.forward([int(logits[-1].argmax())]).copy())
        return np.stack(logits), DECODED_TOKENS / (time.perf_counter() - began), engine.backend
