"""A model that is opened beside another one, in a share of its budget: a draft model, whose weights are all in RAM.

An MTP head is one too; it has the embedding and the head of the other model, which are in RAM once.

Its share follows from the context alone, so the plan of the other model counts it like keys and values: it is known
before either has been opened, and experts of the other model get what is left.
"""

from __future__ import annotations

from dataclasses import replace

from edgemoe.engine.engine import Engine
from edgemoe.engine.lossy import EXACT
from edgemoe.engine.memory import MemoryPlan, reading_bytes
from edgemoe.engine.opening import graph_of, model_sizes
from edgemoe.engine.options import EngineOptions
from edgemoe.engine.part_sizes import (
    fixed_state_bytes,
    kv_cache_bytes,
    snapshot_count,
    window_plans,
    workspace_bytes,
)
from edgemoe.engine.scratch import WeightFormats
from edgemoe.errors import UsageError
from edgemoe.kernels.select import select_backend
from edgemoe.model.description import store_spec
from edgemoe.model.spec import ModelSpec
from edgemoe.store.reader import Store

HIDDEN_TOKENS = 512
"""An MTP head reads at most so many of the last tokens of a prompt, whose hidden states are kept for it."""
CHUNK_TOKENS = 128
"""It reads a prompt in chunks of so many tokens: more would be little faster, and take memory from experts."""


class BesideModel:
    """A store with its program, to be planned and then opened. Close it if it is not opened."""

    def __init__(self, store: Store, of: Store, threads: int | None = None, sequences: int = 1) -> None:
        """`of`: the model that it is opened beside; `sequences`: how many texts it reads at a time.

        Raises UsageError for a model with an encoder, and for an MTP head of another shape than the model's.
        """
        self.store = store
        self.spec = spec = store_spec(store)
        if spec.encoder is not None:
            raise UsageError(
                f"{store.path}: a model that reads an input apart from its text cannot draft for another one.",
                "Choose a draft model without an encoder, or none.",
            )
        self._graph = graph_of(spec, store, EXACT)
        self.forks = bool(self._graph.fixed_state)
        """Whether it guesses in copies of its sequences, since no token can be taken out of its state again."""
        self._options = EngineOptions(threads=threads, sequences=(1 + self.forks) * sequences)
        self._sizes = model_sizes(store, spec, sequences=self._options.sequences)
        self.shares_embedding = spec.mtp
        self._shared: tuple[str, ...] = ()
        self._hidden_bytes = 0
        if spec.mtp:
            _check_head(store, spec, of)
            self._shared = ("embedding",) if spec.tied_embeddings else ("embedding", "head")
            formats, others = self._sizes.formats, WeightFormats.of(of).matrices
            matrices = {**formats.matrices, **{name: others[name] for name in self._shared}}
            self._sizes = replace(self._sizes, formats=replace(formats, matrices=matrices))
            self._hidden_bytes = 4 * sequences * (HIDDEN_TOKENS + CHUNK_TOKENS) * spec.hidden_size
        self._backend = select_backend(threads)

    def planned_bytes(self, context_length: int) -> int:
        """The bytes that it takes beside a model with such a context."""
        return self._plan(context_length).planned_bytes + self._hidden_bytes

    def _plan(self, context_length: int) -> MemoryPlan:
        graph, sizes, sequences = self._graph, self._sizes, self._options.sequences
        context = min(context_length, *graph.longest_contexts)
        of_context = context, sizes.kv_format, sequences
        return MemoryPlan(
            budget_bytes=0,
            floor_bytes=0,
            interpreter_bytes=0,  # it is that of the model beside it
            dense_bytes=sizes.dense_bytes,
            workspace_bytes=workspace_bytes(graph, sizes, self._backend, CHUNK_TOKENS, context),
            kv_cache_bytes=kv_cache_bytes(graph, CHUNK_TOKENS, *of_context),
            slot_bytes=sizes.slot_bytes,
            slots=sizes.total_experts,
            total_experts=sizes.total_experts,
            context_length=context,
            chunk_tokens=CHUNK_TOKENS,
            kv_format=sizes.kv_format,
            sequences=sequences,
            fixed_state_bytes=fixed_state_bytes(graph, *of_context),
            snapshots=snapshot_count(graph, *of_context),
            windows=window_plans(graph, CHUNK_TOKENS, *of_context),
            staging_bytes=reading_bytes(sizes, self._backend),
        )

    def open(self, engine: Engine) -> Engine:
        """Open it beside an open model. Raises as `open_engine`."""
        shared = {name: engine.weights[name] for name in self._shared}
        plan = self._plan(engine.context_length)
        return Engine(self.store, self._graph, plan, self._backend, self._options, shared=shared)

    def close(self) -> None:
        """Stop its threads, where it was not opened."""
        self._backend.close()


def _check_head(store: Store, head: ModelSpec, of: Store) -> None:
    """Raise UsageError for an MTP head that cannot be of this model."""
    spec = store_spec(of)
    shapes = [(one.hidden_size, one.vocab_size, one.tied_embeddings) for one in (head, spec)]
    if shapes[0] != shapes[1] or spec.streams is not None:
        found, wanted = (f"{width} by {tokens} tokens" for width, tokens, _ in shapes)
        raise UsageError(
            f"`draft`: {store.path} is an MTP head of another model: expected one of {wanted}, found {found}.",
            "Convert the head of the checkpoint that the model was converted from.",
        )
