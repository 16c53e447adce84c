"""The operations on what sequences keep of their tokens: the pages of a KV cache, the rows of a fixed state.

Defined as those of `operations.py` are, and with its letters and invariants.
"""

# Annotations are evaluated here, not left as text, as in `operations.py`.

import math
from dataclasses import dataclass
from typing import Annotated

from edgemoe.kernels.definition import LARGEST_EXTENT, Misfit, Sizes, require
from edgemoe.kernels.marks import IN_PLACE, NUMBER, OUTPUT, buffer, cache, output, rows, size, weight
from edgemoe.kernels.operations import PAGE_TOKENS, Cache, Floats, Integers, Operation

_PAGE = str(PAGE_TOKENS)


def _check_one_format(keys: Cache, values: Cache) -> None:
    """Check that keys and values are kept in the same format."""
    if keys.dtype != values.dtype:
        raise Misfit("value_cache", f"the key cache's {keys.dtype.name}", values.dtype.name)


@dataclass(frozen=True, eq=False, repr=False)
class StoreKv(Operation, code=4):
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
class StoreLatent(Operation, code=20):
    """Writes a row `[latent | rotary]` for each row's token to the page of its position, as `StoreKv` writes keys.

    It is the key of all heads, and its first `Wv` elements are the value (DeepSeek-V2: arXiv 2405.04434). Without
    `rotary` the latent is all of it.
    """

    latent: Annotated[Floats, rows("Wv")]
    rotary: Annotated[Floats | None, rows("R")]
    positions: Annotated[Integers, rows()]
    sequences: Annotated[Integers, rows()]  # rows of `pages`
    pages: Annotated[Integers, buffer("S", "P")]  # as those of `StoreKv`
    latent_cache: Annotated[Cache, cache("N", "1", _PAGE, "W"), OUTPUT]

    def check(self, sizes: Sizes) -> None:
        width, expected = sizes.letters["W"], sizes.letters["Wv"] + sizes.letters.get("R", 0)
        require(width == expected, "latent_cache", f"rows of {expected}", width)


MOST_BITS = 32
"""The most blocks of a page of which some are chosen."""


def check_bits(blocks: int, field: str) -> None:
    """Check that the blocks of a page are equally long, and have a bit each."""
    fits = 1 <= blocks <= MOST_BITS and PAGE_TOKENS % blocks == 0
    require(fits, field, f"a power of 2 up to {MOST_BITS} blocks of a page", blocks)


@dataclass(frozen=True, eq=False, repr=False)
class DistanceBias:
    """Numbers of each head that are added to its scores, by how far a key's position lies from the query's (T5).

    A key `d` positions after the query (before it: `d < 0`) has bucket `bucket_of[d + distances // 2]`, with `d` held
    to `-(distances // 2) .. distances // 2`, and the score gets `table[bucket * H + head]`. `distances` is odd.
    """

    table: Annotated[Floats, weight("entries")]  # (buckets, H)
    bucket_of: Annotated[Integers, buffer("distances")]


@dataclass(frozen=True, eq=False, repr=False)
class Attention(Operation, code=5):
    """Causal attention over the cache: row `t` sees positions `0 .. positions[t]` of its sequence.

    With a `window` it sees the last `window` of these, its own position included; of windows that are `chunked`, which
    begin at multiples of `window`, it sees its own up to its position. With `lengths` it sees the first
    `lengths[sequences[t]]` positions, at least one, wherever it stands itself. With a `cap` the scaled score `s` of a
    key counts as `cap * tanh(s / cap)`, and with `factors` the result is multiplied by `factors[positions[t]]`; a bias
    is added to it then. A head's sink is one more logit of its softmax, which takes a share of the sum and adds no
    value; neither cap nor factor applies to it. Without a cache of values a key's value is its first `Wv` elements.
    With `chosen` it sees of these positions those of blocks whose bit is 1, as `ChooseBlocks` writes them; in every run
    of 64 there are `page_blocks` of them.
    """

    query: Annotated[Floats, rows("H*W")]
    positions: Annotated[Integers, rows()]
    sequences: Annotated[Integers, rows()]  # rows of `pages`
    pages: Annotated[Integers, buffer("S", "P")]  # as those of `StoreKv`
    key_cache: Annotated[Cache, cache("N", "G", _PAGE, "W")]
    value_cache: Annotated[Cache | None, cache("N", "G", _PAGE, "Wv")]
    scale: float
    output: Annotated[Floats, rows("H*Wv"), output(apart_from="query")]
    window: Annotated[int, NUMBER] = 0  # 0: none
    sinks: Annotated[Floats | None, weight("H")] = None
    chunked: bool = False
    cap: float = 0.0  # 0: none
    lengths: Annotated[Integers | None, buffer("S")] = None  # the caller fills them before a run
    bias: DistanceBias | None = None
    chosen: Annotated[Integers | None, rows("P")] = None
    page_blocks: int = 1
    factors: Annotated[Floats | None, buffer("C")] = None

    def check(self, sizes: Sizes) -> None:
        heads, kv_heads = sizes.letters["H"], sizes.letters["G"]
        if heads % kv_heads:
            raise Misfit("query", f"heads in {kv_heads} equal groups", f"{heads} heads")
        require(0 <= self.window <= LARGEST_EXTENT, "window", f"0 to {LARGEST_EXTENT}", self.window)
        require(not self.chunked or self.window > 0, "chunked", "false without a window", self.chunked)
        require(0 <= self.cap < math.inf, "cap", "0 or a number above it", self.cap)
        require(not self.window or self.lengths is None, "window", "0 with lengths", self.window)
        check_bits(self.page_blocks, "page_blocks")
        alone = not self.window and self.lengths is None and self.sinks is None
        require(self.chosen is None or alone, "chosen", "none with a window, lengths or sinks", "an array")
        if self.bias is not None:
            entries = sizes.letters["entries"]
            require(entries % heads == 0, "bias.table", f"rows of {heads} numbers", entries)
            require(sizes.letters["distances"] % 2 == 1, "bias.bucket_of", "an odd number", sizes.letters["distances"])
        if self.value_cache is None:
            width, value_width = sizes.letters["W"], sizes.letters["Wv"]
            require(value_width <= width, "output", f"values of at most {width} channels", value_width)
        else:
            _check_one_format(self.key_cache, self.value_cache)

    def position_bytes(self) -> int:
        caches = [self.key_cache] if self.value_cache is None else [self.key_cache, self.value_cache]
        return sum(cache.nbytes // (cache.shape[0] * PAGE_TOKENS) for cache in caches)


MOST_TAPS = 64
"""The most tokens that a short convolution runs over."""
MOST_DILATION = 64
"""The most positions from one of these tokens to the next."""


@dataclass(frozen=True, eq=False, repr=False)
class ShortConv(Operation, code=6):
    """A causal convolution over the last `length` tokens of a sequence, each channel by itself.

    With 3 `parts` a row of `input` holds `B`, `C` and `x`, the thirds of a projection: `u = B * x`, and `output = C *
    sum` (LFM2: Liquid AI 2025, arXiv 2511.23404). With 1 part a row is `u`, and `output = silu(sum)` (Mamba: Gu and Dao
    2023). Each product and sum is rounded to float32. `sum[t] = bias + taps[:, 0] * u[t - length + 1] + ... + taps[:,
    length - 1] * u[t]`, where `t` counts positions of the row's sequence, and `u` before position 0 is zero. The sum
    runs in this order. With a `dilation` neighbouring taps lie that many positions apart.

    `inputs` is a ring for each sequence that holds `u` of earlier runs: that of position `p` lies at `p % ring`. The
    operation puts `u` of all its rows there too. Rows of one sequence come in the order of their positions, and may
    have rows of others between them.
    """

    input: Annotated[Floats, rows("parts*D")]
    taps: Annotated[Floats, weight("D*length")]  # (D, length)
    bias: Annotated[Floats | None, weight("D")]
    positions: Annotated[Integers, rows()]
    sequences: Annotated[Integers, rows()]  # rows of `inputs`
    inputs: Annotated[Floats, buffer("S", "ring", "D"), IN_PLACE]
    output: Annotated[Floats, rows("D"), output(apart_from="input")]
    parts: int = 3
    dilation: int = 1

    def check(self, sizes: Sizes) -> None:
        length = sizes.letters["length"]
        require(self.parts in (1, 3), "parts", "1 or 3", self.parts)
        require(length <= MOST_TAPS, "taps", f"at most {MOST_TAPS} of each channel", length)
        require(1 <= self.dilation <= MOST_DILATION, "dilation", f"1 to {MOST_DILATION}", self.dilation)
        least = (length - 1) * self.dilation
        require(sizes.letters["ring"] >= least, "inputs", f"a ring of at least {least}", sizes.letters["ring"])


WIDEST_KEYS = 256
"""The most channels of a head's keys in `DeltaRule`."""


@dataclass(frozen=True, eq=False, repr=False)
class DeltaRule(Operation, code=18):
    """The gated delta rule: each head keeps a matrix `S (W, Wv)`, which a token decays and then corrects.

    A row of `mixed` holds the queries and the keys of `G` heads of width `W`, and the values `v` of `H` heads of width
    `Wv`; head `h` has query and key `h // (H / G)`, or `h % G` if they lie `in_turn`. With `keys` and `values` it holds
    the queries alone. With `q = query / |query| / sqrt(W)`, `k = key / |key|` (whose lengths are `sqrt(sum of squares +
    epsilon)`) and `decay = exp(rate * softplus(decay_input + decay_bias))`, of a rate below 0:

        S = decay * S;  S = S + k (sigmoid(strength) * (v - S^T k))^T;  output = S^T q

    A head has one decay, or one for each of its `W` rows of `S`, as `decay_input` has `H` or `H*W` numbers (Kimi Delta
    Attention: Kimi Team 2025, arXiv 2510.26692). With a `lower_bound` below 0 the decay is `exp(lower_bound *
    sigmoid(-rate * (decay_input + decay_bias)))`, which never falls below `exp(lower_bound)`.

    `states` holds `S` of each sequence, empty before position 0, in panels of 16 columns: element `(i, c)` of a head
    lies at `[c // 16, i, c % 16]`. Columns after the last are zeros. Rows of one sequence come in the order of their
    positions, and may have rows of others between them.
    Source: Yang, Kautz and Hatamizadeh 2024 (arXiv 2412.06464), the recurrent form, as Qwen3-Next has it.
    """

    mixed: Annotated[Floats, rows("M")]
    strength: Annotated[Floats, rows("H")]
    decay_input: Annotated[Floats, rows("decays")]
    decay_bias: Annotated[Floats, weight("decays")]
    rate: Annotated[Floats, weight("H")]
    epsilon: float
    key_heads: Annotated[int, size("G")]
    positions: Annotated[Integers, rows()]
    sequences: Annotated[Integers, rows()]  # rows of `states`
    states: Annotated[Floats, buffer("S", "H", "up16(Wv)", "W"), IN_PLACE]
    output: Annotated[Floats, rows("H*Wv"), output(apart_from="mixed")]
    keys: Annotated[Floats | None, rows("G*W")] = None
    values: Annotated[Floats | None, rows("H*Wv")] = None
    lower_bound: float = 0.0  # 0: none
    in_turn: bool = False

    def check(self, sizes: Sizes) -> None:
        G, H, W, Wv = (sizes.letters[name] for name in ("G", "H", "W", "Wv"))
        require(H % G == 0, "key_heads", f"a divisor of {H} heads", G)
        require(W <= WIDEST_KEYS, "states", f"keys of at most {WIDEST_KEYS} channels", W)
        apart = self.keys is not None
        require((self.values is not None) == apart, "values", "a buffer if keys have one", self.values)
        columns = G * W if apart else 2 * G * W + H * Wv
        require(sizes.letters["M"] == columns, "mixed", f"{columns} columns", sizes.letters["M"])
        decays = sizes.letters["decays"]
        require(decays in (H, H * W), "decay_input", f"{H} or {H * W} columns", decays)
        require(-math.inf < self.lower_bound <= 0, "lower_bound", "0 or a number below it", self.lower_bound)


@dataclass(frozen=True, eq=False, repr=False)
class SelectiveScan(Operation, code=24):
    """The selective state space of Mamba-2: each head keeps a matrix `S (W, Wv)` that a token decays and adds to.

    A row of `mixed` holds the inputs `x` of `H` heads of width `Wv`, and then `B` and `C` of `G` groups of width `W`;
    head `h` has those of group `h // (H / G)`. With `dt = softplus(step + step_bias)` and `decay = exp(rate * dt)`,
    of a rate below 0:

        S = decay * S + B (dt * x)^T;  output = S^T C + skip * x

    `states` holds `S` of each sequence as that of `DeltaRule` does, and the rows of a run come as they do there.
    Source: Dao and Gu 2024 (arXiv 2405.21060), the recurrent form, as Nemotron-H and Granite 4 have it.

    Without steps `dt` is 1, and heads decay by their rates alone, as in lightning attention (Qin et al. 2024, arXiv
    2401.04658): then a row of `mixed` holds queries `C`, keys `B` and values `x`, in this order. Without `skip` nothing
    is added to the output.
    """

    mixed: Annotated[Floats, rows("M")]
    step: Annotated[Floats | None, rows("H")]
    step_bias: Annotated[Floats | None, weight("H")]
    rate: Annotated[Floats, weight("H")]
    skip: Annotated[Floats | None, weight("H")]
    groups: Annotated[int, size("G")]
    positions: Annotated[Integers, rows()]
    sequences: Annotated[Integers, rows()]  # rows of `states`
    states: Annotated[Floats, buffer("S", "H", "up16(Wv)", "W"), IN_PLACE]
    output: Annotated[Floats, rows("H*Wv"), output(apart_from="mixed")]

    def check(self, sizes: Sizes) -> None:
        G, H, W, Wv = (sizes.letters[name] for name in ("G", "H", "W", "Wv"))
        require(H % G == 0, "groups", f"a divisor of {H} heads", G)
        require(sizes.letters["M"] == H * Wv + 2 * G * W, "mixed", f"{H * Wv + 2 * G * W} columns", sizes.letters["M"])
        wanted = "a vector" if self.step is not None else "none without steps"
        require((self.step is None) == (self.step_bias is None), "step_bias", wanted, self.step_bias is not None)


@dataclass(frozen=True, eq=False, repr=False)
class ChannelScan(Operation, code=34):
    """The selective state space of Mamba-1: each of `I` channels keeps `W` numbers, which decay at rates of their own.

    All channels share a row's `keys` (`B`) and `queries` (`C`). With `dt = softplus(step)` and rates below 0, of a
    channel's input `x` and its numbers `S`:

        S = exp(rate * dt) * S + B * (dt * x);  output = S . C + skip * x

    `states` holds `S` of each sequence as that of `DeltaRule` does, as one head whose columns are the channels, and the
    rows of a run come as they do there.
    Source: Gu and Dao 2023 (arXiv 2312.00752), the recurrent form, as Jamba has it.
    """

    input: Annotated[Floats, rows("I")]
    step: Annotated[Floats, rows("I")]
    keys: Annotated[Floats, rows("W")]
    queries: Annotated[Floats, rows("W")]
    rate: Annotated[Floats, weight("I*W")]  # (I, W)
    skip: Annotated[Floats, weight("I")]
    positions: Annotated[Integers, rows()]
    sequences: Annotated[Integers, rows()]  # rows of `states`
    states: Annotated[Floats, buffer("S", "up16(I)", "W"), IN_PLACE]
    output: Annotated[Floats, rows("I"), output(apart_from="input")]

    def check(self, sizes: Sizes) -> None:
        width = sizes.letters["W"]
        require(width <= WIDEST_KEYS, "states", f"at most {WIDEST_KEYS} numbers of each channel", width)
