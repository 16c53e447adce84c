"""Measures what a device does for a model: whether its bits are the processor's, its rates, and its tokens a second.

Before that, opening the device has compared every kernel with the processor's on random numbers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgemoe.bench.spread import Spread
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import UsageError
from edgemoe.kernels.device.backend import DeviceBackend
from edgemoe.kernels.device.places import GROUP_BYTES
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
PROMPT_TOKENS, DECODED_TOKENS = 256, 128
ROUNDS = 3
QUARTERS = (25, 50, 75)
"""Percent of a device's budget that are measured too, where that is more than the least and less than it uses."""


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
class DeviceWay:
    """A model on the processor alone, or beside a device with some budget."""

    name: str
    budget_bytes: int | None
    """The device's; None on the processor alone, and where the device shares the processor's memory."""
    prompt_tokens_per_s: Spread
    tokens_per_s: Spread
    slot_share: float
    """The share of the choices of generated tokens that device slots served, in the last round."""


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
    ways: list[DeviceWay]
    """In the order in which each round measures them: the processor alone, then growing budgets."""


def measure_device(model: Path, options: EngineOptions, matrix_bytes: int = MATRIX_BYTES) -> DeviceReport:
    """Compare and measure the device of some options, with parts of its budget too. Raises as `open_engine`."""
    alone = replace(options, device=None, vram=None)
    whole = _run(model, options)
    ways = {"the processor alone": alone, **_budgets(model, options, whole), "the whole budget": options}
    rounds = [{name: _run(model, way) for name, way in ways.items()} for _ in range(ROUNDS)]
    runs = [run for one in rounds for name, run in one.items() if name != "the processor alone"]
    expected = rounds[0]["the processor alone"].logits.view(np.uint32)
    failures = [run.failure for run in (whole, *runs) if run.failure is not None]
    rates = None
    if whole.device is not None:
        with closing(select_backend(options.threads, options.device, options.vram)) as opened:
            assert isinstance(opened, DeviceBackend)
            rates = measure_rates(opened.runtime, matrix_bytes)
    return DeviceReport(
        None if failures else whole.device,
        failures[0] if failures else None,
        rates,
        sum(run.logits.size for run in runs),
        sum(int(np.count_nonzero(run.logits.view(np.uint32) == expected)) for run in runs),
        [_way(name, [one[name] for one in rounds]) for name in ways],
    )


@dataclass(frozen=True, eq=False)
class _Run:
    """The figures of one way in one round."""

    logits: Floats
    prompt_tokens_per_s: float
    tokens_per_s: float
    slot_share: float
    device: str | None
    failure: str | None
    budget_bytes: int | None
    used_bytes: int


def _way(name: str, runs: Sequence[_Run]) -> DeviceWay:
    prompts, tokens = (
        Spread.of(getattr(run, rate) for run in runs) for rate in ("prompt_tokens_per_s", "tokens_per_s")
    )
    return DeviceWay(name, runs[0].budget_bytes, prompts, tokens, runs[-1].slot_share)


def _budgets(model: Path, options: EngineOptions, whole: _Run) -> dict[str, EngineOptions]:
    """Return options with less of a device's memory: all but the routed experts, and quarters of what is more."""
    if whole.budget_bytes is None:
        return {}
    floor = replace(options, vram="floor")
    try:
        least_bytes = _run(model, floor).budget_bytes or 0
    except UsageError:  # the device has less
        return {}
    if least_bytes >= whole.used_bytes:  # without routed experts it is the same
        return {}
    found = {"all but routed experts": floor}
    for percent in QUARTERS:
        budget_bytes = whole.budget_bytes * percent // 100
        if least_bytes < budget_bytes < whole.used_bytes:
            found[f"{percent} % of the budget"] = replace(options, vram=budget_bytes)
    return found


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
    numbers = (rows, groups, panel_bytes, 0, 1.0, 0, 1, rows)

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


def _run(model: Path, options: EngineOptions) -> _Run:
    """Compute a prompt and greedy tokens, and time both after some of each."""
    with open_engine(open_store(model), options) as engine:
        random = np.random.default_rng(0)
        tokens = min(PROMPT_TOKENS, engine.context_length - DECODED_TOKENS)
        prompt = random.integers(0, engine.spec.vocab_size, tokens).tolist()
        logits = [engine.forward(prompt).copy()]
        engine.rewind(0)
        began = time.perf_counter()
        logits.append(engine.forward(prompt).copy())
        prompt_s = time.perf_counter() - began
        engine.turn.begin_decoding()
        device = engine.backend if isinstance(engine.backend, DeviceBackend) else None
        for number in range(DECODED_TOKENS):
            if number == DECODED_TOKENS // 2:
                began, hits, uses = time.perf_counter(), _slot_hits(device), int(engine.expert_uses.sum())
            logits.append(engine.forward([int(logits[-1].argmax())]).copy())
        decode_s = time.perf_counter() - began
        hits, uses = _slot_hits(device) - hits, int(engine.expert_uses.sum()) - uses
        failure = None if device is None or device.failure is None else device.failure.message
        return _Run(
            np.stack(logits),
            tokens / prompt_s,
            (DECODED_TOKENS - DECODED_TOKENS // 2) / decode_s,
            hits / uses if uses else 0.0,
            engine.backend.device,
            failure,
            None if device is None else device.memory.most_bytes,
            0 if device is None else device.memory.used_bytes,
        )


def _slot_hits(device: DeviceBackend | None) -> int:
    return device.tier.hits if device is not None and device.tier is not None else 0
