"""The memory plan: what a model needs at least, and how a budget (`budget.py`) is shared out.

Everything counts: the interpreter with its libraries (measured), the weights that every token needs,
activations and kernel scratch, the KV cache, fixed state with its snapshots where a model has some, a draft model with
all that it needs where one is opened, and the expert slots with the tables about them, which take the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgemoe.engine.budget import budget_of
from edgemoe.engine.part_sizes import (
    ModelSizes,
    WindowPlan,
    draft_model_bytes,
    fixed_state_bytes,
    kv_cache_bytes,
    snapshot_count,
    window_plans,
    workspace_bytes,
)
from edgemoe.engine.workspace import KvFormat, state_bytes, work_bytes, written_once_bytes
from edgemoe.errors import BudgetError, UsageError
from edgemoe.experts.neuron_pages import pager_bytes
from edgemoe.experts.opening import READER_THREADS, cache_bytes, thread_staging_bytes
from edgemoe.kernels.backend import Backend
from edgemoe.model.build import Graph
from edgemoe.process import rss_bytes
from edgemoe.sizes import format_size

INTERPRETER_GROWTH_BYTES = 32 << 20
"""Room for modules and objects that the interpreter still loads after the budget was shared out."""
LEAST_CONTEXT_TOKENS = 512
DEFAULT_CONTEXT_TOKENS = 4096
CHUNK_TOKENS = (2048, 1024, 512, 256, 128, 64, 32, 16, 8)
"""The numbers of tokens of which a run may have at most one."""
LARGEST_RESIDENT_CHUNK_TOKENS = 512
"""More at a time are no faster where all experts are in RAM; where they are not, every run reads most of them again."""
LEAST_SLOTS_LEFT = 31 / 32
"""The share of its slots that a model keeps where chunks are larger than that: decoding must not pay for prompts."""


@dataclass(frozen=True)
class MemoryPlan:
    """How a budget is shared out."""

    budget_bytes: int
    floor_bytes: int
    interpreter_bytes: int
    dense_bytes: int
    workspace_bytes: int
    kv_cache_bytes: int
    slot_bytes: int
    slots: int
    total_experts: int
    context_length: int
    chunk_tokens: int
    kv_format: KvFormat
    sequences: int = 1
    embedding_resident: bool = True
    """Whether the embedding is in RAM; if not, tokens' rows are read on demand, and `dense_bytes` is without it."""
    cache_table_bytes: int = 0
    """Bytes of the tables that say which expert is in which slot; 0 where all experts are resident."""
    fixed_state_bytes: int = 0
    """Bytes that sequences keep whatever the number of their tokens, snapshots included."""
    snapshots: int = 0
    """How many snapshots of fixed state there is room for."""
    windows: tuple[WindowPlan, ...] = ()
    """Layers that keep less than the whole context, by window; their bytes are part of `kv_cache_bytes`."""
    staging_bytes: int = 0
    """Bytes of the buffers from which all reader threads land records in parts."""
    input_bytes: int = 0
    """Bytes of the keys and values that an encoder writes once for each sequence's input."""
    drafts: int = 0
    """How many guessed tokens a step has room for, for each sequence."""
    draft_model_bytes: int = 0
    """Bytes of the draft model, all of whose weights are in RAM; 0 without one."""

    @property
    def all_resident(self) -> bool:
        """Whether every expert has a slot, so that no expert is read after the start."""
        return self.slots >= self.total_experts

    @property
    def planned_bytes(self) -> int:
        """The sum of all parts; at most the budget."""
        return (
            self.interpreter_bytes
            + self.dense_bytes
            + self.workspace_bytes
            + self.kv_cache_bytes
            + self.fixed_state_bytes
            + self.input_bytes
            + self.draft_model_bytes
            + self.experts_bytes
        )

    @property
    def experts_bytes(self) -> int:
        """Bytes of the expert slots, of the tables about them, and of the buffers from which records land."""
        return self.slot_bytes * self.slots + self.cache_table_bytes + self.staging_bytes


def interpreter_bytes(backend: Backend) -> int:
    """The memory that this process holds now, plus the expected growth of interpreter and backend."""
    return rss_bytes() + INTERPRETER_GROWTH_BYTES + backend.growth_bytes


def plan_memory(
    graph: Graph,
    sizes: ModelSizes,
    backend: Backend,
    ram: str | int | None,
    context_length: int | None = None,
    interpreter: int | None = None,
    embedding_resident: bool | None = None,
) -> MemoryPlan:
    """Share out a budget: bytes, a size as text, `floor`, or `auto` (also None).

    The embedding stays on disk, where it can, unless everything else fits beside it: a token reads one row of it, but
    whole experts in every layer. The backend reports the size of its scratch, and its own expected growth.
    `interpreter` gives the bytes to plan for the interpreter, where that is not the memory that this process holds
    now; `embedding_resident` says whether the embedding is in RAM, where that is decided already. Raises BudgetError
    below the floor, naming it, and UsageError for an invalid budget.
    """
    _check_context(graph, context_length)
    if interpreter is None:
        interpreter = interpreter_bytes(backend)
    if not sizes.embedding_bytes:
        embedding_resident = True
    if embedding_resident is not None:
        least = _Needs.of(graph, sizes, backend, context_length, interpreter, embedding_resident)
        return _share_out(least, budget_of(ram, least.floor_bytes))
    least = _Needs.of(graph, sizes, backend, context_length, interpreter, embedding_resident=False)
    budget_bytes = budget_of(ram, least.floor_bytes)
    without = _share_out(least, budget_bytes)
    least_with = _Needs.of(graph, sizes, backend, context_length, interpreter, embedding_resident=True)
    if budget_bytes < least_with.floor_bytes:
        return without
    whole = _share_out(least_with, budget_bytes)
    costs_nothing = (whole.context_length, whole.chunk_tokens) == (without.context_length, without.chunk_tokens)
    return replace(whole, floor_bytes=least.floor_bytes) if whole.all_resident and costs_nothing else without


def least_bytes(
    graph: Graph,
    sizes: ModelSizes,
    backend: Backend,
    context_length: int | None = None,
    interpreter: int | None = None,
) -> int:
    """The smallest budget that a model needs, which is the floor of `plan_memory` with these arguments.

    Raises UsageError for a context that the model does not have.
    """
    _check_context(graph, context_length)
    if interpreter is None:
        interpreter = interpreter_bytes(backend)
    embedding_resident = not sizes.embedding_bytes
    return _Needs.of(graph, sizes, backend, context_length, interpreter, embedding_resident).floor_bytes


@dataclass(frozen=True)
class _Needs:
    """The sizes that a model needs at least, and the most that it could use."""

    graph: Graph
    sizes: ModelSizes
    backend: Backend
    interpreter_bytes: int
    embedding_resident: bool
    least_context: int
    most_context: int
    least_workspace_bytes: int
    least_slots: int
    least_experts_bytes: int
    floor_bytes: int
    """The smallest budget."""

    @classmethod
    def of(
        cls,
        graph: Graph,
        sizes: ModelSizes,
        backend: Backend,
        context_length: int | None,
        interpreter: int,
        embedding_resident: bool,
    ) -> _Needs:
        default_context = min(DEFAULT_CONTEXT_TOKENS, *graph.longest_contexts)
        least_context = context_length or min(LEAST_CONTEXT_TOKENS, default_context)
        least_workspace_bytes = workspace_bytes(graph, sizes, backend, CHUNK_TOKENS[-1], least_context)
        least_state_bytes = kv_cache_bytes(graph, CHUNK_TOKENS[-1], least_context, sizes.kv_format, sizes.sequences)
        least_state_bytes += fixed_state_bytes(graph, least_context, sizes.kv_format, sizes.sequences)
        least_state_bytes += written_once_bytes(graph, least_context, sizes.kv_format, sizes.sequences)
        least_state_bytes += draft_model_bytes(sizes, least_context)
        least_slots = min(sizes.total_experts, sizes.neurons_at_once or 2 * graph.spec.most_top_k)
        least_experts_bytes = least_slots * sizes.slot_bytes + _table_bytes(graph, sizes, backend, least_slots)
        least_experts_bytes += reading_bytes(sizes, backend)
        dense_bytes = _dense_bytes(sizes, embedding_resident)
        return cls(
            graph,
            sizes,
            backend,
            interpreter,
            embedding_resident,
            least_context,
            context_length or default_context,
            least_workspace_bytes,
            least_slots,
            least_experts_bytes,
            interpreter + dense_bytes + least_workspace_bytes + least_state_bytes + least_experts_bytes,
        )


def _check_context(graph: Graph, context_length: int | None) -> None:
    """Raise UsageError for a context that the model does not have."""
    spec = graph.spec
    if context_length is not None and not 1 <= context_length <= spec.max_positions:
        reason = ", as edgemoe does not run the indexer of its attention" * (spec.positions_limit == "indexer")
        raise UsageError(
            f"A context of {context_length} tokens was asked for; this model has 1 to {spec.max_positions}{reason}.",
            "Choose a context length within that range.",
        )


def _dense_bytes(sizes: ModelSizes, embedding_resident: bool) -> int:
    return sizes.dense_bytes - (0 if embedding_resident else sizes.embedding_bytes)


def _table_bytes(graph: Graph, sizes: ModelSizes, backend: Backend, slots: int) -> int:
    """Bytes of the tables of an expert cache; 0 where the slots hold all experts, so that there is no cache."""
    if slots >= sizes.total_experts:
        return 0
    if sizes.neurons_at_once:
        return pager_bytes(slots, backend)
    return cache_bytes(slots, len(graph.spec.layers), graph.spec.most_experts, backend, sizes.record_parts)


def reading_bytes(sizes: ModelSizes, backend: Backend) -> int:
    """Bytes of the buffers from which all reader threads land records in parts."""
    return READER_THREADS * thread_staging_bytes(sizes.staging_bytes, backend)


def _most_slots(least: _Needs, left_bytes: int) -> int:
    """Return the number of slots that fit, with the tables about them, which grow with the number of slots."""
    sizes = least.sizes
    if not sizes.slot_bytes or left_bytes >= sizes.total_experts * sizes.slot_bytes:
        return sizes.total_experts if sizes.slot_bytes else 0

    def fits(slots: int) -> bool:
        tables = _table_bytes(least.graph, sizes, least.backend, slots)
        return slots * sizes.slot_bytes + tables <= left_bytes

    most = left_bytes // sizes.slot_bytes
    tables = _table_bytes(least.graph, sizes, least.backend, most)
    slots = max(least.least_slots, (left_bytes - tables) // sizes.slot_bytes)
    while slots < most and fits(slots + 1):  # the tables taken off are those of `most` slots, which are larger
        slots += 1
    return slots


def _share_out(least: _Needs, budget_bytes: int) -> MemoryPlan:
    """Plan a budget in bytes. Raises BudgetError below the floor."""
    plan = _share_in_chunks(least, budget_bytes, LARGEST_RESIDENT_CHUNK_TOKENS)
    if plan.all_resident or plan.chunk_tokens < LARGEST_RESIDENT_CHUNK_TOKENS:  # what has no room for these has none
        return plan
    for chunk in CHUNK_TOKENS[: CHUNK_TOKENS.index(LARGEST_RESIDENT_CHUNK_TOKENS)]:
        larger = _share_in_chunks(least, budget_bytes, chunk)
        same = (larger.chunk_tokens, larger.context_length) == (chunk, plan.context_length)
        if same and larger.slots >= LEAST_SLOTS_LEFT * plan.slots:
            return larger
    return plan


def _share_in_chunks(least: _Needs, budget_bytes: int, most_chunk_tokens: int) -> MemoryPlan:
    """Plan a budget for chunks of at most so many tokens. Raises BudgetError below the floor."""
    graph, sizes, backend = least.graph, least.sizes, least.backend
    floor_bytes, interpreter = least.floor_bytes, least.interpreter_bytes
    if budget_bytes < floor_bytes:
        raise BudgetError(
            f"This model needs at least {format_size(floor_bytes)} of memory;"
            f" the budget is {format_size(budget_bytes)}.",
            f"Use `ram={-(-floor_bytes >> 20)}MiB` or more (`ram=floor` takes just what it needs).",
        )
    dense_bytes = _dense_bytes(sizes, least.embedding_resident)
    least_draft_model = draft_model_bytes(sizes, least.least_context)
    fixed_bytes = interpreter + dense_bytes + least_draft_model
    chunk, context, most_context = CHUNK_TOKENS[-1], least.least_context, least.most_context
    all_slots_bytes = sizes.total_experts * sizes.slot_bytes + reading_bytes(sizes, backend)

    def least_state_bytes(chunk_tokens: int) -> int:
        return state_bytes(graph, chunk_tokens, least.least_context, sizes.kv_format, sizes.sequences)

    # The workspace may take a tenth of the budget, but nothing of what the other parts need at least. With it count the
    # pages of windows that larger chunks need.
    spare_bytes = budget_bytes - floor_bytes
    most_workspace_bytes = min((budget_bytes - fixed_bytes) // 10, least.least_workspace_bytes + spare_bytes)
    for candidate in CHUNK_TOKENS:
        if candidate > most_chunk_tokens or candidate >= 2 * most_context:  # no prompt would fill more than half of it
            continue
        if work_bytes(graph, candidate) > most_workspace_bytes:  # a bound that is quicker to have
            continue
        needed = workspace_bytes(graph, sizes, backend, candidate, least.least_context)
        needed += least_state_bytes(candidate) - least_state_bytes(chunk)
        if needed <= most_workspace_bytes:
            chunk = candidate
            break
    while context < most_context:
        wider = min(2 * context, most_context)
        cost = kv_cache_bytes(graph, chunk, wider, sizes.kv_format, sizes.sequences)
        cost += fixed_state_bytes(graph, wider, sizes.kv_format, sizes.sequences)
        cost += written_once_bytes(graph, wider, sizes.kv_format, sizes.sequences)
        cost += workspace_bytes(graph, sizes, backend, chunk, wider)
        cost += draft_model_bytes(sizes, wider) - least_draft_model
        spare = budget_bytes - fixed_bytes - cost
        crowds_experts = cost > (budget_bytes - fixed_bytes) // 5 or spare < least.least_experts_bytes
        if spare < all_slots_bytes and crowds_experts:
            break
        context = wider
    workspace = workspace_bytes(graph, sizes, backend, chunk, context)
    kv_cache = kv_cache_bytes(graph, chunk, context, sizes.kv_format, sizes.sequences)
    fixed_state = fixed_state_bytes(graph, context, sizes.kv_format, sizes.sequences)
    staging = reading_bytes(sizes, backend)
    inputs = written_once_bytes(graph, context, sizes.kv_format, sizes.sequences)
    draft_model = draft_model_bytes(sizes, context)
    others = workspace + kv_cache + fixed_state + inputs + staging + draft_model - least_draft_model
    slots = _most_slots(least, budget_bytes - fixed_bytes - others)
    return MemoryPlan(
        budget_bytes,
        floor_bytes,
        interpreter,
        dense_bytes,
        workspace,
        kv_cache,
        sizes.slot_bytes,
        slots,
        sizes.total_experts,
        context,
        chunk,
        sizes.kv_format,
        sizes.sequences,
        least.embedding_resident,
        _table_bytes(graph, sizes, backend, slots),
        fixed_state,
        snapshot_count(graph, context, sizes.kv_format, sizes.sequences),
        window_plans(graph, chunk, context, sizes.kv_format, sizes.sequences),
        staging,
        inputs,
        sizes.drafts,
        draft_model,
    )
