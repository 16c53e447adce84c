"""Opens an engine: from a store, a budget and options to a model that is ready to run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgemoe.engine.budget import check_floor, check_machine, has_ample_room
from edgemoe.engine.engine import Engine
from edgemoe.engine.lossy import LossySettings
from edgemoe.engine.memory import interpreter_bytes, least_bytes, plan_memory
from edgemoe.engine.options import DEFAULTS, EngineOptions
from edgemoe.engine.part_sizes import Beside, ModelSizes
from edgemoe.engine.scratch import WeightFormats
from edgemoe.engine.workspace import KvFormat
from edgemoe.errors import StoreError, UsageError
from edgemoe.experts.disk_rows import saved_bytes, table_bytes
from edgemoe.kernels.select import select_backend
from edgemoe.model.build import Graph, build_graph
from edgemoe.model.description import build_options, has_planes, store_spec
from edgemoe.model.spec import ModelSpec
from edgemoe.store.reader import Store
from edgemoe.store.side_files import check_side_files

if TYPE_CHECKING:
    from edgemoe.engine.hooks import RoutingSource


def open_engine(
    model: str | os.PathLike[str] | Store,
    options: EngineOptions = DEFAULTS,
    *,
    routing: RoutingSource | None = None,
    meanwhile: Callable[[], None] | None = None,
    beside: Beside | None = None,
) -> Engine:
    """Open a store, or take an open one, and make it ready to run within a memory budget.

    `routing`, if given, replaces the routers: it supplies experts, their number per token and their weights, and
    guesses if it has any. `meanwhile` is called while weights are read, where the budget has ample room; the plan
    counts the memory that it takes. `beside` is a draft model (`beside.py`) that gets its share, and is opened by the
    caller afterwards. Raises StoreError, BudgetError, UsageError, and any error that `meanwhile` raises.
    """
    if routing is not None and options.lossy.on:
        raise UsageError("Forced routing leaves lossy settings nothing to decide.", "Leave one of them out.")
    store = model if isinstance(model, Store) else Store.open(Path(model))
    spec = store_spec(store)
    refuse_head(store, spec)
    if routing is not None and spec.encoder is not None:
        raise UsageError(
            "Forced routing is for models without an encoder, whose tokens have routing of their own.",
            "Leave the routing out.",
        )
    spec = options.lossy.applied_to(spec if routing is None else routing.apply_to(spec))
    check_planes(store, options.lossy)
    graph = graph_of(spec, store, options.lossy, routing)
    sizes = model_sizes(store, spec, options.kv, options.sequences, options.most_drafts, beside)
    backend = select_backend(
        options.threads, options.device, options.vram
    )  # before the plan, which measures the backend's libraries
    dense = embedding_resident = None
    try:
        # Checked before anything large is read; growth of the interpreter can only raise the floor.
        check_floor(least_bytes(graph, sizes, backend, options.context_length))
        if meanwhile is not None:
            if has_ample_room(options.ram, interpreter_bytes(backend) + sizes.dense_bytes):
                embedding_resident = (
                    not sizes.embedding_bytes
                    or plan_memory(graph, sizes, backend, options.ram, options.context_length).embedding_resident
                )
                dense = store.begin_dense(embedding_resident)
            check_side_files(store)
            meanwhile()
            if dense is not None:
                dense.wait()  # all its pages are in RAM now, so the plan can tell them from the interpreter's
        interpreter = interpreter_bytes(backend) - (0 if dense is None else dense.bytes)
        check_floor(least_bytes(graph, sizes, backend, options.context_length, interpreter))
        memory = plan_memory(
            graph, sizes, backend, options.ram, options.context_length, interpreter, embedding_resident
        )
        check_machine(memory.planned_bytes, memory.budget_bytes)
        lossy = options.lossy.effective(memory.all_resident)
        if lossy != options.lossy:
            graph = graph_of(spec, store, lossy, routing)
        if options.vram == "floor":
            from edgemoe.engine.device_plan import plan_device

            plan_device(graph, sizes.formats, backend, memory, options.vram)
    except BaseException:
        if dense is not None:
            dense.close()
        backend.close()
        raise
    return Engine(store, graph, memory, backend, options, routing, dense)


def refuse_head(store: Store, spec: ModelSpec) -> None:
    """Raise UsageError for an MTP head, which is no model of its own."""
    if spec.mtp:
        raise UsageError(
            f"{store.path}: an MTP head, which guesses for the model that it was converted from, and is none itself.",
            "Open that model, and name this one as its `draft`.",
        )


def check_planes(store: Store, lossy: LossySettings) -> None:
    """Raise UsageError where missed experts are to be computed from bases that a store does not have."""
    if lossy.from_base and not has_planes(store):
        raise UsageError(
            f"`on_miss={lossy.on_miss}`: expected experts with a base and a residual; those of {store.path} have none.",
            "Convert the checkpoint with two formats, such as `experts=n1+n3`, or leave it out.",
        )


def graph_of(spec: ModelSpec, store: Store, lossy: LossySettings, routing: RoutingSource | None = None) -> Graph:
    """The program of a store's model under lossy settings, whose routing may come from a source, not the routers.

    Raises StoreError for a model whose blocks do not belong where they are.
    """
    options = replace(
        build_options(store),
        forced_routing=routing is not None,
        forced_guesses=routing is not None and routing.recall is not None,
        cache_aware_routing=lossy.cache_aware_routing,
        drop_cold=lossy.drop_cold,
        from_base=lossy.from_base,
    )
    try:
        return build_graph(spec, options)
    except ValueError as problem:
        raise StoreError(
            f"The model's description contradicts itself: {problem}.",
            "The store was altered: copy it again, or convert the checkpoint again.",
        ) from None


def model_sizes(
    store: Store,
    spec: ModelSpec,
    kv: str | None = None,
    sequences: int = 1,
    drafts: int = 0,
    beside: Beside | None = None,
) -> ModelSizes:
    """The sizes of a store that the memory plan needs. Raises UsageError for an unknown KV format (`open_engine`)."""
    shared = spec.tied_embeddings or spec.mtp or (beside is not None and beside.shares_embedding)
    embedding_bytes = 0 if shared else saved_bytes(store)
    formats = WeightFormats.of(store)
    kv_format = _kv_format(store, kv)
    neurons = store.neurons
    return ModelSizes(
        store.dense_bytes() + table_bytes(store),
        store.slot_bytes,
        spec.total_experts if neurons is None else neurons.pages,
        kv_format,
        formats,
        embedding_bytes,
        sequences,
        store.staging_bytes,
        max((len(layout.parts) for layout in store.manifest.layouts), default=0),
        spec.neurons_at_once,
        drafts,
        beside,
    )


def _kv_format(store: Store, kv: str | None) -> KvFormat:
    """The requested format; by default float16, or float32 for a store with f32 weights. Raises UsageError."""
    if kv is None:
        return "f32" if store.dense_format == "f32" else "f16"
    choices: dict[str, KvFormat] = {"f16": "f16", "q8": "q8"}
    if kv not in choices:
        raise UsageError(f"kv: expected {' or '.join(choices)}, found {kv}.", "Leave it out for f16.")
    return choices[kv]
