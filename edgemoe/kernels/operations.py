"""The operations that make up a decoder.

A decoder describes its work once, as a list of operations bound to their buffers, which a backend (`backend.py`) turns
into a program. `reference.py` defines the result of each operation, and every other backend is tested against it.

An operation is defined here once: the marks of its fields (`definition.py`) give the symbolic shapes to which every
backend holds its buffers, and from which the structs of the C library and their filling are made.

Letters: `T` tokens of this run (at most the buffers' first extent), `D` hidden size, `H` query heads, `G` key/value
heads, `W` width of a head (`Wv` of its values), `R` rotated channels of a head, `E` experts, `K` experts used per
token, `F` FFN width, `C` context length, `V` vocabulary, `M` columns and `N` rows of a matrix; of the arena `S` slots
and `B` bytes of a slot; of the KV cache `N` pages, `S` sequences and `P` pages of each sequence.

Invariants:
- Buffers are C-contiguous; activations are float32. A run touches only the first `T` rows of each.
- The token in row `t` stands at position `positions[t]` of sequence `sequences[t]`, whose pages `pages[sequences[t]]`
  lists. The rows of a run belong to any sequences, in any order. The caller fills these three before each run.
- Each token's result depends on other rows of the same run only through the state of its own sequence (its pages of
  the KV cache, and its row of what `ShortConv` keeps), so neither the way a prompt is cut into runs, nor the company of
  other sequences, nor the number of threads changes a single bit of an answer.
"""

# Annotations are evaluated here, not left as text, so that the marks in them can be read quickly.

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, Union

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.definition import (
    IN_PLACE,
    LARGEST_EXTENT,
    NUMBER,
    OFFSET,
    OUTPUT,
    PAGER,
    SHAPED,
    Definition,
    Field,
    Misfit,
    Sizes,
    buffer,
    cache,
    definition_of,
    matrix,
    measure,
    output,
    require,
    rows,
    size,
    up_to,
    weight,
)
from edgemoe.kernels.formats import PANEL_ROWS, Format, Matrix, panel_count

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]


PAGE_TOKENS = 64
"""Positions in a page of the KV cache: the block of keys and values whose products attention sums at a time."""


class Placeholder:
    """An array's shape and type without its memory, for sizes that are wanted before anything is allocated.

    It stands in any buffer of an operation (a weight matrix is then one without data). Such operations are measured,
    and `Backend.scratch_bytes` takes them; `Backend.program` refuses them.
    """

    __slots__ = ("dtype", "nbytes", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.nbytes = math.prod(shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False, repr=False)
class QuantisedCache:
    """Keys or values in 8 bits: element `[..., i]` is `values[..., i] * scales[..., i // 32]`, a float32 exactly.

    `reference.quantise_cache_rows` makes the values and scales.
    """

    values: npt.NDArray[np.int8]  # (N, G, 64, W)
    scales: npt.NDArray[np.float16]  # (N, G, 64, groups of W): a row's last group may have fewer than 32 elements

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[np.int8]:
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes


_PAGE = str(PAGE_TOKENS)

Cache = Union[npt.NDArray[np.floating], QuantisedCache]
"""The pages of keys or values of one layer, `(N, G, 64, W)`: float16, float32, or 8 bits."""


class Operation:
    """Base of all operations, which are frozen dataclasses."""

    def measure(self) -> Sizes:
        """Find the numbers behind the letters of its shapes, which need no memory behind them. Raises Misfit."""
        sizes = measure(self)
        self.check(sizes)
        return sizes

    def check(self, sizes: Sizes) -> None:
        """Check what the shapes alone do not say. Raises Misfit."""

    def weight_bytes(self) -> int:
        """Return the bytes of weights that it reads for one token."""
        return sum(value.nbytes for field, value in _members(self) if field.mark.is_weight)

    def position_bytes(self) -> int:
        """Return the bytes that it reads for one token from each position of the KV cache."""
        return 0


def _members(value: Any) -> Iterator[tuple[Field, Any]]:
    """Yield the fields of an operation that have a shape, with what they hold; those of nested structs too."""
    definition: Definition = definition_of(type(value))
    for field in definition.fields:
        member = getattr(value, field.name)
        if member is None:
            continue
        if field.mark.kind in SHAPED:
            yield field, member
        elif field.struct is not None:
            for one in member if field.mark.kind == "structs" else (member,):
                yield from _members(one)


def largest_rows(operation: Operation) -> int:
    """Return the number of elements of the largest buffer with a row for each token."""
    return max((math.prod(v.shape) for field, v in _members(operation) if field.mark.per_row), default=0)


@dataclass(frozen=True, eq=False, repr=False)
class Embed(Operation):
    """`output[t] = scale * matrix[ids[t]]`."""

    ids: Annotated[Integers, rows()]
    matrix: Annotated[Matrix, matrix("V", "D")]
    scale: float
    output: Annotated[Floats, rows("D"), OUTPUT]

    def weight_bytes(self) -> int:
        return self.matrix.nbytes // self.matrix.rows


@dataclass(frozen=True, eq=False, repr=False)
class RmsNorm(Operation):
    """`output = input / rms(input) * weight`, over each of `heads` runs of the row; may be in place."""

    input: Annotated[Floats, rows("heads*W")]
    weight: Annotated[Floats, weight("W")]
    epsilon: float
    output: Annotated[Floats, rows("heads*W"), output(apart_from="input", may_replace=True)]
    heads: int = 1


@dataclass(frozen=True, eq=False, repr=False)
class LinearPart:
    """One of the matrices that share an input, with the buffer for its product."""

    matrix: Annotated[Matrix, matrix("N", "M")]
    bias: Annotated[Floats | None, weight("N")]
    output: Annotated[Floats, rows("N"), output(apart_from="input", adds_if="accumulate")]


@dataclass(frozen=True, eq=False, repr=False)
class Linear(Operation):
    """For each part `output = scale * (matrix input + bias)`, or `output += ...` if `accumulate`."""

    input: Annotated[Floats, rows("M")]
    parts: Annotated[tuple[LinearPart, ...], up_to(4)]
    scale: float = 1.0
    accumulate: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class Rope(Operation):
    """Rotates each head in place: `(a, b) -> (a cos - b sin, b cos + a sin)`.

    `a` and `b` are the halves of its first `R` channels; the other `W - R` stay as they are.
    """

    values: Annotated[Floats, rows("heads*W"), IN_PLACE]
    heads: int
    positions: Annotated[Integers, rows()]
    cosine: Annotated[Floats, buffer("C", "R/2")]  # row = position
    sine: Annotated[Floats, buffer("C", "R/2")]

    def check(self, sizes: Sizes) -> None:
        width, rotated = sizes.letters["W"], sizes.letters["R"]
        require(
            rotated <= width, "cosine", f"at most {width // 2} columns, for heads of {width} channels", rotated // 2
        )


def _check_one_format(keys: Cache, values: Cache) -> None:
    """Check that keys and values are kept in the same format."""
    if keys.dtype != values.dtype:
        raise Misfit("value_cache", f"the key cache's {keys.dtype.name}", values.dtype.name)


@dataclass(frozen=True, eq=False, repr=False)
class StoreKv(Operation):
    """Writes the keys and values of each row's token to the page of its position.

    No two rows of a run may have the same page and the same place in it.
    """

    keys: Annotated[Floats, rows("G*W")]
    values: Annotated[Floats, rows("G*Wv")]
    positions: Annotated[Integers, rows()]
    sequences: Annotated[Integers, rows()]  # rows of `pages`
    pages: Annotated[Integers, buffer("S", "P")]  # the page of each 64 positions of a sequence; -1 where it has none
    key_cache: Annotated[Cache, cache("N", "G", _PAGE, "W"), OUTPUT]
    value_cache: Annotated[Cache, cache("N", "G", _PAGE, "Wv"), OUTPUT]  # of the key cache's format

    def check(self, sizes: Sizes) -> None:
        _check_one_format(self.key_cache, self.value_cache)


@dataclass(frozen=True, eq=False, repr=False)
class Attention(Operation):
    """Causal attention over the cache: row `t` sees positions `0 .. positions[t]` of its sequence.

    With a `window` it sees the last `window` of these, its own position included. A head's sink is one more logit of
    its softmax, which takes a share of the sum and adds no value.
    """

    query: Annotated[Floats, rows("H*W")]
    positions: Annotated[Integers, rows()]
    sequences: Annotated[Integers, rows()]  # rows of `pages`
    pages: Annotated[Integers, buffer("S", "P")]  # as those of `StoreKv`
    key_cache: Annotated[Cache, cache("N", "G", _PAGE, "W")]
    value_cache: Annotated[Cache, cache("N", "G", _PAGE, "Wv")]
    scale: float
    output: Annotated[Floats, rows("H*Wv"), output(apart_from="query")]
    window: Annotated[int, NUMBER] = 0  # 0: none
    sinks: Annotated[Floats | None, weight("H")] = None

    def check(self, sizes: Sizes) -> None:
        heads, kv_heads = sizes.letters["H"], sizes.letters["G"]
        if heads % kv_heads:
            raise Misfit("query", f"heads in {kv_heads} equal groups", f"{heads} heads")
        require(0 <= self.window <= LARGEST_EXTENT, "window", f"0 to {LARGEST_EXTENT}", self.window)
        _check_one_format(self.key_cache, self.value_cache)

    def position_bytes(self) -> int:
        caches = (self.key_cache, self.value_cache)
        return sum(cache.nbytes // (cache.shape[0] * PAGE_TOKENS) for cache in caches)


MOST_TAPS = 64
"""The most tokens that a short convolution runs over."""


@dataclass(frozen=True, eq=False, repr=False)
class ShortConv(Operation):
    """A gated causal convolution over the last `length` tokens of a sequence, each channel by itself.

    A row of `gates` holds `B`, `C` and `x`, the thirds of a projection. With `u = B * x`, each rounded to float32,
    `output[t] = C[t] * (bias + taps[:, 0] * u[t - length + 1] + ... + taps[:, length - 1] * u[t])`, where `t` counts
    positions of the row's sequence, and `u` before position 0 is zero. The sum runs in this order.

    `inputs` is a ring for each sequence that holds `u` of earlier runs: that of position `p` lies at `p % ring`. The
    operation puts `u` of all its rows there too. Rows of one sequence come in the order of their positions, and may
    have rows of others between them.
    Source: LFM2 (Liquid AI 2025, arXiv 2511.23404).
    """

    gates: Annotated[Floats, rows("3*D")]
    taps: Annotated[Floats, weight("D*length")]  # (D, length)
    bias: Annotated[Floats | None, weight("D")]
    positions: Annotated[Integers, rows()]
    sequences: Annotated[Integers, rows()]  # rows of `inputs`
    inputs: Annotated[Floats, buffer("S", "ring", "D"), IN_PLACE]
    output: Annotated[Floats, rows("D"), output(apart_from="gates")]

    def check(self, sizes: Sizes) -> None:
        least = sizes.letters["length"] - 1
        require(least < MOST_TAPS, "taps", f"at most {MOST_TAPS} of each channel", sizes.letters["length"])
        require(sizes.letters["ring"] >= least, "inputs", f"a ring of at least {least}", sizes.letters["ring"])


Score = Literal["softmax", "sigmoid"]
"""How a logit becomes the share of an expert: by all logits of the token, or by itself."""


@dataclass(frozen=True, eq=False, repr=False)
class Route(Operation):
    """The `K` experts of largest choice score (the lower number on a tie), in falling order, and their weights.

    An expert's choice score is its logit; with `choice_bias`, or of `sigmoid`, it is `score + choice_bias` in float32.
    Of several `groups`, equal runs of experts, the `kept_groups` of largest sum of their two largest choice scores are
    kept (the lower number on a tie), and experts of the others are not chosen.

    Weights are the scores of the chosen experts, without `choice_bias`. With `renormalise` they are divided by
    their sum plus `epsilon` (of softmax without `epsilon`: softmax over the chosen `K`). Last they are multiplied by
    `scale`.

    With `slots` the expert of largest choice score is still chosen, and the other `K - 1` by largest raised score (on
    a tie by larger choice score, then the lower number). It is `choice score + bonus * (largest - smallest)` of experts
    that have a slot, else the choice score; the range is that of the choice scores in kept groups. It is computed in
    float32, without the bonus for a token whose range is not finite. Groups are kept, and the chosen experts listed and
    weighted, as without the bonus.
    Source of the idea: cache-conditional experts (Skliar et al. 2024, arXiv 2412.00099). Of sigmoid scores with a bias
    for the choice alone, and of groups: DeepSeek-V3 (2024, arXiv 2412.19437).
    """

    logits: Annotated[Floats, rows("E")]
    renormalise: bool
    experts: Annotated[Integers, rows("K"), OUTPUT]
    weights: Annotated[Floats, rows("K"), OUTPUT]
    slots: Annotated[Integers | None, buffer("E")] = None  # slot of each expert, or -1; a pager changes it between runs
    bonus: float = 0.0  # 0 to 1
    score: Score = "softmax"
    choice_bias: Annotated[Floats | None, weight("E")] = None
    groups: int = 1
    kept_groups: int = 1
    epsilon: float = 0.0
    scale: float = 1.0

    def check(self, sizes: Sizes) -> None:
        used, experts = sizes.letters["K"], sizes.letters["E"]
        require(0 <= self.bonus <= 1, "bonus", "0 to 1", self.bonus)
        require(self.kept_groups <= self.groups, "kept_groups", f"at most {self.groups}", self.kept_groups)
        if self.groups > 1:
            grouped = experts % self.groups == 0 and experts // self.groups > 1
            require(grouped, "groups", f"equal runs of at least 2 of {experts} experts", self.groups)
        most = experts // self.groups * self.kept_groups
        if used > most:
            raise Misfit("experts", f"at most {most} per token", used)
        require(not self.epsilon or self.score == "sigmoid", "epsilon", "0 for softmax", self.epsilon)


ActivationFunction = Literal["silu", "clamped_silu"]
"""The functions between the two products of a gated FFN: see `Activation`."""


@dataclass(frozen=True)
class Activation:
    """The function of gate's number `g` and up's number `u` whose result a gated FFN multiplies by `down`.

    silu: `g * sigmoid(g) * u` (SwiGLU, Shazeer 2020). clamped_silu: `g * sigmoid(alpha * g) * (u + offset)`, after
    `g` was held to at most `limit` and `u` to `-limit .. limit` (gpt-oss). Kernels round every step to float32.
    """

    function: ActivationFunction = "silu"
    alpha: float = 1.0
    limit: float | None = None
    offset: float | None = None  # none: 0

    def check(self) -> None:
        """Check that its function takes the numbers that it has. Raises Misfit."""
        clamped = self.function == "clamped_silu"
        require(clamped or (self.alpha == 1 and self.offset is None), "function", "clamped_silu", self.function)
        limited = (self.limit is not None) == clamped
        require(limited, "limit", f"{'a' if clamped else 'no'} limit for {self.function}", self.limit)
        for name, value in (("alpha", self.alpha), ("limit", self.limit)):
            require(value is None or 0 < value < math.inf, name, "a number above 0", value)
        require(math.isfinite(self.offset or 0), "offset", "a finite number", self.offset)


SILU = Activation()


@dataclass(frozen=True, eq=False, repr=False)
class FfnBiases:
    """The vectors that are added to the products of a gated FFN: to those of gate and up before the activation."""

    gate: Annotated[Floats, weight("F")]
    up: Annotated[Floats, weight("F")]
    down: Annotated[Floats, weight("D")]


@dataclass(frozen=True, eq=False, repr=False)
class GatedFfn(Operation):
    """`output = down (activation(gate input, up input))`, each product plus its bias if there are biases."""

    input: Annotated[Floats, rows("D")]
    gate_up: Annotated[Matrix, matrix("2*up16(F)", "D")]  # gate and up panels interleaved
    down: Annotated[Matrix, matrix("D", "F")]
    output: Annotated[Floats, rows("D"), output(apart_from="input")]
    activation: Activation = SILU
    biases: FfnBiases | None = None

    def check(self, sizes: Sizes) -> None:
        _check_activation(self.activation)


def _check_activation(activation: Activation) -> None:
    try:
        activation.check()
    except Misfit as misfit:
        raise misfit.within("activation") from None


MOST_LAYOUTS = 16
"""The most layouts that the records of one layer may have."""


@dataclass(frozen=True)
class ExpertLayout:
    """Where an expert's matrices lie in its record: `gate_up` at 0, `down` at `down_offset`; biases if there are any.

    Biases are float32 vectors, of gate, of up and of down, each filled up to a multiple of 64 bytes.
    """

    hidden_size: Annotated[int, size("D")]
    intermediate_size: Annotated[int, size("F")]
    gate_up_format: Format
    down_format: Format
    down_offset: Annotated[int, OFFSET]  # bytes, a multiple of 64
    biases_offset: Annotated[int, OFFSET] = 0  # bytes, a multiple of 64; 0: no biases

    @property
    def gate_up_rows(self) -> int:
        """Rows of `gate_up`: gate's and up's, each rounded up to whole panels."""
        return 2 * PANEL_ROWS * panel_count(self.intermediate_size)

    @property
    def gate_up_bytes(self) -> int:
        return self.gate_up_format.matrix_bytes(self.gate_up_rows, self.hidden_size)

    @property
    def down_bytes(self) -> int:
        return self.down_format.matrix_bytes(self.hidden_size, self.intermediate_size)

    def bias_offsets(self) -> dict[str, int]:
        """The place in the record of the biases of gate, up and down, in bytes, and of the `end` behind them."""
        up = self.biases_offset + _vector_bytes(self.intermediate_size)
        down = up + _vector_bytes(self.intermediate_size)
        return {"gate": self.biases_offset, "up": up, "down": down, "end": down + _vector_bytes(self.hidden_size)}

    @property
    def bias_bytes(self) -> int:
        return self.bias_offsets()["end"] - self.biases_offset if self.biases_offset else 0

    def weights(self, record: Bytes) -> tuple[Matrix, Matrix, FfnBiases | None]:
        """Return the `gate_up` and `down` matrices and the biases of an expert's record, as views."""
        down = record[self.down_offset : self.down_offset + self.down_bytes]
        biases = None
        if self.biases_offset:
            starts, F = self.bias_offsets(), self.intermediate_size
            lengths = {"gate": F, "up": F, "down": self.hidden_size}
            views = {name: record[starts[name] :][: 4 * n].view(np.float32) for name, n in lengths.items()}
            biases = FfnBiases(**views)
        return (
            Matrix(record[: self.gate_up_bytes], self.gate_up_format, self.gate_up_rows, self.hidden_size),
            Matrix(down, self.down_format, self.hidden_size, self.intermediate_size),
            biases,
        )


def _vector_bytes(elements: int) -> int:
    """Bytes of a float32 vector within a record, filled up to a multiple of 64: 16 elements, as in a panel."""
    return 4 * PANEL_ROWS * panel_count(elements)


@dataclass(frozen=True, eq=False)
class RecordLayouts:
    """The layouts of the records of one layer's experts, which may differ in formats."""

    layouts: tuple[ExpertLayout, ...]
    layout_of: Bytes
    """For each expert the number of its layout, `(E,)`."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RecordLayouts):
            return NotImplemented
        return self.layouts == other.layouts and np.array_equal(self.layout_of, other.layout_of)

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[Any]:
        """Yield the two arguments of `Experts`."""
        return iter((self.layouts, self.layout_of))


PROMPT, DECODE, VERIFY = 0, 1, 2
"""Phases: tokens of a prompt, generated ones, and guessed ones that are verified."""


class Pager(Protocol):
    """The expert cache as a kernel in Python asks it (`ExpertCache`); kernels in C ask the pager in C."""

    wait_ns: int
    """Time for which it has waited for reads so far."""

    def fetch(self, layer: int, experts: Integers, weights: Floats | None, drop_cold: float) -> None:
        """Begin a use of the experts that tokens are routed to, `(T, K)`: see `Fetch`."""

    def landings(self, layer: int) -> Generator[tuple[int, int], None, None]:
        """Yield each expert of the use with its slot, once its record is there. Raises ReadError naming the expert."""

    def left_out(self, layer: int) -> Sequence[int]:
        """The experts that the use leaves out."""

    def prefetch(self, layer: int, experts: Sequence[int]) -> None:
        """Begin to read experts that a layer will probably use; demand reads go first."""


@dataclass(frozen=True, eq=False, repr=False)
class Paged:
    """Where an operation asks for the experts of a layer: not all are in the arena."""

    pager: Annotated[Any, PAGER]
    layer: Annotated[int, NUMBER]


@dataclass(frozen=True, eq=False, repr=False)
class Fetch(Operation):
    """Begins to read the absent experts that a layer's tokens are routed to, as far as slots are available.

    Everything up to the layer's `Experts` is computed meanwhile. With `weights` and `drop_cold` above 0, absent experts
    whose share of the weights is below `drop_cold`, a float32, for every token that uses them are left out: they are
    not read, and their weights become 0. A token's weights are summed in float64, in the router's order; a weight that
    is not a number keeps its expert. Without `paged`, where all experts are in the arena, there is nothing to do.
    """

    experts: Annotated[Integers, rows("K")]
    weights: Annotated[Floats | None, rows("K"), IN_PLACE]
    drop_cold: float
    paged: Paged | None = None

    def check(self, sizes: Sizes) -> None:
        require(0 <= self.drop_cold <= 1, "drop_cold", "0 to 1", self.drop_cold)


@dataclass(frozen=True, eq=False, repr=False)
class Prefetch(Operation):
    """Begins to read the experts that guesses at a later layer's routing name, behind all that are asked for.

    Experts that several tokens' guesses name are read once; the first token's come first.
    """

    experts: Annotated[Integers, rows("K")]
    paged: Paged | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Experts(Operation):
    """`output[t, k] = expert experts[t, k] (input[t])` for experts whose `slots[e] >= 0`.

    Output rows of other experts are left unchanged. Each token's results go to rows of their own, so the order in which
    experts arrive does not affect the result. With `paged`, a `Fetch` of the same experts has come before; experts
    whose records are in the arena are computed first, the others as their records land, and where slots are too few
    for all they take turns. `slots` is then the pager's own table, and the rows of experts that were left out become
    zeros. A run raises ReadError naming layer and expert if a read fails or takes too long.
    """

    input: Annotated[Floats, rows("D")]
    experts: Annotated[Integers, rows("K")]
    slots: Annotated[Integers, buffer("E")]  # index of the expert's record in the arena, or -1
    arena: Annotated[Bytes, buffer("S", "B", aligned=True)]
    layouts: Annotated[tuple[ExpertLayout, ...], up_to(MOST_LAYOUTS)]  # of records of this layer, which may differ
    layout_of: Annotated[Bytes, buffer("E")]  # number of the layout of the expert's record
    output: Annotated[Floats, rows("K", "D"), output(apart_from="input")]
    paged: Paged | None = None
    activation: Activation = SILU

    def check(self, sizes: Sizes) -> None:
        _check_activation(self.activation)
        slot_bytes, intermediate_size = sizes.letters["B"], self.layouts[0].intermediate_size
        for number, layout in enumerate(self.layouts):
            least, offset = layout.gate_up_bytes, layout.down_offset
            end = offset + layout.down_bytes
            if layout.intermediate_size != intermediate_size:
                raise Misfit(f"layouts[{number}].intermediate_size", intermediate_size, layout.intermediate_size)
            if offset < least or offset % 64:
                raise Misfit(f"layouts[{number}].down_offset", f"a multiple of 64, at least {least}", offset)
            if layout.biases_offset:
                if layout.biases_offset < end or layout.biases_offset % 64:
                    expected = f"0, or a multiple of 64, at least {end}"
                    raise Misfit(f"layouts[{number}].biases_offset", expected, layout.biases_offset)
                end = layout.bias_offsets()["end"]
            if (end > slot_bytes and sizes.letters["S"]) or slot_bytes % 64:
                raise Misfit("arena", f"slots of at least {end} bytes, a multiple of 64", slot_bytes)

    def weight_bytes(self) -> int:
        """Return the bytes of the experts of one token: on average, where their layouts differ."""
        counts: list[int] = np.bincount(self.layout_of, minlength=len(self.layouts)).tolist()
        sizes = (x.gate_up_bytes + x.down_bytes + x.bias_bytes for x in self.layouts)
        total = sum(count * size for count, size in zip(counts, sizes, strict=True))
        top_k: int = self.experts.shape[1]
        return top_k * (total // len(self.layout_of))

    def weights(self, expert: int, slot: int) -> tuple[Matrix, Matrix, FfnBiases | None]:
        """Return `gate_up`, `down` and biases of an expert whose record is in a slot, as views of it."""
        return self.layouts[int(self.layout_of[expert])].weights(self.arena[slot])


@dataclass(frozen=True, eq=False, repr=False)
class Combine(Operation):
    """`output[t] += scale * (sum_k weights[t, k] * routed[t, k] + sigmoid(shared_gate[t]) * shared[t])`.

    The sum runs in router order. `routed` or `shared` may be None, not both; that term is then absent. Without
    `shared_gate` the factor of `shared` is 1. Without `accumulate` it is `output[t] = ...`.
    """

    output: Annotated[Floats, rows("D"), output(adds_if="accumulate")]
    scale: float
    routed: Annotated[Floats | None, rows("K", "D")]
    weights: Annotated[Floats | None, rows("K")]
    shared: Annotated[Floats | None, rows("D")]
    shared_gate: Annotated[Floats | None, rows("1")]
    accumulate: bool = True

    def check(self, sizes: Sizes) -> None:
        some = self.routed is not None or self.shared is not None
        require(some, "routed", "a routed or a shared term", "neither")
        paired = (self.routed is None) == (self.weights is None)
        require(paired, "weights", "routed and weights together", "one without the other")
        require(self.shared_gate is None or self.shared is not None, "shared_gate", "a shared term", "none")


@dataclass(frozen=True, eq=False, repr=False)
class Mix(Operation):
    """`output[t] = keep * base[t] + share * (scale * result[t]) + shift`: the result of a block joins the stream.

    `keep`, `share` and `shift` have an element for each channel; without them the factors are 1, and nothing is added.
    """

    base: Annotated[Floats, rows("D")]
    result: Annotated[Floats, rows("D")]
    scale: float
    keep: Annotated[Floats | None, weight("D")]
    share: Annotated[Floats | None, weight("D")]
    shift: Annotated[Floats | None, weight("D")]
    output: Annotated[Floats, rows("D"), output(apart_from="base", may_replace=True)]


NATIVE_OPERATIONS: tuple[type[Operation], ...] = (
    Embed,
    RmsNorm,
    Linear,
    Rope,
    StoreKv,
    Attention,
    ShortConv,
    Route,
    GatedFfn,
    Fetch,
    Prefetch,
    Experts,
    Combine,
    Mix,
)
"""The operations that the C library has, in the order of its enumeration. `native/write_header` writes its structs."""
