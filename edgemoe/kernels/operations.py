"""The operations that make up a decoder; those on sequences' state and on experts have files of their own.

`state_operations.py` has attention and the recurrent rules, `block_operations.py` what stands for whole blocks of
tokens, `stream_operations.py` what models with several residual streams need, `expert_operations.py` routing and
experts, `mixture_operations.py` mixtures that no router routes.

A decoder describes its work once, as a list of operations bound to their buffers, which a backend (`backend.py`) turns
into a program. `reference` defines the result of each operation, and every other backend is tested against it.

An operation is defined once: the marks of its fields (`marks.py`) give the symbolic shapes to which every
backend holds its buffers, and from which the structs of the C library and their filling are made. An operation that
has a kernel in C has a `code`.

Letters: `T` tokens of this run (at most the buffers' first extent), `D` hidden size, `H` query heads, `G` key/value
heads, `W` width of a head (`Wv` of its values), `R` rotated channels of a head, `E` experts, `K` experts used per
token, `F` FFN width, `C` context length, `V` vocabulary, `M` columns and `N` rows of a matrix; of the arena `S` slots
and `B` bytes of a slot; of the KV cache `N` pages, `S` sequences and `P` pages of each sequence.

Invariants:
- Buffers are C-contiguous; activations are float32. A run touches only the first `T` rows of each.
- The token in row `t` stands at position `positions[t]` of sequence `sequences[t]`, whose pages `pages[sequences[t]]`
  lists. The rows of a run belong to any sequences, in any order. The caller fills these three before each run.
- Each token's result depends on other rows of the same run only through the state of its own sequence (its pages of
  the KV cache, and its row of what `ShortConv`, `Compress`, `DeltaRule` and the scans keep, which is updated in the
  order of positions), so neither the way a prompt is cut into runs, nor the company of other sequences, nor the number
  of threads changes a single bit of an answer.
"""

# Annotations are evaluated here, not left as text, so that the marks in them can be read quickly.

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Union

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.definition import (
    Definition,
    Field,
    Misfit,
    Sizes,
    definition_of,
    measure,
    require,
)
from edgemoe.kernels.formats import Matrix
from edgemoe.kernels.marks import (
    IN_PLACE,
    OUTPUT,
    SHAPED,
    buffer,
    matrix,
    output,
    rows,
    size,
    up_to,
    weight,
)

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

    `quantise_cache_rows` of the reference makes the values and scales.
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


Cache = Union[npt.NDArray[np.floating], QuantisedCache]
"""The pages of keys or values of one layer, `(N, G, 64, W)`: float16, float32, or 8 bits."""


class Operation:
    """Base of all operations, which are frozen dataclasses."""

    code: ClassVar[int | None] = None
    """Its number in the C library's enumeration; None where the library has no kernel for it."""

    def __init_subclass__(cls, code: int | None = None) -> None:
        cls.code = code

    def measure(self) -> Sizes:
        """Find the numbers behind the letters of its shapes, which need no memory behind them. Raises Misfit."""
        sizes = measure(self)
        self.check(sizes)
        return sizes

    def check(self, sizes: Sizes) -> None:
        """Check what the shapes alone do not say. Raises Misfit."""

    def weight_bytes(self) -> int:
        """Return the bytes of weights that it reads for one token."""
        return sum(value.nbytes for field, value in members_of(self) if field.mark.is_weight)

    def position_bytes(self) -> int:
        """Return the bytes that it reads for one token from each position of the KV cache."""
        return 0


def members_of(value: Any) -> Iterator[tuple[Field, Any]]:
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
                yield from members_of(one)


def largest_rows(operation: Operation) -> int:
    """Return the number of elements of the largest buffer with a row for each token."""
    return max((math.prod(v.shape) for field, v in members_of(operation) if field.mark.per_row), default=0)


@dataclass(frozen=True, eq=False, repr=False)
class Embed(Operation, code=0):
    """`output[t] = scale * matrix[ids[t]]`, as many times one after the other as there are `copies`."""

    ids: Annotated[Integers, rows()]
    matrix: Annotated[Matrix, matrix("V", "D")]
    scale: float
    output: Annotated[Floats, rows("copies*D"), OUTPUT]
    copies: int = 1

    def check(self, sizes: Sizes) -> None:
        require(not self.matrix.format.varying, "matrix", "panels of one length", self.matrix.format.name)

    def weight_bytes(self) -> int:
        return self.matrix.nbytes // self.matrix.rows


@dataclass(frozen=True, eq=False, repr=False)
class RmsNorm(Operation, code=1):
    """`output = input / rms(input) * weight * silu(gate)`, over each of `heads` runs of the row; may be in place.

    Without a weight its factor is 1, and so it is without a gate. All runs share a weight of `W` numbers, or, with as
    many `own_weights` as `heads`, each has numbers of its own.
    """

    input: Annotated[Floats, rows("heads*W")]
    weight: Annotated[Floats | None, weight("own_weights*W")]
    epsilon: float
    output: Annotated[Floats, rows("heads*W"), output(apart_from="input", may_replace=True)]
    heads: int = 1
    gate: Annotated[Floats | None, rows("heads*W")] = None
    own_weights: int = 1

    def check(self, sizes: Sizes) -> None:
        require(self.own_weights in (1, self.heads), "own_weights", f"1 or {self.heads}", self.own_weights)


@dataclass(frozen=True, eq=False, repr=False)
class LayerNorm(Operation, code=16):
    """`output = (input - mean) / sqrt(variance + epsilon) * weight + bias`, over each row; may be in place.

    The variance is the mean of the squares of `input - mean` (Ba, Kiros and Hinton 2016). Without a bias none is added.
    """

    input: Annotated[Floats, rows("D")]
    weight: Annotated[Floats, weight("D")]
    epsilon: float
    output: Annotated[Floats, rows("D"), output(apart_from="input", may_replace=True)]
    bias: Annotated[Floats | None, weight("D")] = None


@dataclass(frozen=True, eq=False, repr=False)
class LinearPart:
    """One of the matrices that share an input, with the buffer for its product."""

    matrix: Annotated[Matrix, matrix("N", "M")]
    bias: Annotated[Floats | None, weight("N")]
    output: Annotated[Floats, rows("N"), output(apart_from="input", adds_if="accumulate")]


MOST_PARTS = 4
"""The most matrices that share an input in one `Linear`."""


@dataclass(frozen=True, eq=False, repr=False)
class Linear(Operation, code=2):
    """For each part `output = scale * (matrix input + bias)`, or `output += ...` if `accumulate`."""

    input: Annotated[Floats, rows("M")]
    parts: Annotated[tuple[LinearPart, ...], up_to(MOST_PARTS)]
    scale: float = 1.0
    accumulate: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class Rope(Operation, code=3):
    """Rotates each head in place: `(a, b) -> (a cos - b sin, b cos + a sin)`.

    `a` and `b` are the halves of its first `R` channels, or of the `last`, or with `neighbours` the even and the odd
    ones of these; the other `W - R` channels stay as they are. With `back` it turns the other way.
    """

    values: Annotated[Floats, rows("heads*W"), IN_PLACE]
    heads: int
    positions: Annotated[Integers, rows()]
    cosine: Annotated[Floats, buffer("C", "R/2")]  # row = position
    sine: Annotated[Floats, buffer("C", "R/2")]
    neighbours: bool = False
    last: bool = False
    back: bool = False

    def check(self, sizes: Sizes) -> None:
        width, rotated = sizes.letters["W"], sizes.letters["R"]
        require(
            rotated <= width, "cosine", f"at most {width // 2} columns, for heads of {width} channels", rotated // 2
        )


@dataclass(frozen=True, eq=False, repr=False)
class ScaleByPosition(Operation, code=27):
    """Multiplies each row in place by the factor of its token's position."""

    values: Annotated[Floats, rows("M"), IN_PLACE]
    positions: Annotated[Integers, rows()]
    factors: Annotated[Floats, buffer("C")]


@dataclass(frozen=True, eq=False, repr=False)
class Clip(Operation, code=14):
    """Holds each number in place to `-limit .. limit`; a NaN stays one."""

    values: Annotated[Floats, rows("M"), IN_PLACE]
    limit: float

    def check(self, sizes: Sizes) -> None:
        require(0 < self.limit < math.inf, "limit", "a number above 0", self.limit)


@dataclass(frozen=True, eq=False, repr=False)
class HeadLinear(Operation, code=19):
    """Multiplies each head by a matrix of its own: head `h` of `output` is `[matrix[h] input[h] | passed[h]]`.

    Rows `h * N .. h * N + N - 1` of `matrix` are those of head `h`. Without `passed` the product is all of it.
    """

    input: Annotated[Floats, rows("H*M")]
    matrix: Annotated[Matrix, matrix("H*N", "M")]
    passed: Annotated[Floats | None, rows("H*R")]
    heads: Annotated[int, size("H")]
    output: Annotated[Floats, rows("H*W"), output(apart_from="input")]

    def check(self, sizes: Sizes) -> None:
        require(not self.matrix.format.varying, "matrix", "panels of one length", self.matrix.format.name)
        width, expected = sizes.letters["W"], sizes.letters["N"] + sizes.letters.get("R", 0)
        require(width == expected, "output", f"heads of {expected} channels", width)


GateFunction = Literal["sigmoid", "softplus", "identity", "silu"]
"""The function that makes a factor of a gate's number `g`: `1 / (1 + exp(-g))`, `log(1 + exp(g))`, `g` itself, or
`g / (1 + exp(-g))`."""


@dataclass(frozen=True, eq=False, repr=False)
class Gate(Operation, code=15):
    """Multiplies in place: each of the equal `runs` of a row by what `gating` makes of its own number of `gate`.

    With a number for each head of attention's output a run is a head; with one for each channel, a channel.
    """

    gate: Annotated[Floats, rows("runs")]
    values: Annotated[Floats, rows("runs*width"), IN_PLACE]
    gating: GateFunction


@dataclass(frozen=True, eq=False, repr=False)
class SoftCap(Operation, code=17):
    """Brings numbers within `-limit .. limit` smoothly, in place: `limit * tanh(value / limit)` (Gemma 2, 2024)."""

    values: Annotated[Floats, rows("M"), IN_PLACE]
    limit: float

    def check(self, sizes: Sizes) -> None:
        require(0 < self.limit < math.inf, "limit", "a number above 0", self.limit)


ActivationFunction = Literal["silu", "clamped_silu", "gelu_tanh", "relu", "relu2", "capped_silu", "gelu"]
"""The functions between the products of an FFN: see `Activation`."""


@dataclass(frozen=True)
class Activation:
    """The function of gate's number `g` and up's number `u` whose result an FFN multiplies by `down`.

    An FFN that is not `gated` has no gate: then `g` is up's number, and `u` is 1.

    silu: `g * sigmoid(g) * u` (SwiGLU, Shazeer 2020). clamped_silu: `g * sigmoid(alpha * g) * (u + offset)`, after
    `g` was held to at most `limit` and `u` to `-limit .. limit` (gpt-oss). capped_silu: `min(g * sigmoid(g), limit) *
    u`, with `u` held to `-limit .. limit` (Ling 3, Step 3.5).
    gelu_tanh: `g * sigmoid(GELU_LINEAR * g + GELU_CUBIC * g^3) * u`, which is
    `0.5 * g * (1 + tanh(sqrt(2 / pi) * (g + 0.044715 * g^3))) * u` (Hendrycks and Gimpel 2016).
    gelu: `g * Phi(g) * u`, where `Phi` is the normal distribution: the function that gelu_tanh comes near to.
    relu: `max(g, 0) * u`. relu2: `max(g, 0)^2 * u` (Primer, So et al. 2021).
    Kernels round every step to float32.
    """

    function: ActivationFunction = "silu"
    alpha: float = 1.0
    limit: float | None = None
    offset: float | None = None  # none: 0
    gated: bool = True

    def check(self) -> None:
        """Check that its function takes the numbers that it has. Raises Misfit."""
        clamped, capped = self.function == "clamped_silu", self.function == "capped_silu"
        require(self.gated or not (clamped or capped), "gated", f"a gate for {self.function}", "none")
        require(clamped or (self.alpha == 1 and self.offset is None), "function", "clamped_silu", self.function)
        limited = clamped or capped
        held = (self.limit is not None) == limited
        require(held, "limit", f"{'a' if limited else 'no'} limit for {self.function}", self.limit)
        for name, value in (("alpha", self.alpha), ("limit", self.limit)):
            require(value is None or 0 < value < math.inf, name, "a number above 0", value)
        require(math.isfinite(self.offset or 0), "offset", "a finite number", self.offset)


SILU = Activation()
GELU_TANH = Activation("gelu_tanh")
GELU = Activation("gelu", gated=False)
RELU = Activation("relu", gated=False)
RELU2 = Activation("relu2", gated=False)
"""Activations of FFNs without a gate: of BERT and PEER, Vaswani et al. 2017, and Primer."""
GELU_LINEAR = 2 * math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715 * GELU_LINEAR


@dataclass(frozen=True, eq=False, repr=False)
class FfnBiases:
    """The vectors that are added to the products of an FFN: to those of gate and up before the activation."""

    gate: Annotated[Floats | None, weight("F")]
    up: Annotated[Floats, weight("F")]
    down: Annotated[Floats, weight("D")]


@dataclass(frozen=True, eq=False, repr=False)
class UnlikeMatrices:
    """Gate and up of two formats."""

    gate: Annotated[Matrix, matrix("F", "D")]
    up: Annotated[Matrix, matrix("F", "D")]


@dataclass(frozen=True, eq=False, repr=False)
class GatedFfn(Operation, code=8):
    """`output = down (activation(gate input, up input))`, each product plus its bias if there are biases.

    Gate and up are one matrix, panel by panel in turn, or `apart`.
    """

    input: Annotated[Floats, rows("D")]
    gate_up: Annotated[Matrix | None, matrix("2*up16(F)", "D")]
    down: Annotated[Matrix, matrix("D", "F")]
    output: Annotated[Floats, rows("D"), output(apart_from="input")]
    activation: Activation = SILU
    biases: FfnBiases | None = None
    apart: UnlikeMatrices | None = None

    def check(self, sizes: Sizes) -> None:
        both = self.gate_up is not None
        require(both == (self.apart is None), "apart", "none beside `gate_up`" if both else "gate and up", self.apart)
        check_activation(self.activation, gated=True)
        check_biases(self.biases, gated=True)


@dataclass(frozen=True, eq=False, repr=False)
class PlainFfn(Operation, code=23):
    """`output = down (activation(up input))`, each product plus its bias if there are biases: an FFN without a gate."""

    input: Annotated[Floats, rows("D")]
    up: Annotated[Matrix, matrix("F", "D")]
    down: Annotated[Matrix, matrix("D", "F")]
    output: Annotated[Floats, rows("D"), output(apart_from="input")]
    activation: Activation = RELU
    biases: FfnBiases | None = None

    def check(self, sizes: Sizes) -> None:
        check_activation(self.activation, gated=False)
        check_biases(self.biases, gated=False)


def check_activation(activation: Activation, gated: bool) -> None:
    """Check the activation of an operation whose FFNs have a gate or not. Raises Misfit."""
    try:
        activation.check()
        require(activation.gated == gated, "gated", gated, activation.gated)
    except Misfit as misfit:
        raise misfit.within("activation") from None


def check_biases(biases: FfnBiases | None, gated: bool) -> None:
    """Check that the biases of an FFN have one for its gate, or none. Raises Misfit."""
    if biases is not None and gated != (biases.gate is not None):
        raise Misfit("biases.gate", "a vector" if gated else "none", "none" if gated else "a vector")


@dataclass(frozen=True, eq=False, repr=False)
class Mix(Operation, code=13):
    """`output[t] = factor * (keep * base[t] + share * (scale * result[t]) + shift)`: a block's result joins the stream.

    `keep`, `share` and `shift` have an element for each channel, `factor` has one for all; without them the factors are
    1, and nothing is added.
    """

    base: Annotated[Floats, rows("D")]
    result: Annotated[Floats, rows("D")]
    scale: float
    keep: Annotated[Floats | None, weight("D")]
    share: Annotated[Floats | None, weight("D")]
    shift: Annotated[Floats | None, weight("D")]
    output: Annotated[Floats, rows("D"), output(apart_from="base", may_replace=True)]
    factor: Annotated[Floats | None, weight("1")] = None
