"""The engine: a store, a memory budget and a kernel backend become `forward(token_ids) -> logits`.

Letters: `T` tokens, `V` vocabulary, `L` layers, `E` experts (of the layer that has most).

Invariants:
- `forward` appends to the state of a sequence; `rewind` forgets all positions from a given one on. No other state that
  lasts between calls can change an answer. Nor can the budget, the expert cache, threads, or how ids are grouped in
  calls. (Lossy settings, off by default, let the cache's contents change answers, and so the budget and how ids are
  grouped.)
- A forward that fails leaves `position` unchanged; keys and values that it wrote past that position are never read, and
  fixed state that it changed is computed anew.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgemoe.engine.batch import Piece, Rows, cut, phase_of
from edgemoe.engine.decoder import Decoder, LayerRouting
from edgemoe.engine.expert_uses import ExpertUses
from edgemoe.engine.fixed_state import FixedState
from edgemoe.engine.ledger import Programs, TimeLedger
from edgemoe.engine.memory import MemoryPlan
from edgemoe.engine.options import EngineOptions
from edgemoe.engine.phase import PROMPT, Turn
from edgemoe.engine.sequence import Sequence as TokenSequence
from edgemoe.engine.sequence import Sequences
from edgemoe.engine.stepper import Stepper
from edgemoe.engine.token_ids import TokenIds, check_ids
from edgemoe.engine.workspace import Workspace
from edgemoe.errors import UsageError
from edgemoe.experts.cache import Cache
from edgemoe.experts.embedding_rows import EmbeddingRows
from edgemoe.experts.hot_list import HotList
from edgemoe.experts.loading import ExpertLoading, LandedLoading, load_experts
from edgemoe.experts.opening import READER_THREADS, open_cache
from edgemoe.io.direct import allocate_pages
from edgemoe.io.reads import ExpertFiles, RecordReader, open_reader
from edgemoe.kernels.backend import Backend, Program
from edgemoe.kernels.operations import Floats
from edgemoe.kernels.paging import CacheStatistics
from edgemoe.model.build import HEAD_ROWS, Graph
from edgemoe.paths import cache_folder
from edgemoe.store.dense import DenseWeights
from edgemoe.store.reader import Store

if TYPE_CHECKING:  # hooks.py names this module's types
    from edgemoe.engine.hooks import RoutingObserver, RoutingSource
    from edgemoe.engine.traffic import TokenTraffic


@dataclass(frozen=True)
class EngineStatistics:
    """Counters since the engine was opened."""

    tokens: int
    cache: CacheStatistics

    @property
    def expert_hits(self) -> int:
        return self.cache.hits

    @property
    def expert_misses(self) -> int:
        return self.cache.misses

    @property
    def expert_drops(self) -> int:
        """Experts that the router chose, that were absent, and that were left out (`LossySettings.drop_cold`)."""
        return self.cache.dropped

    @property
    def disk_bytes(self) -> int:
        """Bytes of experts read from disk for tokens (not those loaded at the start)."""
        return self.cache.read_bytes


class _Closed:
    """Replaces the stepper of a closed engine."""

    def __init__(self, statistics: CacheStatistics) -> None:
        self.statistics = statistics
        self.notes_residency = False

    def step(self, tokens: int, phase: int) -> None:
        raise UsageError("The model is closed.", "Open it again.")


class Engine:
    """A model ready to run; make one with `open_engine`. A context manager."""

    def __init__(
        self,
        store: Store,
        graph: Graph,
        memory: MemoryPlan,
        backend: Backend,
        options: EngineOptions,
        routing: RoutingSource | None = None,
        dense: DenseWeights | None = None,
    ) -> None:
        """`graph` is the program of the model that runs: the store's, with `routing` and lossy options applied to it.

        `memory` is the plan that follows from the options, and `backend` has their threads. `dense`: the weights
        that every token needs, if the caller has begun to read them already.
        """
        self.store = store
        self.lossy = options.lossy.effective(memory.all_resident)
        self.spec = spec = graph.spec
        self.memory = memory
        self.backend = backend
        self._graph = graph
        self._forced = routing
        self._recorder: RoutingObserver | None = None
        self._tokens = 0
        self._keeps_ledger = False
        self._forward_ns = 0
        self._waited_before_ns = 0
        self._programs: Programs | None = None
        self._reader: RecordReader | None = None
        self._stepper: Stepper | _Closed = _Closed(CacheStatistics())
        self._head: Program | None = None
        self._embed: Program | None = None
        self._space = space = Workspace(
            graph, memory.chunk_tokens, memory.context_length, memory.kv_format, memory.sequences
        )
        choices = space.side_by_side([layer.routing.experts for layer in graph.layers if layer.routing is not None])
        keeps_prefixes = routing is None and not self.lossy.depends_on_cache
        fixed = [(space.array(value), value.undo or 0) for value in graph.fixed_state]
        fixed_state = FixedState(fixed, memory.snapshots) if fixed else None
        self.sequences = Sequences(space.page_groups(graph), spec.vocab_size, keeps_prefixes, fixed_state)
        """Opens, forks and closes sequences, whose tokens `step` runs together."""
        self.sequence = self.sequences.open()
        """The sequence of `forward`, `rewind` and `position`."""
        self._embedding_rows: EmbeddingRows | None = None
        self._hot_list: HotList | None = None
        self._loading: list[DenseWeights | ExpertLoading | LandedLoading] = [] if dense is None else [dense]
        self._files: ExpertFiles | None = None
        try:
            files = ExpertFiles(store.expert_paths, options.direct_reads)
            self._files = files
            self.direct_reads = files.direct
            """Whether experts are read past the page cache."""
            arena = _allocate_arena(memory.slots, memory.slot_bytes)
            if dense is None:
                dense = store.begin_dense(memory.embedding_resident)
                self._loading.append(dense)
            cache = None
            if not memory.all_resident:
                self._reader = open_reader(arena, READER_THREADS, staging_bytes=store.staging_bytes)
                experts_per_layer = [layer.routed.num_experts if layer.routed else 0 for layer in spec.layers]
                cache = open_cache(arena, experts_per_layer, store, files, self._reader, options.policy, backend)
            if not memory.embedding_resident:
                self._embedding_rows = EmbeddingRows(store, options.direct_reads)
            decoder = Decoder(
                graph,
                dense.tensors,
                self._space,
                arena,
                store.record_layouts,
                cache,
                embedding_rows=self._embedding_rows,
            )
            if cache is None:
                self._loading.append(load_experts(arena, decoder.slot_tables(), store, files.direct))
            self._programs = Programs(backend, decoder.part_of)
            mode = options.prefetch if routing is None or routing.recall is not None else "off"
            self._stepper = Stepper(decoder, self._programs, cache, mode)
            self._head = self._programs.make(decoder.head)
            if self._embedding_rows is not None:
                self._embed = self._programs.make(decoder.embed)
            for loading in self._loading:
                loading.wait()
            self._loading.clear()
            self.routing: Sequence[LayerRouting | None] = decoder.routing
            """The routers' output for the tokens of the latest step, layer by layer; None for a dense layer."""
            by_layer = {layer: routing.experts for layer, routing in enumerate(self.routing) if routing is not None}
            self._uses = ExpertUses(choices, by_layer, (len(spec.layers), spec.most_experts))
            if options.warm_start and cache is not None:
                self._warm(cache)
        except BaseException:
            self.close()
            raise

    def _warm(self, cache: Cache) -> None:
        """Read the experts on the last session's hot list, in the background."""
        folder = cache_folder()
        if folder is not None:
            experts = [0 if routing is None else len(routing.slots) for routing in self.routing]
            self._hot_list = HotList(folder, self.store.digest, experts)
            cache.warm(self._hot_list.read())

    def _keep_hot_list(self) -> None:
        """Write the experts in RAM to the hot list, the most used first, if any token was computed."""
        hot_list, self._hot_list = self._hot_list, None
        if hot_list is not None and self._tokens:
            layers, experts = np.nonzero(self.resident_experts())
            order = np.argsort(-self.expert_uses[layers, experts], kind="stable")
            hot_list.write([(int(layers[i]), int(experts[i])) for i in order])

    @functools.cached_property
    def traffic(self) -> TokenTraffic:
        """The bytes that one token reads."""
        from edgemoe.engine.traffic import token_traffic  # only measurements ask

        return token_traffic(self._graph, self.store.manifest, self.memory.kv_format)

    @property
    def context_length(self) -> int:
        """The number of tokens that the KV cache has room for."""
        return self.memory.context_length

    @property
    def statistics(self) -> EngineStatistics:
        return EngineStatistics(self._tokens, self._stepper.statistics)

    @property
    def expert_uses(self) -> npt.NDArray[np.int64]:
        """The number of tokens for which each expert was chosen, `(L, E)`, since the engine was opened."""
        return self._uses.counts

    @property
    def recorder(self) -> RoutingObserver | None:
        """The observer that receives the routing of every step (see `recording`); None at first."""
        return self._recorder

    @recorder.setter
    def recorder(self, recorder: RoutingObserver | None) -> None:
        self._recorder = recorder
        self._stepper.notes_residency = recorder is not None

    def keep_ledger(self, on: bool = True) -> None:
        """Start to account for the time of every `forward`, from zero, or stop.

        Raises UsageError where the engine is closed.
        """
        if self._programs is None:
            raise UsageError("The model is closed.", "Open it again.")
        self._programs.time_runs(on)
        self._forward_ns = 0
        self._waited_before_ns = self._waited_ns
        self._keeps_ledger = on

    @property
    def _waited_ns(self) -> int:
        """Time for which the engine has waited for the disk outside of programs."""
        return 0 if self._embedding_rows is None else self._embedding_rows.wait_ns

    @property
    def ledger(self) -> TimeLedger | None:
        """Where the time of every `forward` since `keep_ledger` went; None where no ledger is kept."""
        if not self._keeps_ledger or self._programs is None:
            return None
        programs, programs_ns = self._programs.ledger()
        waited_ns = self._waited_ns - self._waited_before_ns
        python_ns = self._forward_ns - programs_ns - waited_ns
        return programs + TimeLedger({"disk_wait": waited_ns, "python": python_ns})

    def forward(
        self,
        token_ids: Sequence[int] | npt.NDArray[np.integer],
        *,
        all_logits: bool = False,
        out: Floats | None = None,
    ) -> Floats:
        """Append tokens; returns the logits after the last one `(V,)`, or after each `(T, V)`.

        They are of the phase that `turn` says: of a prompt, unless it was told that generated ones follow.

        The logits are written to `out` if it is given, of that shape and float32: a loop that is done with each
        token's logits before the next token then allocates nothing. Raises UsageError for an empty list of tokens, ids
        outside the vocabulary, an `out` of another shape or type, or more tokens than the context has room for;
        ReadError, naming layer and expert, where an expert cannot be read.
        """
        began_ns = time.perf_counter_ns()
        try:
            return self._forward(token_ids, all_logits, out)
        finally:
            self._forward_ns += time.perf_counter_ns() - began_ns

    def _forward(
        self, token_ids: Sequence[int] | npt.NDArray[np.integer], all_logits: bool, out: Floats | None
    ) -> Floats:
        ids = check_ids(token_ids, self.spec.vocab_size)
        shape = (len(ids), self.spec.vocab_size) if all_logits else (self.spec.vocab_size,)
        if out is None:
            out = np.empty(shape, np.float32)
        elif out.shape != shape or out.dtype != np.float32:
            raise UsageError(f"out: expected float32 {shape}, found {out.dtype} {out.shape}.", "Leave it out.")
        self._run([Piece(self.sequence, ids, out if all_logits else out[None])])
        return out

    def step(self, batch: Mapping[TokenSequence, TokenIds], *, all_logits: bool = False) -> dict[TokenSequence, Floats]:
        """Append tokens to several sequences in one run; returns each one's logits, as `forward` does.

        Weights and experts that several sequences use are read once for all of them. The result of each sequence is
        the same to the bit as that of `forward` on it alone. Raises UsageError for a sequence that is closed or of
        another model, for tokens as `forward`, for more than one sequence while routing is recorded, and where forced
        routing would be needed again; ReadError. After an error no sequence has changed.
        """
        began_ns = time.perf_counter_ns()
        if not batch:
            raise UsageError("The batch has no sequences.", "Give tokens for at least one sequence.")
        if len(batch) > 1 and self._recorder is not None:
            raise UsageError("A recording of routing holds one sequence.", "Step one sequence at a time.")
        pieces = []
        for sequence, token_ids in batch.items():
            ids = check_ids(token_ids, self.spec.vocab_size)
            rows = len(ids) if all_logits else 1
            pieces.append(Piece(sequence, ids, np.empty((rows, self.spec.vocab_size), np.float32)))
        try:
            self._run(pieces)
        finally:
            self._forward_ns += time.perf_counter_ns() - began_ns
        return {piece.sequence: piece.logits if all_logits else piece.logits[0] for piece in pieces}

    @property
    def position(self) -> int:
        """The number of tokens of the engine's own sequence."""
        return self.sequence.position

    @property
    def turn(self) -> Turn:
        """The place of the engine's own sequence in a conversation."""
        return self.sequence.turn

    def rewind(self, position: int) -> None:
        """Forget everything from `position` on. Raises UsageError for a position past the current one.

        A model with windows or fixed state may have to run some tokens before that position again (`snapshots.py`): the
        next `forward` does that first. The result is the same to the bit.
        """
        self.sequence.rewind(position)

    def _run(self, pieces: list[Piece]) -> None:
        """Run all tokens of the pieces, and append them to their sequences; after an error none of them."""
        for piece in pieces:
            self._check_room(piece)
        begun: list[tuple[TokenSequence, int]] = []
        try:
            for piece in pieces:
                piece.sequence.reserve(len(piece.token_ids))
                begun.append((piece.sequence, piece.sequence.position))
            for piece in pieces:
                if piece.sequence.behind:
                    self._catch_up(piece.sequence)
            phase = phase_of(pieces)
            for run in cut(pieces, self.memory.chunk_tokens):
                self._run_rows(run, phase)
                self._note_run(run)
        except BaseException:
            for sequence, position in begun:
                sequence.give_up(position)
            raise

    def _catch_up(self, sequence: TokenSequence) -> None:
        """Run again the tokens that a sequence is behind. They belong to no turn, and are not recorded.

        No other sequence takes part: two that share a page must not write to it in one run, not even the same bits.
        """
        ids = np.array(sequence.ids[sequence.resumes_at :], np.int64)
        again = Piece(sequence, ids, np.empty((0, self.spec.vocab_size), np.float32))
        for run in cut([again], self.memory.chunk_tokens):
            self._run_rows(run, PROMPT)

    def _check_room(self, piece: Piece) -> None:
        """Raise UsageError for a piece that cannot be run, before anything has changed."""
        self.sequences.check(piece.sequence)
        if len(piece.token_ids) > self.context_length - piece.sequence.position:
            raise UsageError(
                f"{len(piece.token_ids)} tokens after {piece.sequence.position} do not fit the context of"
                f" {self.context_length} tokens.",
                "Shorten the prompt, or give more memory (`ram`) for a longer context.",
            )
        if piece.sequence.behind and self._forced is not None:
            raise UsageError(
                f"This model would have to run {piece.sequence.behind} tokens again; their forced routing is used up.",
                "Rewind to position 0.",
            )

    def _run_rows(self, run: list[Rows], phase: int) -> None:
        space = self._space
        tokens = run[-1].row + run[-1].count
        if self.sequences.forgetful:
            for rows in run:
                rows.piece.sequence.begin_run(rows.count)
        for rows in run:
            here, start = slice(rows.row, rows.row + rows.count), rows.piece.sequence.resumes_at
            space.ids[here] = rows.token_ids
            space.positions[here] = np.arange(start, start + rows.count)
            space.sequences[here] = rows.piece.sequence.row
        if self._embedding_rows is not None:
            assert self._embed is not None
            self._embedding_rows.write(space.ids[:tokens].astype(np.int64), self._embed, space.residual)
        if self._forced is not None:
            self._forced.put(self.routing, run)
        self._stepper.step(tokens, phase)
        self._tokens += tokens
        self._uses.add(tokens)
        self._logits([rows.wanted() for rows in run])
        for rows in run:
            rows.piece.sequence.end_run(rows.token_ids)

    def _note_run(self, run: list[Rows]) -> None:
        """Note a run of new tokens in the turns of its sequences, and give its routing to the recorder."""
        for rows in run:
            turn = rows.piece.sequence.turn
            if self._recorder is not None:
                self._recorder.step(turn, rows.count)
            turn.step += rows.count

    def resident_experts(self) -> npt.NDArray[np.bool_]:
        """Which experts are in RAM now, `(L, E)`."""
        if isinstance(self._stepper, _Closed):
            return np.zeros(self.expert_uses.shape, np.bool_)
        return self._stepper.resident_experts()

    def close(self) -> None:
        """Stop readers and threads, and give the memory back. The engine cannot run afterwards.

        Closing twice is harmless.
        """
        for loading in self._loading:
            loading.close()
        self._loading.clear()
        if self._reader is not None:
            self._keep_hot_list()
            self._reader.close()
            self._reader = None
        if self._embedding_rows is not None:
            self._embedding_rows.close()
            self._embedding_rows = None
        if self._files is not None:
            self._files.close()
        self.backend.close()
        # The programs hold weights, KV cache and slots, and the caller may keep a closed engine for its figures.
        self._stepper = _Closed(self._stepper.statistics)
        self._head = self._embed = self._programs = None
        self.sequences.release()
        self._space.release()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _logits(self, wanted: list[tuple[range, Floats]]) -> None:
        """Compute the logits of rows of the residual stream, and write them where they are wanted."""
        places = [(row, output[number]) for rows, output in wanted for number, row in enumerate(rows)]
        space = self._space
        for first in range(0, len(places), HEAD_ROWS):
            assert self._head is not None
            part = places[first : first + HEAD_ROWS]
            for number, (row, _) in enumerate(part):
                space.head_input[number] = space.residual[row]
            self._head.run(len(part))
            for number, (_, output) in enumerate(part):
                output[:] = space.logits[number]


def _allocate_arena(slots: int, slot_bytes: int) -> npt.NDArray[np.uint8]:
    """Page-aligned memory for the expert slots. Raises BudgetError where the system refuses it."""
    if slots * slot_bytes == 0:
        return np.zeros((0, slot_bytes), np.uint8)
    return np.frombuffer(allocate_pages(slots * slot_bytes), np.uint8).reshape(slots, slot_bytes)
