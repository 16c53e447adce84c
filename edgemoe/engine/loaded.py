"""A model's weights, expert slots and programs: what an engine opens once, runs, and closes once."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edgemoe.engine.batch import Take
from edgemoe.engine.decoder import Decoder, LayerRouting
from edgemoe.engine.ledger import LedgerReading, Programs
from edgemoe.engine.memory import MemoryPlan
from edgemoe.engine.options import EngineOptions
from edgemoe.engine.stepper import Stepper
from edgemoe.engine.table_rows import TableRows, open_tables
from edgemoe.engine.workspace import Workspace
from edgemoe.errors import ReadError, UsageError
from edgemoe.experts.cache import Cache
from edgemoe.experts.disk_rows import DiskRows, embedding_rows
from edgemoe.experts.hot_list import HotList
from edgemoe.experts.loading import ExpertLoading, LandedLoading, load_experts
from edgemoe.experts.neuron_pages import NeuronPages
from edgemoe.experts.opening import READER_THREADS, open_cache
from edgemoe.experts.read_rate import LEAST_READS, piece_bytes_of, read_rate, store_places
from edgemoe.io.direct import allocate_pages
from edgemoe.io.reads import ExpertFiles, RecordReader, open_reader
from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Backend, Pause, Program
from edgemoe.kernels.operations import Floats
from edgemoe.kernels.pages import PAGE_BYTES
from edgemoe.kernels.paging import CacheStatistics
from edgemoe.model.build import HEAD_ROWS, Graph
from edgemoe.model.spec import LayerSpec
from edgemoe.paths import cache_folder
from edgemoe.store.dense import DenseValue, DenseWeights
from edgemoe.store.reader import Store

PROBED_PRODUCTS = 1 << 25
"""Multiply-adds for each token in the products that `measure_products` takes the time of, about."""
PROBE_SECONDS = 0.1


class _Closed:
    """Replaces the stepper of a closed model."""

    def __init__(self, statistics: CacheStatistics) -> None:
        self.statistics = statistics
        self.notes_residency = False

    def step(self, tokens: int, phase: int, pause: Pause | None = None) -> None:
        raise UsageError("The model is closed.", "Open it again.")

    def encode(self, tokens: int) -> None:
        raise UsageError("The model is closed.", "Open it again.")


class LoadedModel:
    """Weights in RAM, experts in slots, and programs that are bound to both and to a workspace.

    Invariant: it can be closed at any time, also while it is being opened.
    """

    def __init__(self, store: Store, backend: Backend, space: Workspace) -> None:
        """Has nothing open yet; `open` does."""
        self._store = store
        self._backend = backend
        self._space = space
        self._programs: Programs | None = None
        self._reader: RecordReader | None = None
        self._stepper: Stepper | _Closed = _Closed(CacheStatistics())
        self._head: Program | None = None
        self._embed: Program | None = None
        self._embedding_rows: DiskRows | None = None
        self.weights: Mapping[str, DenseValue] = {}
        """The weights that every token needs, by their names; none once it is closed."""
        self.tables: list[TableRows] = []
        """The tables on disk, of which `run` reads the rows that each token has been noted to have."""
        self._table_programs: list[Program] = []
        self._neurons: NeuronPages | None = None
        self._hot_list: HotList | None = None
        self._products: list[op.Linear] = []
        """Products of the first layers, which `measure_products` takes the time of."""
        self._loading: list[DenseWeights | ExpertLoading | LandedLoading] = []
        self._files: ExpertFiles | None = None
        self.direct_reads = False
        """Whether experts are read past the page cache."""
        self.routing: Sequence[LayerRouting | None] = ()
        """The routers' output for the tokens of the latest step, layer by layer; None for a dense layer, and for an
        encoder's, whose tokens are of another run."""
        self.encoder_routing: Sequence[LayerRouting | None] = ()
        """The output of the routers in the encoder's layers for the latest input."""

    def open(
        self,
        graph: Graph,
        memory: MemoryPlan,
        options: EngineOptions,
        prefetch: str,
        dense: DenseWeights | None,
        shared: Mapping[str, DenseValue],
    ) -> None:
        """Read all weights that stay in RAM, and make the programs of `graph`.

        `prefetch` is one of `PREFETCH_MODES`. `dense`: the weights that every token needs, if they are being read
        already; `shared`: those of another model that this one uses too. Raises StoreError, ReadError, BudgetError,
        KernelError; `close` is then still to be called.
        """
        store, spec = self._store, graph.spec
        if dense is not None:
            self._loading.append(dense)
        paths = store.expert_paths if store.neurons is None else (store.dense_path,)
        self._files = files = ExpertFiles(paths, options.direct_reads)
        self.direct_reads = files.direct
        arena = _allocate_arena(memory.slots, memory.slot_bytes)
        if dense is None:
            dense = store.begin_dense(memory.embedding_resident)
            self._loading.append(dense)
        cache = None
        if store.neurons is not None:
            self._neurons = NeuronPages(store, store.neurons, arena, self._backend, options.direct_reads)
        elif not memory.all_resident:
            self._reader = open_reader(arena, READER_THREADS, staging_bytes=store.staging_bytes)
            experts_per_layer = [layer.routed.num_experts if layer.routed else 0 for layer in spec.layers]
            cache = open_cache(arena, experts_per_layer, store, files, self._reader, options.policy, self._backend)
        if not memory.embedding_resident:
            self._embedding_rows = embedding_rows(store, options.direct_reads, spec.stream_count)
        tables = [(value.table, self._space.array(value)) for value in graph.row_tables if value.table is not None]
        self.tables = open_tables(tables, store, options.direct_reads)
        decoder = Decoder(
            graph,
            {**dense.tensors, **shared},
            self._space,
            arena,
            store.record_layouts,
            cache,
            embedding_rows=self._embedding_rows,
            tables=[table.rows for table in self.tables],
            neurons=self._neurons,
        )
        if cache is None and self._neurons is None:
            self._loading.append(load_experts(arena, decoder.slot_tables(), store, files.direct))
        self.weights = dense.tensors
        self._programs = Programs(self._backend, decoder.part_of, decoder.layer_of)
        self._stepper = Stepper(decoder, self._programs, cache, prefetch)
        if self._neurons is not None:
            self._stepper.statistics = self._neurons.statistics
        self._head = self._programs.make(decoder.head)
        self._products = _some_products(decoder.step({"guess"}), self._space.passing)
        if self._embedding_rows is not None:
            self._embed = self._programs.make(decoder.embed)
        self._table_programs = [self._programs.make(operations) for operations in decoder.read_tables]
        for loading in self._loading:
            loading.wait()
        self._loading.clear()
        self.encoder_routing = decoder.routing[: spec.encoder_layers]
        self.routing = [*[None] * spec.encoder_layers, *decoder.routing[spec.encoder_layers :]]
        if options.warm_start and cache is not None:
            self._warm(cache, spec.layers)

    def _warm(self, cache: Cache, layers: Sequence[LayerSpec]) -> None:
        """Read the experts on the last session's hot list, in the background."""
        folder = cache_folder()
        if folder is not None:
            experts = [layer.routed.num_experts if layer.routed else 0 for layer in layers]
            self._hot_list = HotList(folder, self._store.digest, experts)
            cache.warm(self._hot_list.read())

    def keep_hot_list(self, uses: npt.NDArray[np.int64]) -> None:
        """Write the experts in RAM or on a device to the hot list, the most used first; nothing without a list.

        `uses` is `(L, E)`.
        """
        hot_list, self._hot_list = self._hot_list, None
        if hot_list is not None and uses.any():
            held, tier = self.resident_experts(uses.shape), self._backend.tier
            layers, experts = np.nonzero(held if tier is None else held | tier.holds(uses.shape))
            order = np.argsort(-uses[layers, experts], kind="stable")
            hot_list.write([(int(layers[i]), int(experts[i])) for i in order])

    @property
    def statistics(self) -> CacheStatistics:
        return self._stepper.statistics

    @property
    def notes_residency(self) -> bool:
        """Whether `LayerRouting.residency` is kept."""
        return self._stepper.notes_residency

    @notes_residency.setter
    def notes_residency(self, on: bool) -> None:
        self._stepper.notes_residency = on

    def time_runs(self, on: bool) -> None:
        """Start to time all programs, from zero, or stop. Raises UsageError where the model is closed."""
        if self._programs is None:
            raise UsageError("The model is closed.", "Open it again.")
        self._programs.time_runs(on)

    def read_times(self, forward_ns: int, waited_before_ns: int, layers: int) -> LedgerReading | None:
        """The times of all programs now, beside that of every `forward`; None where the model is closed.

        Waits outside of programs count from those that were `waited_before_ns`.
        """
        programs = self._programs
        if programs is None:
            return None
        return LedgerReading(programs, programs.read(), forward_ns, self.waited_ns - waited_before_ns, layers)

    @property
    def waited_ns(self) -> int:
        """Time for which rows of the embedding and of tables were waited for, outside of programs."""
        rows = [table.rows for table in self.tables]
        return sum(one.wait_ns for one in (*rows, *([self._embedding_rows] if self._embedding_rows else [])))

    def run(self, tokens: int, phase: int, pause: Pause | None = None) -> None:
        """Run the first `tokens` rows of the workspace through all layers, with a `pause` as `Stepper.step` has it."""
        space = self._space
        if self._embedding_rows is not None:
            assert self._embed is not None
            self._embedding_rows.write(space.ids[:tokens].astype(np.int64), self._embed, space.residual)
        for table, program in zip(self.tables, self._table_programs, strict=True):
            table.read(tokens, program)
        self._stepper.step(tokens, phase, pause)

    def encode(self, tokens: int) -> None:
        """Run the encoder on the first `tokens` tokens of its workspace: the whole input of a sequence."""
        space = self._space
        if self._embedding_rows is not None:
            assert self._embed is not None
            self._embedding_rows.write(space.input_ids[:tokens].astype(np.int64), self._embed, space.input_residual)
        self._stepper.encode(tokens)

    def logits(self, wanted: list[tuple[range, Floats]]) -> None:
        """Compute the logits of rows of the residual stream, and write them where they are wanted."""
        places = [(row, output[number]) for rows, output in wanted for number, row in enumerate(rows)]
        for first in range(0, len(places), HEAD_ROWS):
            part = places[first : first + HEAD_ROWS]
            for (_, output), logits in zip(part, self._logits_of([row for row, _ in part]), strict=True):
                output[:] = logits

    def hand_logits(self, rows: range, take: Take) -> None:
        """Compute the logits of rows of the residual stream, and give them to `take`, some at a time."""
        for first in range(0, len(rows), HEAD_ROWS):
            take(self._logits_of(rows[first : first + HEAD_ROWS]))

    def _logits_of(self, rows: Sequence[int]) -> Floats:
        """Return the logits of at most HEAD_ROWS rows, which the next call overwrites."""
        space = self._space
        assert self._head is not None
        for number, row in enumerate(rows):
            space.head_input[number] = space.residual[row]
        self._head.run(len(rows))
        return space.logits[: len(rows)]

    def measure_products(self, tokens: int) -> float | None:
        """The multiply-adds in a second of products of the first layers for so many tokens; None without products.

        It takes some hundredths of a second, and changes nothing that a run needs.
        """
        if not self._products:
            return None
        program = self._backend.program(self._products)
        for product in self._products:
            product.input[:tokens] = 1.0  # numbers that were left there may be none
        program.run(tokens)  # touches the memory, and compiles kernels that are compiled
        took_s = []
        for _ in range(2):
            began_s = time.perf_counter()
            program.run(tokens)
            took_s.append(time.perf_counter() - began_s)
        return tokens * sum(map(_multiply_adds, self._products)) / min(took_s)

    def measure_reads(self) -> float | None:
        """The rate at which experts are read, in bytes per second, in about a tenth of a second.

        It reads them into memory that no run needs afterwards; None where that is too little, or a read fails.
        """
        memory, piece_bytes = self._space.passing, piece_bytes_of(self._store)
        if self._files is None or memory.nbytes < READER_THREADS * piece_bytes:
            return None
        most = memory.nbytes // LEAST_READS // PAGE_BYTES * PAGE_BYTES
        places = [part for place in store_places(self._store) for part in place.cut(most)]
        try:
            return read_rate(self._files, places, memory, piece_bytes, PROBE_SECONDS, random.Random())
        except ReadError:
            return None

    def resident_experts(self, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """Which experts are in RAM now, `(L, E)`; none, of this shape, where the model is closed."""
        if isinstance(self._stepper, _Closed):
            return np.zeros(shape, np.bool_)
        return self._stepper.resident_experts()

    def expert_places(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Where each expert is, `(L, E)`; on disk all of them where the model is closed."""
        if isinstance(self._stepper, _Closed):
            return np.zeros(shape, np.uint8)
        return self._stepper.expert_places()

    def close(self) -> None:
        """Stop reading, close the files, and let go of programs, weights and slots. Closing twice is harmless."""
        for loading in self._loading:
            loading.close()
        self._loading.clear()
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._embedding_rows is not None:
            self._embedding_rows.close()
            self._embedding_rows = None
        for table in self.tables:
            table.rows.close()
        self.tables, self._table_programs = [], []
        if self._neurons is not None:
            self._neurons.close()
            self._neurons = None
        if self._files is not None:
            self._files.close()
        # The programs hold weights, KV cache and slots, and somebody may keep a closed engine for its figures.
        self._stepper = _Closed(self._stepper.statistics)
        self._head = self._embed = self._programs = None
        self._products, self.weights = [], {}


def _allocate_arena(slots: int, slot_bytes: int) -> npt.NDArray[np.uint8]:
    """Page-aligned memory for the expert slots. Raises BudgetError where the system refuses it."""
    if slots * slot_bytes == 0:
        return np.zeros((0, slot_bytes), np.uint8)
    return np.frombuffer(allocate_pages(slots * slot_bytes), np.uint8).reshape(slots, slot_bytes)


def _some_products(operations: Sequence[op.Operation], memory: npt.NDArray[np.uint8]) -> list[op.Linear]:
    """The first products of a step whose rows all lie in `memory`, until they are `PROBED_PRODUCTS`."""
    found: list[op.Linear] = []
    for product in (operation for operation in operations if isinstance(operation, op.Linear)):
        rows = [product.input, *(part.output for part in product.parts)]
        if all(np.may_share_memory(values, memory) for values in rows):
            found.append(product)
            if sum(map(_multiply_adds, found)) >= PROBED_PRODUCTS:
                break
    return found


def _multiply_adds(product: op.Linear) -> int:
    """The multiply-adds of a product for one token."""
    return sum(part.matrix.rows * part.matrix.columns for part in product.parts)
