"""Memory plans of a store as a run would make them, without running it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from edgemoe.engine.memory import MemoryPlan, plan_memory
from edgemoe.engine.opening import model_sizes, refuse_head
from edgemoe.engine.part_sizes import ModelSizes
from edgemoe.errors import StoreError
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.select import select_backend
from edgemoe.model.build import Graph, build_graph
from edgemoe.model.description import build_options, store_spec
from edgemoe.session.tokenizer import has_tokenizer, load_library_tokenizer
from edgemoe.store.reader import Store


@contextlib.contextmanager
def held_as_in_a_run(store: Store) -> Iterator[tuple[Graph, ModelSizes, Backend]]:
    """Provide the inputs of a memory plan. Inside this context the process holds the memory that a run holds beside the
    model, which plans include.

    Raises StoreError, and UsageError for an MTP head.
    """
    spec = store_spec(store)
    refuse_head(store, spec)
    tokenizer = None
    if has_tokenizer(store.text_folder):
        with contextlib.suppress(StoreError):  # a store whose tokenizer is damaged has a floor too
            tokenizer = load_library_tokenizer(store.text_folder)
    backend = select_backend()
    try:
        yield build_graph(spec, build_options(store)), model_sizes(store, spec), backend
    finally:
        backend.close()
        del tokenizer


def floor_plan(store: Store) -> MemoryPlan:
    """The plan for the least budget that a store runs in. Raises as `held_as_in_a_run`."""
    with held_as_in_a_run(store) as (graph, sizes, backend):
        return plan_memory(graph, sizes, backend, "floor")
