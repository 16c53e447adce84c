"""A complete plan for a model: finds the model, measures rates that are not given, and forecasts what budgets buy.

The memory that a run needs besides its model is this process's own size, taken with kernels and tokenizer loaded and
before all that only planning needs. Another program (a benchmark's worker has no tokenizer) needs a little less or
more.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgemoe.bench.expert_rate import measure_experts
from edgemoe.bench.plan import (
    POSITION,
    BudgetForecast,
    HitRateAssumption,
    Planner,
    assume_traced,
    assume_trained,
    assume_uniform,
    dense_parts,
    forecast_budget,
)
from edgemoe.bench.rates import (
    PROBE_BYTES,
    DiskRate,
    file_places,
    measure_disk,
    measure_folder_disk,
    measure_memory,
    measure_store_disk,
)
from edgemoe.bench.speed import MachineRates
from edgemoe.conversion.formats import BY_DEFAULT, FormatChoice
from edgemoe.conversion.hub.cached_gguf import find_cached
from edgemoe.conversion.hub.id import HubId
from edgemoe.engine.beside import BesideModel
from edgemoe.engine.device_plan import DevicePlan
from edgemoe.engine.memory import interpreter_bytes
from edgemoe.errors import SourceError, StoreError, UsageError
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.select import KernelChoice, describe_backend, select_backend
from edgemoe.model.description import store_spec
from edgemoe.session.default_model import find_model
from edgemoe.session.stores import open_store
from edgemoe.session.tokenizer import has_tokenizer, load_library_tokenizer
from edgemoe.store.first_bytes import is_gguf_file
from edgemoe.store.reader import Store

REPORT_VERSION = 1
UNIFORM = "uniform"


@dataclass(frozen=True)
class PlanOptions:
    """Settings of a plan; None for edgemoe's choice or a measurement. Rates are in bytes per second."""

    ram: str | None = None
    context: int | None = None
    threads: int | None = None
    kv: str | None = None
    routing: str | None = None
    """The path of a trace, or `uniform`."""
    experts: str | None = None
    dense: str | None = None
    head: str | None = None
    disk_bytes_per_s: float | None = None
    memory_bytes_per_s: float | None = None
    draft: str | None = None
    """The draft model."""
    device: str | None = None
    vram: str | None = None


@dataclass(frozen=True)
class PlanSource:
    """A model to plan for: an existing store, or one that a conversion would make."""

    name: str
    known_from: str
    store: Store
    tokenizer: bool | None
    """Whether it has a tokenizer; None if that is not known."""
    weights: Sequence[Path] = ()
    """The checkpoint's own files, on whose disk reads can be measured."""


@dataclass(frozen=True)
class Rate:
    """Bytes per second, and where the figure comes from."""

    bytes_per_s: float
    basis: str


@dataclass(frozen=True)
class ModelPlan:
    """Forecasts for a model under one budget, and under others."""

    source: PlanSource
    planner: Planner
    assumption: HitRateAssumption
    memory_rate: Rate
    disk_rate: Rate | None
    """None for a model without routed experts."""
    kernel_bytes_per_s: float
    """Experts that the kernels compute in a second; infinite if that is not known (see `measure_experts`)."""
    kernels: KernelChoice
    forecast: BudgetForecast
    others: Sequence[BudgetForecast]
    device: DevicePlan | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON. Sizes are in bytes, rates in bytes per second."""
        manifest, work = self.source.store.manifest, self.planner.work
        parts = dense_parts(manifest)
        return {
            "edgemoe_plan": REPORT_VERSION,
            "source": self.source.name,
            "known_from": self.source.known_from,
            "store_bytes": manifest.total_bytes,
            "record_bytes": self.source.store.record_bytes,
            "dense_parts": {name: {"formats": formats, "bytes": size} for name, (formats, size) in parts.items()},
            "position": POSITION,
            "bytes_per_token": work.bytes_per_token,
            "kv_bytes_per_position": self.planner.traffic.kv_bytes_per_position,
            "kv_windows": [
                {"window": window or None, "bytes_per_position": size} for window, size in self.planner.traffic.kv_bytes
            ],
            "routed_experts_per_token": work.routed,
            "base_pays_bytes": self.planner.base_pays_bytes(self.forecast.memory),
            "routing": self.assumption.basis,
            "memory_rate": asdict(self.memory_rate),
            "disk_rate": asdict(self.disk_rate) if self.disk_rate else None,
            "kernel_bytes_per_s": self.kernel_bytes_per_s if math.isfinite(self.kernel_bytes_per_s) else None,
            "kernels": asdict(self.kernels),
            "device": None if self.device is None else asdict(self.device),
            "estimates": ["memory.interpreter_bytes", "hit_rates", "missed_bytes_per_token", "limits", "tokens_per_s"],
            **self.forecast.to_json(),
            "other_budgets": [other.to_json() for other in self.others],
        }


def plan_model(source: str | None, options: PlanOptions) -> ModelPlan:
    """The plan for a source: see `find_source`.

    Raises SourceError, StoreError and UsageError for a model that cannot be planned, BudgetError below the floor, with
    the floor in its message.
    """
    cached = None if source is None else _find_cached(source)
    source = source if cached is None else str(cached)
    kernels, backend = describe_backend(options.threads), select_backend(options.threads, options.device, options.vram)
    beside = None
    try:
        interpreter = _interpreter_with_text(source, backend)
        found = find_source(source, FormatChoice(options.experts, options.dense, options.head))
        if found.store.manifest.records.places is not None:  # a run holds what opening the file took, too
            interpreter = _interpreter_with_text(str(found.store.text_folder), backend)
        if options.draft is not None:
            beside = BesideModel(open_store(options.draft), found.store, options.threads)
        planner = Planner(
            found.store,
            store_spec(found.store),
            backend,
            context=options.context,
            kv=options.kv,
            interpreter=interpreter,
            beside=beside,
        )
        memory = planner.memory(options.ram)  # an impossible budget fails before anything is measured
        device = planner.device(memory, options.vram)
        assumption = choose_assumption(options.routing, found)
        memory_rate = _memory_rate(options.memory_bytes_per_s, kernels)
        disk_rate = _disk_rate(options.disk_bytes_per_s, found) if memory.total_experts else None
        given = options.memory_bytes_per_s is not None  # then it may be another machine that is asked about
        kernel_rate = math.inf if given else measure_experts(found.store.manifest, kernels)
        rates = MachineRates(memory_rate.bytes_per_s, disk_rate.bytes_per_s if disk_rate else math.inf, kernel_rate)

        def forecast(budget_bytes: int) -> BudgetForecast:
            return forecast_budget(planner.memory(budget_bytes), planner.work, assumption, rates)

        others = [forecast(budget) for budget in planner.other_budgets(memory.budget_bytes)]
        this = forecast_budget(memory, planner.work, assumption, rates)
    finally:
        backend.close()
        if beside is not None:
            beside.close()
    return ModelPlan(found, planner, assumption, memory_rate, disk_rate, kernel_rate, kernels, this, others, device)


def find_source(source: str | None, choice: FormatChoice = BY_DEFAULT) -> PlanSource:
    """The model that a text names: a store (None: the bundled one), a GGUF file, or what `forecast_store` takes.

    A GGUF file is planned as it is opened, unless formats are given or it has to be converted. Raises UsageError for
    formats of a store, else as `Store.open` and `forecast_store`.
    """
    folder = _store_folder(source)
    as_it_is = None if folder is not None or choice != BY_DEFAULT else _file_as_it_is(source or "")
    if as_it_is is not None:
        known_from = "the file, opened as it is"
        return PlanSource(str(as_it_is.path), known_from, as_it_is, has_tokenizer(as_it_is.text_folder))
    if folder is None:
        from edgemoe.conversion.forecast import forecast_store

        assert source is not None
        forecast = forecast_store(source, **vars(choice))
        return PlanSource(forecast.source, forecast.known_from, forecast.store, None, forecast.weights)
    if choice != BY_DEFAULT:
        raise UsageError(
            f"`experts`, `dense` and `head` choose formats for a checkpoint; {folder} is a store, whose formats are"
            " fixed.",
            "Leave them out, or give the checkpoint that it was made from.",
        )
    return PlanSource(str(folder), "the store", Store.open(folder), has_tokenizer(folder))


def _find_cached(source: str) -> Path | None:
    hub_id = HubId.of_model(source)
    return None if hub_id is None else find_cached(hub_id)


def _file_as_it_is(source: str) -> Store | None:
    """The GGUF file that a text names, if it can be opened as it is; else a conversion is planned."""
    if not is_gguf_file(Path(os.path.expanduser(source))):  # noqa: PTH111 (it leaves an unknown ~user as it is)
        return None
    with contextlib.suppress(SourceError):
        return open_store(source)
    return None


def _store_folder(source: str | None) -> Path | None:
    if source is None:
        return find_model(None)
    with contextlib.suppress(StoreError):
        return find_model(source)
    return None


def choose_assumption(routing: str | None, source: PlanSource) -> HitRateAssumption:
    """The assumption that the user names; else uniform for random weights, an interval for possibly trained ones."""
    if routing == UNIFORM or (routing is None and source.tokenizer is False):
        return assume_uniform()
    return assume_trained() if routing is None else assume_traced(Path(routing))


def _interpreter_with_text(source: str | None, backend: Backend) -> int:
    """Memory of this process with the model's tokenizer loaded, if the tokenizer is at hand."""
    folder = _store_folder(source) or Path(source or "")
    tokenizer = None
    with contextlib.suppress(StoreError, OSError, ValueError):
        tokenizer = load_library_tokenizer(folder)
    held = interpreter_bytes(backend)
    del tokenizer
    return held


def _memory_rate(given: float | None, kernels: KernelChoice) -> Rate:
    if given is not None:
        return Rate(given, "as given")
    rate = measure_memory(kernels)
    return Rate(rate.bytes_per_s, f"measured with {kernels.threads} threads")


def _disk_rate(given: float | None, source: PlanSource) -> Rate:
    """The given rate; else measured on the store's files, the checkpoint's, or a file written to the current folder."""
    if given is not None:
        return Rate(given, "as given")
    record_bytes = source.store.record_bytes
    if source.weights:
        places = file_places(source.weights, record_bytes)
        if sum(place.length for place in places) >= PROBE_BYTES:
            return _rate_with_basis(measure_disk(places), "on the checkpoint's disk")
    elif source.tokenizer is not None:
        return _rate_with_basis(measure_store_disk(source.store), "on the store's disk")
    try:
        return _rate_with_basis(measure_folder_disk(Path.cwd(), record_bytes), f"on the disk of {Path.cwd()}")
    except OSError as error:
        raise UsageError(
            f"{Path.cwd()}: the disk's rate cannot be measured here ({error.strerror or error}).",
            "Run it in a folder where you may write files, or give `disk_rate`.",
        ) from None


def _rate_with_basis(rate: DiskRate, where: str) -> Rate:
    how = "direct reads" if rate.direct else "reads through the page cache, which may be faster than the disk,"
    return Rate(rate.bytes_per_s, f"measured {where}: {how} by {rate.readers} threads")
