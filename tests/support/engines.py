"""Engines with a chosen number of expert slots."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgemoe.engine import loaded as loaded_module
from edgemoe.engine.engine import Engine
from edgemoe.engine.lossy import EXACT, LossySettings
from edgemoe.engine.memory import MemoryPlan, plan_memory
from edgemoe.engine.opening import graph_of, model_sizes
from edgemoe.engine.options import EngineOptions
from edgemoe.io.reads import RecordReader, ThreadedReader
from edgemoe.kernels.select import KERNELS_VARIABLE, select_backend
from edgemoe.lab.forced_routing import ForcedRouting
from edgemoe.model.blocks import Attention, CompressedAttention
from edgemoe.model.build import Graph, build_graph
from edgemoe.model.description import build_options, store_spec
from edgemoe.model.spec import ModelSpec
from edgemoe.store.reader import Store

_PLANS: dict[Hashable, MemoryPlan] = {}
"""Memory plans by all that they follow from but the machine's memory: to make one is a third of opening an engine."""


def use_portable_reader(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[Any, int], RecordReader] = ThreadedReader
) -> None:
    """Engines that are opened from now on read with Python threads: so do those without the native library.

    Kernels in C ask the pager in C, which reads with the native reader only; so kernels are Python's too.
    """
    monkeypatch.setenv(KERNELS_VARIABLE, "reference")
    monkeypatch.setattr(loaded_module, "open_reader", make)


def with_windows(spec: ModelSpec, windows: Sequence[int]) -> ModelSpec:
    """The model with other windows, which its weights do not depend on: each layer with attention takes the next."""
    turn = itertools.cycle(windows)
    layers = []
    for layer in spec.layers:
        blocks = tuple(
            dataclasses.replace(block, body=_with_window(block.body, next(turn)))
            if isinstance(block.body, (Attention, CompressedAttention))
            else block
            for block in layer.blocks
        )
        layers.append(dataclasses.replace(layer, blocks=blocks))
    return dataclasses.replace(spec, layers=tuple(layers))


def _with_window(body: Attention | CompressedAttention, window: int) -> Attention | CompressedAttention:
    if isinstance(body, CompressedAttention):
        return dataclasses.replace(body, window=window)
    return dataclasses.replace(body, window=window, chunked=body.chunked and window > 0)


def engine_with_slots(
    store: Path | Store,
    slots: int,
    threads: int | None = 1,
    kv: str | None = None,
    routing: ForcedRouting | None = None,
    lossy: LossySettings = EXACT,
    embedding_resident: bool = True,
    sequences: int = 1,
    context_length: int | None = None,
    undo_tokens: int | None = None,
    chunk_tokens: int | None = None,
    windows: Sequence[int] = (),
    device: str | None = None,
    vram: int | None = None,
    **options: bool | str,
) -> Engine:
    """An engine with `slots` slots in its cache, whose sequences can take back `undo_tokens` tokens by themselves.

    `windows` are those of the layers with attention, in turn, in place of their own.

    A budget in bytes is too coarse for that here: what the interpreter holds is measured, and test runs vary in it.
    """
    store = Store.open(store) if isinstance(store, Path) else store
    spec = lossy.applied_to(store_spec(store) if routing is None else routing.apply_to(store_spec(store)))
    if windows:
        spec = with_windows(spec, windows)
    backend = select_backend(threads, device, vram)
    sizes = model_sizes(store, spec, kv, sequences)

    def graph(effective: LossySettings) -> Graph:
        if undo_tokens is None:
            return graph_of(spec, store, effective, routing)
        assert routing is None
        assert not lossy.on
        return build_graph(spec, dataclasses.replace(build_options(store), undo_tokens=undo_tokens))

    kernels = backend.name, backend.isa, backend.threads, device, vram
    settings = spec, lossy, undo_tokens, repr(sizes), context_length, kernels
    plans = _PLANS if routing is None else {}
    if settings not in plans:
        plans[settings] = plan_memory(graph(lossy), sizes, backend, "auto", context_length)
    plan = dataclasses.replace(plans[settings], slots=slots, embedding_resident=embedding_resident)
    if chunk_tokens is not None:
        plan = dataclasses.replace(plan, chunk_tokens=chunk_tokens)
    effective = lossy.effective(plan.all_resident)
    return Engine(store, graph(effective), plan, backend, EngineOptions(lossy=lossy, **options), routing)  # type: ignore[arg-type]
