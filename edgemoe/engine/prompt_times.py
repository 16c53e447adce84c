"""How long a prompt will take, told before its first chunk is run.

Letters: `t` tokens of a chunk, `b` bytes of experts that it is expected to miss, `c` seconds in which one of its tokens
is computed, `r` bytes of missing experts that are read in a second.

A chunk computes while it reads, so it takes `max(c t, b / r)`. `b` follows from the experts that are in RAM and those
that `t` tokens use if all choices are alike. `c` and `r` are learned from the chunks of every long prompt: whichever of
the two was the limit of a chunk becomes what makes its time right. They are kept in a note about the store, by the
kernels, threads and chunks that they belong to. Before the first long prompt a probe measures them, in one or two
tenths of a second: products of some layers, and reads of some records. For what it leaves out (attention, routing, what
kernels reach of matrices of other sizes) a range is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from edgemoe.engine.memory import MemoryPlan
from edgemoe.kernels import expert_operations as ex
from edgemoe.model.build import Graph
from edgemoe.model.graph import weights_read
from edgemoe.paths import cache_folder
from edgemoe.store.manifest import Manifest
from edgemoe.store.note import StoreNote
from edgemoe.store.reader import Store

_SUFFIX, _KIND, _VERSION = ".prompt.json", "edgemoe_prompt_rates", 1
MOST_NOTED = 8
"""The most settings whose rates a note keeps; the oldest are dropped."""
LONG_SECONDS = 5.0
"""A prompt that takes less is over before anybody wonders: nothing is told of it."""
LEAST_TOKENS = 128
"""Fewer tokens are not estimated: which experts they use, and find in RAM, is less alike. Nor are rates taken from a
chunk of fewer, if chunks may have as many."""
FASTEST_PRODUCTS_PER_S, FASTEST_DISK_BYTES_PER_S = 1e12, 5e9
"""Rates beyond those of laptops."""
LEAST_PROBED_SECONDS = 0.5
"""A prompt that takes less at those rates is not probed for, so that a probe is a small part of any prompt's time."""
PROBED_LEAST, PROBED_MOST = 0.7, 2.0
"""The range of a prompt's time around what a probe says."""


@dataclass(frozen=True)
class PromptEstimate:
    """The time of a prompt, from its beginning to the first token of the answer."""

    tokens: int
    """The prompt's new tokens, which are run."""
    least_seconds: float
    most_seconds: float
    """The same as the least, or more where nothing like this prompt has been run yet."""

    @classmethod
    def about(cls, tokens: int, seconds: float) -> PromptEstimate:
        """An estimate from prompts, or parts of this one, that were run."""
        return cls(tokens, seconds, seconds)


@dataclass(frozen=True)
class PromptRates:
    """The rates at which a machine runs the prompts of a model."""

    token_s: float
    """Seconds in which a token is computed."""
    disk_bytes_per_s: float
    """Rate at which experts are read that a chunk is expected to miss; infinite where that is not known."""

    def seconds(self, chunks: Sequence[Chunk]) -> float:
        """The time of these chunks."""
        return sum(max(self.token_s * chunk.tokens, chunk.bytes / self.disk_bytes_per_s) for chunk in chunks)

    def corrected(self, chunk: Chunk, seconds: float) -> PromptRates:
        """The rates by which this chunk takes the time that it took; what was not its limit stays, if it can."""
        read_per_s = chunk.bytes / seconds
        if chunk.bytes / self.disk_bytes_per_s > self.token_s * chunk.tokens:
            return PromptRates(min(self.token_s, seconds / chunk.tokens), read_per_s)
        return PromptRates(seconds / chunk.tokens, max(self.disk_bytes_per_s, read_per_s))


class Chunk(NamedTuple):
    """A run of a prompt's tokens, and the bytes of experts that it is expected to miss."""

    tokens: int
    bytes: float


@dataclass(frozen=True)
class PromptWork:
    """The work of a model's prompts within a memory plan."""

    token_products: float
    """Multiply-adds of a token in all layers, with every weight that it needs."""
    layers: Mapping[tuple[int, float], int]
    """The number of layers of each kind: of so many experts, of which a token uses so many on average."""
    record_bytes: int
    slots: int
    chunk_tokens: int

    @classmethod
    def of(cls, graph: Graph, manifest: Manifest, memory: MemoryPlan, record_bytes: int) -> PromptWork:
        """The work of a store's model."""
        sizes = {tensor.name: tensor.rows * tensor.columns for tensor in manifest.dense}
        products, layers = 0.0, dict[tuple[int, float], int]()
        for section in graph.decoder_layers:
            for step in section.steps:
                if step.stage != "guess" and not isinstance(step.operation, ex.TableRoute):
                    products += sum(sizes[weight.name] * share for weight, share in weights_read(step.operation))
        for number, routed in graph.spec.routed_of_tokens.items():
            layout = manifest.layouts[int(manifest.records.layout[manifest.records.rows(number)][0])]
            matrices = 3 if layout.matrices.gated else 2
            products += routed.mean_top_k * matrices * layout.hidden_size * layout.intermediate_size
            kind = routed.num_experts, routed.mean_top_k
            layers[kind] = layers.get(kind, 0) + 1
        return cls(products, layers, record_bytes, memory.slots, memory.chunk_tokens)

    @property
    def total_experts(self) -> int:
        """The number of experts of all layers that a prompt goes through."""
        return sum(experts * count for (experts, _), count in self.layers.items())

    def chunks(self, tokens: int, resident: int) -> list[Chunk]:
        """The chunks of a prompt, while this many experts are in RAM at its beginning."""
        found = []
        for first in range(0, tokens, self.chunk_tokens):
            count = min(self.chunk_tokens, tokens - first)
            missed = 0.0
            if resident < self.total_experts:
                used = sum(
                    number * experts * -math.expm1(count * math.log1p(-min(top_k / experts, 1 - 1e-9)))
                    for (experts, top_k), number in self.layers.items()
                )
                missed = used * (1 - resident / self.total_experts)
                resident = min(max(self.slots, resident), resident + round(missed))
            found.append(Chunk(count, missed * self.record_bytes))
        return found


def rates_note(store: Store) -> StoreNote | None:
    """The note of a store's rates in the user's cache; None where no files are kept."""
    folder = cache_folder()
    return None if folder is None else StoreNote(folder, store.digest, _SUFFIX, _KIND, _VERSION)


class PromptTimes:
    """Tells how long a prompt will take, and learns it from those that are run."""

    def __init__(
        self,
        work: PromptWork,
        settings: str,
        note: StoreNote | None,
        resident: Callable[[], int],
        probe: Callable[[], tuple[float, float] | None],
    ) -> None:
        """`settings` name what the rates of this engine belong to; `note` is None where no files are kept.

        `resident` counts the experts in RAM. `probe` measures the multiply-adds and the bytes from the disk of a second
        (infinite where nothing is read), or returns None where it cannot.
        """
        self._work = work
        self._settings = settings
        self._note = note
        self._resident = resident
        self._probe: Callable[[], tuple[float, float] | None] | None = probe
        self._noted: PromptRates | None = None
        self._probed: PromptRates | None = None
        self._read = False

    def begin(self, tokens: int) -> PromptRun:
        """Begin a prompt of so many new tokens."""
        if tokens < LEAST_TOKENS:
            return PromptRun(self, [], None)
        chunks = self._work.chunks(tokens, self._resident())
        return PromptRun(self, chunks, self._estimate(tokens, chunks))

    def _estimate(self, tokens: int, chunks: Sequence[Chunk]) -> PromptEstimate | None:
        if not self._read:
            self._read = True
            self._noted = self._rates_in(self._notes().get(self._settings))
        if self._noted is not None:
            estimate = PromptEstimate.about(tokens, self._noted.seconds(chunks))
        else:
            probed = self._measured(chunks)
            if probed is None:
                return None
            seconds = probed.seconds(chunks)
            estimate = PromptEstimate(tokens, PROBED_LEAST * seconds, PROBED_MOST * seconds)
        return estimate if estimate.most_seconds >= LONG_SECONDS else None

    def _measured(self, chunks: Sequence[Chunk]) -> PromptRates | None:
        """The rates of the probe, which measures once, if these chunks are long on any machine."""
        products = self._work.token_products
        fastest = PromptRates(products / FASTEST_PRODUCTS_PER_S, FASTEST_DISK_BYTES_PER_S)
        if self._probe is not None and fastest.seconds(chunks) >= LEAST_PROBED_SECONDS:
            self._probe_now()
        return self._probed

    def _probe_now(self) -> None:
        if self._probe is not None:
            found, self._probe = self._probe(), None
            if found is not None:
                self._probed = PromptRates(self._work.token_products / found[0], found[1])

    def learn(self, ran: Sequence[tuple[Chunk, float]]) -> None:
        """Take in the chunks of a long prompt, with their times, and keep the rates for the next start."""
        if self._noted is None:
            self._probe_now()
        # Without a probe, as where chunks are so small that it had no memory, all time is taken for that of computing.
        rates = self._noted or self._probed or PromptRates(math.inf, math.inf)
        for chunk, seconds in ran:
            if chunk.tokens >= min(LEAST_TOKENS, self._work.chunk_tokens):
                rates = rates.corrected(chunk, seconds)
        self._noted = rates
        if self._note is not None:
            noted = self._notes()
            noted.pop(self._settings, None)  # so that it comes last
            disk = rates.disk_bytes_per_s
            noted[self._settings] = [rates.token_s, disk if math.isfinite(disk) else None]
            self._note.write({"rates": dict(list(noted.items())[-MOST_NOTED:])})

    def _notes(self) -> dict[str, Any]:
        noted = self._note.read().get("rates") if self._note is not None else None
        return noted if isinstance(noted, dict) else {}

    @staticmethod
    def _rates_in(entry: Any) -> PromptRates | None:
        """The rates of a note's entry; None for anything else."""
        if not isinstance(entry, list) or len(entry) != 2:
            return None
        token_s, disk = entry[0], math.inf if entry[1] is None else entry[1]
        if not all(type(number) is float and number > 0 for number in (token_s, disk)) or math.isinf(token_s):
            return None
        return PromptRates(token_s, disk)


class PromptRun:
    """A prompt that is being run: its estimate, and what its chunks teach."""

    def __init__(self, times: PromptTimes, chunks: Sequence[Chunk], estimate: PromptEstimate | None) -> None:
        self.estimate = estimate
        """Its time, told before it begins; None where it is short, or nothing is known."""
        self._times = times
        self._chunks = chunks
        self._seconds: list[float] = []

    def ran_chunk(self, seconds: float) -> None:
        """Note the time of the next chunk, which has been run."""
        self._seconds.append(seconds)
        if len(self._seconds) == len(self._chunks) and sum(self._seconds) >= LONG_SECONDS:
            self._times.learn(list(zip(self._chunks, self._seconds, strict=True)))
