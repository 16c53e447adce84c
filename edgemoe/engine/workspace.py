"""The memory of a graph's values: their sizes before anything is allocated, and their arrays.

Values that are not alive at the same time share memory: `place_values` gives each an offset, first fit in the order in
which blocks name them. Every layer starts from the same memory, since only the residual stream and what is `kept`
outlive a layer.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from edgemoe.engine.inputs import Inputs
from edgemoe.engine.pages import PageGroup
from edgemoe.kernels.formats import group_count
from edgemoe.kernels.operations import PAGE_TOKENS, Cache, Floats, Integers, QuantisedCache
from edgemoe.kernels.pages import PAGE_BYTES
from edgemoe.model.build import Graph
from edgemoe.model.graph import Section, Value, Window
from edgemoe.model.relative import bucket_table
from edgemoe.model.rope import RopeSpec, rope_tables, temperature_factors

KvFormat = Literal["f32", "f16", "q8"]
"""The format of keys and values: float32, float16, or int8 in groups of 32 with a float16 scale each."""

ALIGNMENT_BYTES = 64
SNAPSHOT_SHARE = 1 / 8
"""Share of the KV cache that all snapshots may take (`snapshots.py`); each sequence has `LEAST_SNAPSHOTS` anyway."""
LEAST_SNAPSHOTS = 2
"""Snapshots for each sequence at least: one at the end of its prompt, and one in the answer."""
MOST_SNAPSHOTS = 32
"""Snapshots for each sequence whose pages the pool of a window has room for at most."""


def page_count(context_length: int) -> int:
    """The pages of the KV cache that hold a context of this length."""
    return -(-context_length // PAGE_TOKENS)


def pool_pages(window: Window | None, tokens: int, context_length: int, sequences: int = 1) -> int:
    """The pages of a pool: those of every sequence's whole context or, with a window, no more than it needs.

    That is what sequences hold at most while a run of `tokens` tokens goes on, and what some snapshots hold. A sequence
    holds all pages with positions that its next token sees, or would see if it were taken back by `undo` tokens.
    """
    pages = page_count(context_length)
    if window is None:
        return sequences * pages
    before = window.size - 1 + window.undo
    held = sequences + (sequences * (before + PAGE_TOKENS - 2) + tokens) // PAGE_TOKENS
    of_one = page_count(window.size - 1)
    of_snapshots = max(LEAST_SNAPSHOTS * of_one, min(MOST_SNAPSHOTS * of_one, int(pages * SNAPSHOT_SHARE)))
    return min(sequences * pages, held + sequences * of_snapshots)


def bounding_window(window: Window | None, tokens: int, context_length: int, sequences: int = 1) -> Window | None:
    """The window, if it lets a pool have fewer pages than the whole context takes; else None."""
    size = pool_pages(window, tokens, context_length, sequences)
    return None if size == sequences * page_count(context_length) else window


def shape_of(value: Value, tokens: int, context_length: int, sequences: int = 1) -> tuple[int, ...]:
    """The shape of a value for runs of up to `tokens` tokens of sequences of up to `context_length` positions."""
    sizes = {"T": tokens, "C": context_length, "S": sequences, "P": page_count(context_length)}
    if value.home in ("state", "written_once") and value.undo is None:
        sizes["N"] = pool_pages(value.window, tokens, context_length, sequences)
    return tuple(size if isinstance(size, int) else sizes[size] for size in value.shape)


def bytes_of(value: Value, tokens: int, context_length: int, kv_format: KvFormat, sequences: int = 1) -> int:
    """The bytes of a value's array."""
    shape = shape_of(value, tokens, context_length, sequences)
    rows = math.prod(shape[:-1])
    if value.dtype != "kv":
        return 4 * rows * shape[-1]
    if kv_format == "q8":
        return rows * (shape[-1] + 2 * group_count(shape[-1]))
    return rows * shape[-1] * (4 if kv_format == "f32" else 2)


@functools.lru_cache(maxsize=64)
def work_bytes(graph: Graph, tokens: int) -> int:
    """Bytes of the memory that values of a layer share."""
    return max(place_values(section, tokens)[1] for section in graph.distinct_sections())


@functools.lru_cache(maxsize=64)
def encoder_work_bytes(graph: Graph, context_length: int) -> int:
    """Bytes of the memory that values of an encoder's layer share, in a run of a whole input; 0 without an encoder."""
    kinds = {kind: section for section, kind in graph.encoder_kinds()}
    return max((place_values(section, 0, context_length)[1] for section in kinds.values()), default=0)


@functools.lru_cache(maxsize=64)
def kept_bytes(graph: Graph, tokens: int, context_length: int, sequences: int = 1) -> int:
    """Bytes of the values with memory of their own."""
    kept = (value for value in graph.lasting if value.home == "kept")
    return sum(bytes_of(value, tokens, context_length, "f32", sequences) for value in kept)


@functools.lru_cache(maxsize=64)
def state_bytes(graph: Graph, tokens: int, context_length: int, kv_format: KvFormat, sequences: int = 1) -> int:
    """Bytes of what sequences keep of their tokens in pages, in all layers: whole pages."""
    return sum(bytes_of(value, tokens, context_length, kv_format, sequences) for value in graph.state)


@functools.lru_cache(maxsize=64)
def written_once_bytes(graph: Graph, context_length: int, kv_format: KvFormat, sequences: int = 1) -> int:
    """Bytes of what sequences keep of their inputs, in all layers: whole pages of inputs as long as the context."""
    return sum(bytes_of(value, 0, context_length, kv_format, sequences) for value in graph.written_once)


@functools.lru_cache(maxsize=64)
def fixed_row_bytes(graph: Graph) -> int:
    """Bytes of the fixed state of one sequence, in all layers."""
    return sum(bytes_of(value, 0, 0, "f32") for value in graph.fixed_state)


@functools.lru_cache(maxsize=64)
def snapshot_bytes(graph: Graph) -> int:
    """Bytes of one snapshot of the fixed state of a sequence (`fixed_state.py`)."""
    return sum(map(bytes_needed, graph.fixed_state))


def bytes_needed(value: Value) -> int:
    """Bytes of the fixed state of one sequence in one layer that its next token needs."""
    extent, needed = value.shape[1], value.needed
    return bytes_of(value, 0, 0, "f32") * needed // int(extent)


def rope_bytes(graph: Graph, context_length: int) -> int:
    """Bytes of the tables of positions."""
    return sum(bytes_of(value, 0, context_length, "f32") for value in graph.lasting if value.home == "rope")


def place_values(section: Section, tokens: int, context_length: int = 0) -> tuple[list[int], int]:
    """The offset of each value in shared memory, in the order in which they were named, and the bytes of all.

    Only an encoder's values depend on the length of the context.
    """
    placed: list[tuple[int, int, int, int]] = []  # first step, last step, offset, end
    for value, (first, last) in section.lives().items():
        size = -(-bytes_of(value, tokens, context_length, "f32") // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        offset = 0
        for _, _, begin, end in sorted((p for p in placed if p[0] <= last and first <= p[1]), key=lambda p: p[2]):
            if offset + size <= begin:
                break
            offset = max(offset, end)
        placed.append((first, last, offset, offset + size))
    return [offset for _, _, offset, _ in placed], max((end for *_, end in placed), default=0)


class Workspace:
    """The arrays of a graph's values, for runs of up to `tokens` tokens."""

    def __init__(self, graph: Graph, tokens: int, context_length: int, kv_format: KvFormat, sequences: int = 1) -> None:
        self._tokens = tokens
        self._sequences = sequences
        self._context_length = context_length
        self._kv_format = kv_format
        self._arrays: dict[Value, Any] = {}
        self._memory = _aligned(max(work_bytes(graph, tokens), encoder_work_bytes(graph, context_length)))
        for section, offsets in _placed_sections(graph, tokens, context_length):
            for value, offset in zip(section.born, offsets, strict=True):
                shape = shape_of(value, tokens, context_length)
                size = bytes_of(value, tokens, context_length, "f32")
                dtype = np.int32 if value.dtype == "i32" else np.float32
                self._arrays[value] = self._memory[offset : offset + size].view(dtype).reshape(shape)
        self._rope = functools.lru_cache(maxsize=None)(self._make_rope_tables)
        self.ids: Integers = self.array(graph.ids)
        self.positions: Integers = self.array(graph.positions)
        self.sequences: Integers = self.array(graph.sequences)
        self.pages: Integers = self.array(graph.pages)
        self.residual: Floats = self.array(graph.residual)
        self.head_input: Floats = self.array(graph.head_input)
        self.logits: Floats = self.array(graph.logits)
        if graph.encoder is not None:
            self.input_ids: Integers = self.array(graph.encoder.ids)
            self.input_positions: Integers = self.array(graph.encoder.positions)
            self.input_sequences: Integers = self.array(graph.encoder.sequences)
            self.input_residual: Floats = self.array(graph.encoder.residual)

    def array(self, value: Any) -> Any:
        """The array, or `QuantisedCache`, of a value."""
        array = self._arrays.get(value)
        if array is None:
            array = self._arrays[value] = self._make(cast(Value, value))
        return array

    @property
    def passing(self) -> npt.NDArray[np.uint8]:
        """The memory that values of a layer share, from a page on; between two runs nothing in it is needed."""
        skipped = -self._memory.ctypes.data % PAGE_BYTES
        return self._memory[skipped:]

    def page_groups(self, graph: Graph) -> list[PageGroup]:
        """The layers' pages by the window for which they are kept: the whole context first, though no layer may see it.

        A window that bounds nothing, in a context that is hardly longer, has no pages of its own.
        """
        sizes = self._tokens, self._context_length, self._sequences
        groups: dict[Window | None, PageGroup] = {None: PageGroup(self.pages, pool_pages(None, *sizes))}
        tables = {value.window: value for value in graph.tables}
        for value in graph.state:
            window = bounding_window(value.window, *sizes)
            if window not in groups:
                groups[window] = PageGroup(self.array(tables[window]), pool_pages(window, *sizes), window)
            groups[window].arrays.append(self.array(value))
        return list(groups.values())

    def inputs(self, graph: Graph) -> Inputs | None:
        """The state that sequences keep of their inputs; None without an encoder."""
        if graph.encoder is None:
            return None
        own_pages = self.array(graph.encoder.own_pages)
        own_pages[:] = np.arange(own_pages.shape[1])
        pages = pool_pages(None, self._tokens, self._context_length, self._sequences)
        group = PageGroup(self.array(graph.encoder.pages), pages)
        group.arrays += [self.array(value) for value in graph.written_once]
        return Inputs(group, self.array(graph.encoder.lengths))

    def side_by_side(self, values: Sequence[Any], dtype: type[np.int32] | type[np.float32] = np.int32) -> Any:
        """Let the arrays of these values, which have not been asked for yet, lie in one of their dtype; returns it."""
        shapes = [shape_of(cast(Value, value), self._tokens, self._context_length, self._sequences) for value in values]
        ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
        memory = np.zeros(ends[-1] if ends else 0, dtype)
        for value, shape, end in zip(values, shapes, ends, strict=True):
            assert value not in self._arrays
            self._arrays[value] = memory[end - math.prod(shape) : end].reshape(shape)
        return memory

    def release(self) -> None:
        """Forget the arrays, which are freed when nothing else holds them. None can be asked for afterwards."""
        self._arrays.clear()
        self._memory = np.empty(0, np.uint8)

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays that were made."""
        lasting = sum(array.nbytes for value, array in self._arrays.items() if value.home != "work")
        return int(self._memory.nbytes + lasting)

    def _make(self, value: Value) -> Any:
        if value.temperature is not None:
            return temperature_factors(value.temperature, self._context_length)
        if value.rope is not None:
            return self._rope(value.rope)[("cosine", "sine").index(value.name)]
        if value.relative is not None:
            return bucket_table(*value.relative)
        if value.numbers:
            return np.array(value.numbers, np.float32)
        sizes = self._tokens, self._context_length, self._sequences
        shape = shape_of(value, *sizes)
        if value.dtype == "kv":
            return _empty_cache(shape, self._kv_format)
        if value.window is not None and bounding_window(value.window, *sizes) is None:
            return self.pages
        return np.zeros(shape, np.int32 if value.dtype == "i32" else np.float32)

    def _make_rope_tables(self, rope: RopeSpec) -> tuple[Floats, Floats]:
        return rope_tables(rope, self._context_length)


def _placed_sections(graph: Graph, tokens: int, context_length: int) -> Iterator[tuple[Section, list[int]]]:
    """Every section with the offsets of its values; sections of one kind have the same."""
    kinds: dict[Any, list[int]] = {}
    for section, kind in itertools.chain(graph.kinds(), graph.encoder_kinds()):
        if kind not in kinds:
            kinds[kind] = place_values(section, tokens, context_length)[0]
        yield section, kinds[kind]


def _aligned(size: int) -> npt.NDArray[np.uint8]:
    """Zeroed memory that begins at a multiple of `ALIGNMENT_BYTES`; the system allocates its pages when written."""
    memory = np.zeros(size + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[start : start + size]


def _empty_cache(shape: tuple[int, ...], kv_format: KvFormat) -> Cache:
    """Zeroed pages of keys or values `(N, G, 64, W)` of one layer; the system allocates memory when it is written."""
    if kv_format == "q8":
        scales_shape = (*shape[:-1], group_count(shape[-1]))
        return QuantisedCache(np.zeros(shape, np.int8), np.zeros(scales_shape, np.float16))
    return np.zeros(shape, np.float32 if kv_format == "f32" else np.float16)
