"""The operations on blocks of tokens: rows and keys that stand for a whole block, and which blocks a token sees.

Defined as those of `operations.py` are, and with its letters and invariants.
"""

# Annotations are evaluated here, not left as text, as in `operations.py`.

from dataclasses import dataclass
from typing import Annotated

from edgemoe.kernels.definition import LARGEST_EXTENT, Misfit, Sizes, require
from edgemoe.kernels.marks import IN_PLACE, NUMBER, OUTPUT, buffer, cache, output, rows, size, weight
from edgemoe.kernels.operations import PAGE_TOKENS, Cache, Floats, Integers, Operation
from edgemoe.kernels.state_operations import check_bits


def blocks_of_page(rate: int) -> int:
    """Return how many blocks of `rate` tokens end in a page at most."""
    return max(1, PAGE_TOKENS // rate)


def _check_rate(rate: int, found: int, field: str) -> None:
    """Check that blocks of `rate` tokens end at the ends of pages, and the rows of a page of a cache of them."""
    fits = 1 <= rate <= LARGEST_EXTENT and (PAGE_TOKENS % rate == 0 or rate % PAGE_TOKENS == 0)
    require(fits, "rate", f"a divisor or a multiple of {PAGE_TOKENS}", rate)
    require(found == blocks_of_page(rate), field, f"{blocks_of_page(rate)} rows of a page", found)


LONGEST_BLOCK = 1024
"""The most tokens whose rows `Compress` makes one."""


@dataclass(frozen=True, eq=False, repr=False)
class Compress(Operation, code=46):
    """Each whole block of `rate` tokens becomes one row: a mean of theirs, weighed in each channel by a softmax.

    A row of `values` and of `gates` has one part of `W` numbers, or two. With one, `row = sum over the block's tokens
    of softmax(gates + bias) * values`. With two the softmax runs over two blocks: over the first parts of the tokens of
    the block before, where there is one, and over the second parts of the block's own. `bias` has a row for each place
    in a block. The result is normalised (`RmsNorm`), its last `R` channels are rotated as neighbours by the position of
    the block's first token, and it is written to the page of the block's last one: as row `position % 64 // rate`.

    `inputs` is a ring as that of `ShortConv`, whose rows are `[values | gates + bias]` of a token. Rows of one sequence
    come in the order of their positions, and may have rows of others between them. Source: DeepSeek-V4 (2026).
    """

    values: Annotated[Floats, rows("parts*W")]
    gates: Annotated[Floats, rows("parts*W")]
    bias: Annotated[Floats, weight("rate*parts*W")]
    norm: Annotated[Floats, weight("W")]
    epsilon: float
    cosine: Annotated[Floats, buffer("C", "R/2")]
    sine: Annotated[Floats, buffer("C", "R/2")]
    rate: Annotated[int, size("rate")]
    parts: Annotated[int, size("parts")]
    positions: Annotated[Integers, rows()]
    sequences: Annotated[Integers, rows()]  # rows of `inputs` and `pages`
    pages: Annotated[Integers, buffer("S", "P")]
    inputs: Annotated[Floats, buffer("S", "ring", "2*parts*W"), IN_PLACE]
    compressed: Annotated[Cache, cache("N", "1", "B", "W"), OUTPUT]

    def check(self, sizes: Sizes) -> None:
        require(self.parts in (1, 2), "parts", "1 or 2", self.parts)
        require(self.rate * self.parts <= LONGEST_BLOCK, "rate", f"at most {LONGEST_BLOCK // self.parts}", self.rate)
        _check_rate(self.rate, sizes.letters["B"], "compressed")
        least, width, rotated = self.rate * self.parts - 1, sizes.letters["W"], sizes.letters["R"]
        require(sizes.letters["ring"] >= least, "inputs", f"a ring of at least {least}", sizes.letters["ring"])
        require(rotated <= width, "cosine", f"at most {width // 2} columns", rotated // 2)


WIDEST_BLOCK_KEY = 1024
"""The most channels of a key that `StoreBlockKeys` writes."""


@dataclass(frozen=True, eq=False, repr=False)
class StoreBlockKeys(Operation, code=43):
    """Each whole block of `rate` tokens gets a key: the mean of its tokens' rows of `keys`.

    The mean is normalised (`RmsNorm`), the halves of its first `R` channels are rotated (`Rope`) by the position of the
    block's first token, and it is written to the page of the block's last one: as row `position % 64 // rate`.

    `inputs` is a ring as that of `ShortConv`, of rows of `keys`, and the rows of a run come as they do there. Source:
    Qwen3.8 (2026), as transformers has it.
    """

    keys: Annotated[Floats, rows("W")]
    norm: Annotated[Floats, weight("W")]
    epsilon: float
    cosine: Annotated[Floats, buffer("C", "R/2")]  # row = position
    sine: Annotated[Floats, buffer("C", "R/2")]
    rate: Annotated[int, NUMBER]
    positions: Annotated[Integers, rows()]
    sequences: Annotated[Integers, rows()]  # rows of `inputs` and `pages`
    pages: Annotated[Integers, buffer("S", "P")]
    inputs: Annotated[Floats, buffer("S", "ring", "W"), IN_PLACE]
    block_keys: Annotated[Cache, cache("N", "1", "B", "W"), OUTPUT]

    def check(self, sizes: Sizes) -> None:
        _check_rate(self.rate, sizes.letters["B"], "block_keys")
        width, rotated = sizes.letters["W"], sizes.letters["R"]
        least, ring = self.rate - 1, sizes.letters["ring"]
        require(ring >= least, "inputs", f"a ring of at least {least}", ring)
        require(width <= WIDEST_BLOCK_KEY, "keys", f"at most {WIDEST_BLOCK_KEY} channels", width)
        require(rotated <= width, "cosine", f"at most {width // 2} columns", rotated // 2)


@dataclass(frozen=True, eq=False, repr=False)
class ChooseBlocks(Operation, code=50):
    """Chooses the `most` blocks of `rate` tokens that a row sees: those of largest score.

    The score of a block is `sum over heads h of shares[h] * max(0, scale * query[h] . key)`, in the order of the heads,
    where `keys` has a key of each block as `Compress` or `StoreBlockKeys` writes it; without `shares` each is 1. Blocks
    are those that end no later than the row, and the earlier one is chosen on a tie; where there are no more than
    `most`, all are. With `own` the row also sees the block that its own token is in and does not end. Bit `b` of
    `chosen[t, i]` says whether block `i * B + b` of the sequence is chosen; `i` goes as far as there are blocks that
    the row may see. Source: the indexer of DeepSeek-V3.2 (2025) over compressed keys, as DeepSeek-V4 has it; without
    shares that of Qwen3.8 (2026).
    """

    query: Annotated[Floats, rows("H*W")]
    positions: Annotated[Integers, rows()]
    sequences: Annotated[Integers, rows()]  # rows of `pages`
    pages: Annotated[Integers, buffer("S", "P")]
    keys: Annotated[Cache, cache("N", "1", "B", "W")]
    rate: Annotated[int, NUMBER]
    scale: float
    most: Annotated[int, NUMBER]
    scores: Annotated[Floats, buffer("at_once", "P", "B"), OUTPUT]  # memory for those of some rows
    chosen: Annotated[Integers, rows("P"), OUTPUT]
    shares: Annotated[Floats | None, rows("H")] = None
    own: bool = False

    def check(self, sizes: Sizes) -> None:
        _check_rate(self.rate, sizes.letters["B"], "keys")
        check_bits(sizes.letters["B"], "keys")
        require(1 <= self.most <= LARGEST_EXTENT, "most", f"1 to {LARGEST_EXTENT}", self.most)

    def position_bytes(self) -> int:
        return self.keys.nbytes // (self.keys.shape[0] * PAGE_TOKENS)


@dataclass(frozen=True, eq=False, repr=False)
class CompressedAttention(Operation, code=47):
    """Causal attention over the last `window` rows of a sequence, and over one row for each `rate` tokens before.

    A row is key and value of all heads at once. Those of `window_cache` are of single positions: row `t` sees the last
    `window` up to its own. Those of `compressed`, which `Compress` writes, are of whole blocks of tokens: row `t` sees
    all blocks that end no later than itself, `(positions[t] + 1) // rate`, or of these the ones that `chosen` names
    (`ChooseBlocks`). Sinks are those of `Attention`.
    """

    query: Annotated[Floats, rows("H*W")]
    positions: Annotated[Integers, rows()]
    sequences: Annotated[Integers, rows()]  # rows of both tables of pages
    window_pages: Annotated[Integers, buffer("S", "P")]  # as `pages` of `StoreKv`
    window_cache: Annotated[Cache, cache("N", "1", str(PAGE_TOKENS), "W")]
    pages: Annotated[Integers, buffer("S", "P")]
    compressed: Annotated[Cache, cache("L", "1", "B", "W")]  # of the other cache's format
    rate: Annotated[int, NUMBER]
    scale: float
    window: Annotated[int, NUMBER]
    output: Annotated[Floats, rows("H*W"), output(apart_from="query")]
    sinks: Annotated[Floats | None, weight("H")] = None
    chosen: Annotated[Integers | None, rows("P")] = None

    def check(self, sizes: Sizes) -> None:
        if self.chosen is not None:
            check_bits(sizes.letters["B"], "chosen")
        if self.compressed.dtype != self.window_cache.dtype:
            raise Misfit("compressed", f"the window's {self.window_cache.dtype.name}", self.compressed.dtype.name)
        require(1 <= self.window <= LARGEST_EXTENT, "window", f"1 to {LARGEST_EXTENT}", self.window)
        _check_rate(self.rate, sizes.letters["B"], "compressed")

    def position_bytes(self) -> int:
        return self.compressed.nbytes // (self.compressed.shape[0] * PAGE_TOKENS)
