"""Sizes of the parts of a memory plan: workspace, keys and values, fixed state and its snapshots."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from edgemoe.engine.scratch import WeightFormats, step_scratch_bytes
from edgemoe.engine.workspace import (
    LEAST_SNAPSHOTS,
    SNAPSHOT_SHARE,
    KvFormat,
    bounding_window,
    bytes_of,
    encoder_work_bytes,
    fixed_row_bytes,
    kept_bytes,
    page_count,
    rope_bytes,
    snapshot_bytes,
    state_bytes,
    work_bytes,
)
from edgemoe.kernels.backend import Backend
from edgemoe.model.build import Graph
from edgemoe.model.graph import Window

OBJECTS_BYTES = 1 << 20
"""Room for the Python objects that describe a step: operations, views, programs."""
POSITION_OBJECT_BYTES = 64
"""Room for the Python objects that describe a position: its token's id, and its share of a page's hash and places."""


class Beside(Protocol):
    """A draft model, as the plan of the model sees it that it is opened beside."""

    shares_embedding: bool
    """Whether it needs the model's embedding, which then stays in RAM."""

    def planned_bytes(self, context_length: int) -> int:
        """The bytes that it takes beside a model with such a context."""


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a store that the memory plan needs: in bytes, except the counts."""

    dense_bytes: int
    slot_bytes: int
    total_experts: int
    kv_format: KvFormat
    formats: WeightFormats
    embedding_bytes: int = 0
    """Resident bytes saved where the embedding stays on disk; 0 if it cannot."""
    sequences: int = 1
    """How many sequences may be open at a time, each with a context of its own."""
    staging_bytes: int = 0
    """Bytes of the buffer from which a reader thread lands records in parts; 0 where records land as they are."""
    record_parts: int = 0
    """How many parts a record has at most; 0 where records land as they are."""
    neurons_at_once: int = 0
    """How many neurons a token uses in a layer, where experts are single neurons: slots then hold pages of them."""
    drafts: int = 0
    """How many guessed tokens a step may have for each sequence."""
    beside: Beside | None = None
    """The draft model that is opened beside the model (`beside.py`); None without one."""


@dataclass(frozen=True)
class WindowPlan:
    """The keys and values of all layers with one window."""

    window: int
    kept_bytes: int
    whole_bytes: int
    """The bytes that the whole context would take."""


def kv_cache_bytes(
    graph: Graph, chunk_tokens: int, context_length: int, kv_format: KvFormat, sequences: int = 1
) -> int:
    """Bytes of keys and values of every layer and sequence, and of the tables of rotary positions."""
    return state_bytes(graph, chunk_tokens, context_length, kv_format, sequences) + rope_bytes(graph, context_length)


def window_plans(
    graph: Graph, chunk_tokens: int, context_length: int, kv_format: KvFormat, sequences: int = 1
) -> tuple[WindowPlan, ...]:
    """Windows whose layers keep less than the whole context, each with what its layers keep."""
    sizes = chunk_tokens, context_length, kv_format, sequences
    plans: dict[Window, WindowPlan] = {}
    for value in graph.state:
        window = bounding_window(value.window, chunk_tokens, context_length, sequences)
        if window is not None:
            known = plans.get(window) or WindowPlan(window.size, 0, 0)
            whole_bytes = bytes_of(replace(value, window=None), *sizes)
            plans[window] = WindowPlan(
                window.size, known.kept_bytes + bytes_of(value, *sizes), known.whole_bytes + whole_bytes
            )
    return tuple(plans.values())


def snapshot_count(graph: Graph, context_length: int, kv_format: KvFormat, sequences: int = 1) -> int:
    """How many snapshots of fixed state are kept: at most one for each page, and no more than their bytes are worth."""
    one = snapshot_bytes(graph)
    if not one:
        return 0
    worth = int(state_bytes(graph, 0, context_length, kv_format, sequences) * SNAPSHOT_SHARE) // one
    return max(LEAST_SNAPSHOTS * sequences, min(worth, page_count(context_length) * sequences))


def fixed_state_bytes(graph: Graph, context_length: int, kv_format: KvFormat, sequences: int = 1) -> int:
    """Bytes of the fixed state of every sequence, and of its snapshots."""
    snapshots = snapshot_count(graph, context_length, kv_format, sequences)
    return sequences * fixed_row_bytes(graph) + snapshots * snapshot_bytes(graph)


def draft_model_bytes(sizes: ModelSizes, context_length: int) -> int:
    """Bytes of the draft model beside a model; 0 without one."""
    return 0 if sizes.beside is None else sizes.beside.planned_bytes(context_length)


def workspace_bytes(graph: Graph, sizes: ModelSizes, backend: Backend, chunk_tokens: int, context_length: int) -> int:
    """Bytes of activations (`workspace.py`) and of the backend's scratch, for chunks of `chunk_tokens` tokens.

    Added to these are the Python objects of each sequence: those of its positions, and the logits of two steps, since
    the caller may hold those of one while the next is run; each with a row for every guessed token.
    """
    values = max(work_bytes(graph, chunk_tokens), encoder_work_bytes(graph, context_length))
    values += kept_bytes(graph, chunk_tokens, context_length, sizes.sequences)
    scratch = step_scratch_bytes(graph, sizes.formats, backend, chunk_tokens, context_length, sizes.kv_format)
    of_sequence = context_length * POSITION_OBJECT_BYTES + 2 * 4 * (1 + sizes.drafts) * graph.spec.vocab_size
    return values + scratch + OBJECTS_BYTES + sizes.sequences * of_sequence
