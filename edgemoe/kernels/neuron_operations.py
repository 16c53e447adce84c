"""The operations of experts that are single neurons, of which there are a million: retrieval by keys, and their sum.

Defined as those of `operations.py` are, and with its letters and invariants. Source: PEER (He 2024, arXiv 2407.04153),
whose retrieval is that of product keys (Lample et al. 2019, arXiv 1907.05242).

Letters: `H` heads, `J` experts that a head retrieves, `N` halves of keys, `K` experts of a token; of the arena `S`
slots and `B` bytes of a slot, which holds a page; `P` pages.
"""

# Annotations are evaluated here, not left as text, as in `operations.py`.

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from edgemoe.kernels.definition import Sizes, require
from edgemoe.kernels.marks import NUMBER, OUTPUT, ROW_PAGER, buffer, output, rows, size
from edgemoe.kernels.operations import Activation, Bytes, Floats, Integers, Operation
from edgemoe.kernels.pages import PAGE_BYTES

MOST_RETRIEVED = 64
"""The most experts that a head retrieves."""
MOST_NEURONS = 1 << 30
"""The most neurons of all layers."""

Scoring = Literal["softmax", "sigmoid", "relu"]
"""How weights follow from scores: `softmax` over those that a head retrieves, or from each by itself."""


@dataclass(frozen=True, eq=False, repr=False)
class RetrieveByKeys(Operation, code=51):
    """Retrieves for each head the `J` experts of largest score, and their weights.

    Expert `i * N + j` has the score `first[h, i] + second[h, j]`, a float32. Each head first takes the `J` first halves
    and the `J` second halves of largest score, on a tie those of lower number; of their `J * J` pairs it retrieves
    those of largest score, on a tie of lower number, largest first. A NaN counts as less than any number.
    """

    first: Annotated[Floats, rows("H*N")]
    second: Annotated[Floats, rows("H*N")]
    heads: Annotated[int, size("H")]
    experts: Annotated[Integers, rows("H*J"), OUTPUT]
    weights: Annotated[Floats, rows("H*J"), OUTPUT]
    scoring: Scoring = "softmax"

    def check(self, sizes: Sizes) -> None:
        retrieved, keys = sizes.letters["J"], sizes.letters["N"]
        most = min(keys, MOST_RETRIEVED)
        require(retrieved <= most, "experts", f"at most {most} for a head", retrieved)
        require(keys * keys <= MOST_NEURONS, "first", f"at most {int(MOST_NEURONS**0.5)} halves of keys", keys)


@dataclass(frozen=True)
class NeuronLayout:
    """Where a neuron lies: its input weights, then its output weights, one number after the other.

    Neuron `n` of all layers is the `n % neurons_per_page`-th of page `n // neurons_per_page`.
    """

    element: Literal["f32", "f16"]
    neuron_bytes: Annotated[int, NUMBER]
    """Bytes from one neuron to the next."""
    neurons_per_page: Annotated[int, NUMBER]


@dataclass(frozen=True, eq=False, repr=False)
class RowPaging:
    """Where an operation asks for pages: not all are in the arena."""

    pager: Annotated[Any, ROW_PAGER]


@dataclass(frozen=True, eq=False, repr=False)
class Neurons(Operation, code=52):
    """`output[t] += scale * sum over k of weights[t, k] * activation(u . input[t]) * v`, of expert `experts[t, k]`.

    `u` and `v` are the input and output weights of neuron `first + experts[t, k]` of all layers, each of `D` numbers.
    The sum runs in the order of `k`. Without `accumulate` it is `output[t] = ...`. All pages are in slots, or with
    `paged` they come there as they are needed, of as many tokens at a time as slots have room for. A run raises
    ReadError naming layer and expert if a read fails or takes too long.
    """

    input: Annotated[Floats, rows("D")]
    experts: Annotated[Integers, rows("K")]
    weights: Annotated[Floats, rows("K")]
    arena: Annotated[Bytes, buffer("S", "B", aligned=True)]
    slots: Annotated[Integers, buffer("P")]  # index of the page in the arena, or -1; a pager changes it
    layout: NeuronLayout
    first: Annotated[int, NUMBER]
    count: Annotated[int, NUMBER]
    activation: Activation
    output: Annotated[Floats, rows("D"), output(apart_from="input", adds_if="accumulate")]
    scale: float = 1.0
    accumulate: bool = True
    paged: RowPaging | None = None

    def check(self, sizes: Sizes) -> None:
        require(not self.activation.gated, "activation", "one without a gate", self.activation.function)
        self.activation.check()
        layout, width = self.layout, sizes.letters["D"]
        least = 2 * width * (4 if layout.element == "f32" else 2)
        fits = layout.neuron_bytes >= least and layout.neuron_bytes % 64 == 0
        require(fits, "layout.neuron_bytes", f"a multiple of 64, at least {least}", layout.neuron_bytes)
        page_bytes = layout.neuron_bytes * layout.neurons_per_page
        whole = layout.neurons_per_page >= 1 and page_bytes % PAGE_BYTES == 0
        require(whole, "layout.neurons_per_page", f"pages of a multiple of {PAGE_BYTES} bytes", page_bytes)
        require(sizes.letters["B"] == page_bytes, "arena", f"slots of {page_bytes} bytes", sizes.letters["B"])
        least_pages = -(-(self.first + self.count) // layout.neurons_per_page)
        require(self.first >= 0 and self.count >= 1, "first", "0 or more, of at least one neuron", self.first)
        require(sizes.letters["P"] >= least_pages, "slots", f"at least {least_pages} pages", sizes.letters["P"])

    def weight_bytes(self) -> int:
        weights: int = self.experts.shape[1] * 2 * self.input.shape[1]
        return weights * (4 if self.layout.element == "f32" else 2)
