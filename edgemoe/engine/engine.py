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
import math
import time
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgemoe.engine.batch import Piece, Rows, Take, cut, phase_of
from edgemoe.engine.decoder import LayerRouting
from edgemoe.engine.expert_uses import ExpertUses
from edgemoe.engine.fixed_state import FixedState
from edgemoe.engine.hooks import HiddenTaker, RoutingObserver, RoutingSource
from edgemoe.engine.ledger import LedgerReading, TimeLedger
from edgemoe.engine.loaded import LoadedModel
from edgemoe.engine.memory import MemoryPlan
from edgemoe.engine.options import EngineOptions
from edgemoe.engine.phase import PROMPT, Turn
from edgemoe.engine.prompt_times import PromptTimes, PromptWork, rates_note
from edgemoe.engine.sequence import Sequence as TokenSequence
from edgemoe.engine.sequence import Sequences
from edgemoe.engine.statistics import EngineStatistics
from edgemoe.engine.token_ids import TokenIds, check_ids
from edgemoe.engine.workspace import Workspace
from edgemoe.errors import UsageError
from edgemoe.kernels.backend import Backend, Pause
from edgemoe.kernels.operations import Floats
from edgemoe.model.build import Graph
from edgemoe.store.dense import DenseValue, DenseWeights
from edgemoe.store.reader import Store

if TYPE_CHECKING:
    from edgemoe.engine.traffic import TokenTraffic

SAVING_SECONDS = 3.0
"""The longest time in which prefixes are saved when the engine is closed."""
PROBED_TOKENS = 64
"""Tokens for which products are timed: with as many, kernels are about as fast as with any number."""


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
        shared: Mapping[str, DenseValue] = MappingProxyType({}),
    ) -> None:
        """`graph` is the program of the model that runs: the store's, with `routing` and lossy options applied to it.

        `memory` is the plan that follows from the options, and `backend` has their threads. `dense`: the weights
        that every token needs, if the caller has begun to read them already; `shared`: those of another model.
        """
        self.store = store
        self.lossy = options.lossy.effective(memory.all_resident)
        self.spec = spec = graph.spec
        self.memory = memory
        self.backend = backend
        self.speculate = options.speculate
        """How many guessed tokens may be run beside each generated one (`EngineOptions`)."""
        self.policy = options.policy
        self._graph = graph
        self._forced = routing
        self._recorder: RoutingObserver | None = None
        self.pause: Pause | None = None
        """Called between the layers of prompts; what it raises ends the run, none of whose tokens is then held."""
        self.hidden_takers: dict[TokenSequence, HiddenTaker] = {}
        """Functions that get the hidden states of all tokens of a sequence that are run."""
        self._tokens = 0
        self._keeps_ledger = False
        self._forward_ns = 0
        self._waited_before_ns = 0
        self._space = space = Workspace(
            graph, memory.chunk_tokens, memory.context_length, memory.kv_format, memory.sequences
        )
        routed = [layer.routing for layer in graph.decoder_layers if layer.routing is not None]
        self._hidden = None if graph.hidden is None else space.array(graph.hidden)
        choices = space.side_by_side([one.experts for one in routed])
        space.side_by_side([one.weights for one in routed], np.float32)  # observers read them in one call
        keeps_prefixes = routing is None and not self.lossy.depends_on_cache
        fixed = [(space.array(value), value.undo or 0) for value in graph.fixed_state]
        fixed_state = FixedState(fixed, memory.snapshots) if fixed else None
        groups, inputs = space.page_groups(graph), space.inputs(graph)
        for group in groups if inputs is None else [*groups, inputs.group]:
            group.forget_copies = backend.forget_copies
        if fixed_state is not None:
            fixed_state.forget_copies = backend.forget_copies
        self.sequences = Sequences(groups, spec.vocab_size, keeps_prefixes, fixed_state, inputs)
        """Opens, forks and closes sequences, whose tokens `step` runs together."""
        self._loaded = LoadedModel(store, backend, space)
        mode = options.prefetch if routing is None or routing.recall is not None else "off"
        try:
            self._loaded.open(graph, memory, options, mode, dense, shared)
            if keeps_prefixes and inputs is None and options.prefix_disk is not None:
                from edgemoe.engine.prefix_program import open_prefix_disk  # which few ask for, at 40 ms a start

                files = open_prefix_disk(options.prefix_disk, store, graph, memory, backend, groups, fixed_state)
                self.sequences.keep_on_disk(files)
            self.sequence = self.sequences.open()
            """The sequence of `forward`, `rewind` and `position`."""
            by_layer, of_inputs = (
                {layer: one.experts for layer, one in enumerate(routing) if one is not None}
                for routing in (self.routing, self._loaded.encoder_routing)
            )
            self._uses = ExpertUses(choices, by_layer, (len(spec.layers), spec.most_experts), of_inputs)
        except BaseException:
            self.close()
            raise

    @property
    def routing(self) -> Sequence[LayerRouting | None]:
        """The routers' output for the tokens of the latest step, layer by layer; None for a dense layer."""
        return self._loaded.routing

    @property
    def weights(self) -> Mapping[str, DenseValue]:
        """The weights that every token needs, by their names in the store, without those on disk."""
        return self._loaded.weights

    @property
    def direct_reads(self) -> bool:
        """Whether experts are read past the page cache."""
        return self._loaded.direct_reads

    @functools.cached_property
    def traffic(self) -> TokenTraffic:
        """The bytes that one token reads."""
        from edgemoe.engine.traffic import token_traffic  # only measurements ask

        return token_traffic(self._graph, self.store.manifest, self.memory.kv_format)

    @functools.cached_property
    def prompt_times(self) -> PromptTimes:
        """Tells how long prompts take on this machine, and learns it from them; only people ask."""
        memory, backend, store = self.memory, self.backend, self.store
        settings = f"{backend.name} {backend.isa}, {backend.threads} threads, chunks of {memory.chunk_tokens}"
        if backend.device is not None:
            settings += f", with {backend.device}"
        settings += ", all experts in RAM" * memory.all_resident
        return PromptTimes(
            PromptWork.of(self._graph, store.manifest, memory, store.record_bytes),
            settings,
            rates_note(store),
            lambda: int(self.resident_experts()[self.spec.encoder_layers :].sum()),
            self._probe,
        )

    def _probe(self) -> tuple[float, float] | None:
        """Measure multiply-adds and bytes of experts in a second; None where that cannot be done."""
        products = self._loaded.measure_products(min(PROBED_TOKENS, self.memory.chunk_tokens))
        read = math.inf if self.memory.all_resident else self._loaded.measure_reads()
        return None if products is None or read is None else (products, read)

    @property
    def context_length(self) -> int:
        """The number of tokens that the KV cache has room for."""
        return self.memory.context_length

    @property
    def statistics(self) -> EngineStatistics:
        return EngineStatistics(self._tokens, self._loaded.statistics)

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
        self._loaded.notes_residency = recorder is not None

    @property
    def may_speculate(self) -> bool:
        """Whether guessed tokens may be run and taken back: they must change no answer, and no recording."""
        recorded = self._recorder is not None and not self._recorder.drafts
        return self._forced is None and not recorded and not self.lossy.depends_on_cache

    def keep_ledger(self, on: bool = True) -> None:
        """Start to account for the time of every `forward`, from zero, or stop.

        Raises UsageError where the engine is closed.
        """
        self._loaded.time_runs(on)
        self._forward_ns = 0
        self._waited_before_ns = self._loaded.waited_ns
        self._keeps_ledger = on

    def read_ledger(self) -> LedgerReading | None:
        """The ledger as it is now, to be summed up later; None where no ledger is kept."""
        if not self._keeps_ledger:
            return None
        return self._loaded.read_times(self._forward_ns, self._waited_before_ns, len(self.spec.layers))

    @property
    def ledger(self) -> TimeLedger | None:
        """Where the time of every `forward` since `keep_ledger` went; None where no ledger is kept."""
        reading = self.read_ledger()
        return None if reading is None else reading.ledger

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

    def forward_each(self, token_ids: Sequence[int] | npt.NDArray[np.integer], take: Take, first: int = 0) -> None:
        """Append tokens, and give the logits after each of them, from number `first` on, to `take`.

        It is called in the order of tokens with some rows `(n, V)` at a time, which are valid until it returns: so the
        logits of a long text take no memory beyond the plan. What it raises ends the run, as an error would. Raises
        UsageError and ReadError as `forward`.
        """
        began_ns = time.perf_counter_ns()
        ids = check_ids(token_ids, self.spec.vocab_size)
        try:
            self._run([Piece(self.sequence, ids, np.empty((0, self.spec.vocab_size), np.float32), take, first)])
        finally:
            self._forward_ns += time.perf_counter_ns() - began_ns

    def step(
        self,
        batch: Mapping[TokenSequence, TokenIds],
        *,
        all_logits: bool | Collection[TokenSequence] = False,
        hidden: Mapping[TokenSequence, Floats] = MappingProxyType({}),
    ) -> dict[TokenSequence, Floats]:
        """Append tokens to several sequences in one run; returns each one's logits, as `forward` does.

        `all_logits` may name the sequences of which the logits after each token are wanted. `hidden` has, for an MTP
        head, the hidden state of the token before each token, `(T, D)`.
        Weights and experts that several sequences use are read once for all of them. The result of each sequence is
        the same to the bit as that of `forward` on it alone. Raises UsageError for a sequence that is closed or of
        another model, for tokens as `forward`, for more than one sequence while routing is recorded, and where forced
        routing would be needed again; ReadError. After an error no sequence has changed.
        """
        began_ns = time.perf_counter_ns()
        if not batch:
            raise UsageError("The batch has no sequences.", "Give tokens for at least one sequence.")
        if len(batch) > 1 and self._recorder is not None and self._recorder.one_sequence:
            raise UsageError("A recording of routing holds one sequence.", "Step one sequence at a time.")
        pieces = []
        for sequence, token_ids in batch.items():
            ids = check_ids(token_ids, self.spec.vocab_size)
            rows = len(ids) if _wants_all(sequence, all_logits) else 1
            logits = np.empty((rows, self.spec.vocab_size), np.float32)
            pieces.append(Piece(sequence, ids, logits, hidden=hidden.get(sequence)))
        try:
            self._run(pieces)
        finally:
            self._forward_ns += time.perf_counter_ns() - began_ns
        return {
            piece.sequence: piece.logits if _wants_all(piece.sequence, all_logits) else piece.logits[0]
            for piece in pieces
        }

    def encode(self, token_ids: TokenIds, sequence: TokenSequence | None = None) -> None:
        """Run the encoder on the input of a sequence (the engine's own, if none is given), which has no tokens yet.

        The sequence keeps what its tokens will see of it; an input takes the place of the one before. Raises UsageError
        for a model without an encoder, for a sequence that is closed or has tokens, for ids as `forward`, and for more
        of them than the context has room for; ReadError. After an error the sequence has no input, except where the
        error is a UsageError: then it has the one before.
        """
        began_ns = time.perf_counter_ns()
        own = sequence or self.sequence
        self.sequences.check(own)
        ids = check_ids(token_ids, self.spec.vocab_size)
        if own.input is None:
            raise UsageError("This model has no encoder, so it reads no input apart from its text.", "Use `forward`.")
        if own.position:
            raise UsageError(
                f"The sequence has {own.position} tokens, which belong to the input before.", "Rewind it to 0 first."
            )
        if len(ids) > self.context_length:
            raise UsageError(
                f"An input of {len(ids)} tokens does not fit the context of {self.context_length} tokens.",
                "Shorten it, or give more memory (`ram`) for a longer context.",
            )
        space, tokens = self._space, len(ids)
        own.input.begin(ids)
        try:
            space.input_ids[:tokens] = ids
            space.input_positions[:tokens] = np.arange(tokens)
            space.input_sequences[:tokens] = own.row
            self._loaded.encode(tokens)
        except BaseException:
            own.input.release()
            raise
        finally:
            self._forward_ns += time.perf_counter_ns() - began_ns
        self._tokens += tokens
        self._uses.add_input(tokens)

    def read_prompt(self, token_ids: TokenIds, sequence: TokenSequence | None = None) -> Floats:
        """Let an empty sequence (the engine's own, if none is given) read a prompt; returns the logits after it `(V,)`.

        For a model with an encoder the prompt is its input, and the start token of its text follows. Raises as `encode`
        and `step` do.
        """
        own = sequence or self.sequence
        if self.spec.encoder is not None:
            self.encode(token_ids, own)
            token_ids = [self.spec.encoder.start_token]
        return self.step({own: token_ids})[own]

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

    def adopt(self, token_ids: TokenIds) -> int:
        """Begin the engine's own sequence anew with the longest kept prefix of these tokens; returns its length."""
        self.sequence.rewind(0)
        return self.sequence.adopt(check_ids(token_ids, self.spec.vocab_size))

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
            for piece in pieces:
                piece.sequence.mark(len(piece.token_ids))
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
        if piece.sequence.input is not None:
            piece.sequence.input.require()
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
            for table in self._loaded.tables:
                table.name(rows.row, rows.token_ids, rows.piece.sequence.ids, start)
            if self._hidden is not None and rows.piece.hidden is not None:
                self._hidden[here] = rows.piece.hidden[rows.first : rows.end]
        if self._forced is not None:
            self._forced.put(self.routing, run)
        self._loaded.run(tokens, phase, self.pause)
        self._tokens += tokens
        self._uses.add(tokens)
        for rows in run:
            if self.hidden_takers and (take := self.hidden_takers.get(rows.piece.sequence)) is not None:
                take(rows.piece.sequence.resumes_at, space.residual[rows.row : rows.row + rows.count])
        self._loaded.logits([rows.wanted() for rows in run])
        for rows in run:
            if rows.piece.take is not None:
                self._loaded.hand_logits(rows.taken(), rows.piece.take)
        for rows in run:
            rows.piece.sequence.end_run(rows.token_ids)

    def _note_run(self, run: list[Rows]) -> None:
        """Note a run of new tokens in the turns of its sequences, and give its routing to the recorder."""
        if self._recorder is not None:
            self._recorder.step(run)
        for rows in run:
            rows.piece.sequence.turn.step += rows.count

    def resident_experts(self) -> npt.NDArray[np.bool_]:
        """Which experts are in RAM now, `(L, E)`."""
        return self._loaded.resident_experts((len(self.spec.layers), self.spec.most_experts))

    def expert_places(self) -> npt.NDArray[np.uint8]:
        """Where each expert is, `(L, E)`: `ON_DISK`, `BEING_READ` or `IN_RAM` of `stepper.py`, which says more."""
        return self._loaded.expert_places((len(self.spec.layers), self.spec.most_experts))

    def close(self) -> None:
        """Stop readers and threads, and give the memory back. The engine cannot run afterwards.

        Closing twice is harmless.
        """
        if self._tokens:
            self._loaded.keep_hot_list(self.expert_uses)
        if self.sequences.tier is not None:
            self.sequences.tier.save(SAVING_SECONDS)
        self._loaded.close()
        self.backend.close()
        self.sequences.release()
        self._space.release()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _wants_all(sequence: TokenSequence, all_logits: bool | Collection[TokenSequence]) -> bool:
    return all_logits if isinstance(all_logits, bool) else sequence in all_logits
