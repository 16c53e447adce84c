"""The bytes that one token must read from memory, whose rate bounds the speed of decoding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from edgemoe.engine.workspace import KvFormat, bytes_needed, bytes_of
from edgemoe.kernels import block_operations as bo
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import neuron_operations as no
from edgemoe.kernels import operations as op
from edgemoe.kernels import state_operations as so
from edgemoe.model.build import Graph
from edgemoe.model.graph import Part, Value, values_of, weights_read
from edgemoe.store.manifest import Manifest, is_table
from edgemoe.store.neurons import neuron_table


@dataclass(frozen=True)
class TokenTraffic:
    """Bytes that one token reads: every weight it needs once, and the keys and values of the positions that it sees.

    Weights are those of all layers (but an encoder's) and the head, scales included, of the experts that the router
    chooses, and one row of the embedding; the fixed state of a sequence, which every token needs alike, is counted with
    them. An input is taken to be as long as the text after it. Activations stay in the processor's caches and are not
    counted, nor is prefetch.
    """

    weight_bytes: Mapping[Part, int]
    kv_bytes: Sequence[tuple[int, int]]
    """Windows of layers, 0 for none, each once, with the bytes of one position in all layers of that window."""

    @property
    def kv_bytes_per_position(self) -> int:
        """Bytes of one position that every layer sees."""
        return sum(size for _, size in self.kv_bytes)

    def at(self, position: float) -> float:
        """Bytes of the token at a position.

        The mean of several positions gives the mean of their bytes if each window holds either all of these positions
        or none, since bytes grow in proportion to the position as far as the window, and no further.
        """
        return sum(self.weight_bytes.values()) + self._cached(position)

    def of_part(self, part: Part, position: float) -> float:
        """Bytes of one part of the token's work."""
        return self.weight_bytes.get(part, 0) + (self._cached(position) if part == "attention" else 0)

    def _cached(self, position: float) -> float:
        """Bytes of keys and values that the token at a position reads, its own included."""
        seen = position + 1
        return sum(size * (min(window, seen) if window else seen) for window, size in self.kv_bytes)


def token_traffic(graph: Graph, manifest: Manifest, kv_format: KvFormat) -> TokenTraffic:
    """The traffic of a token: that of the graph's operations, with the sizes of a store's tensors (written or not)."""
    sizes = {tensor.name: tensor.bytes for tensor in manifest.dense}
    table = neuron_table([tensor for tensor in manifest.dense if is_table(tensor.name)])
    neuron_bytes = 0 if table is None else table.bytes_read
    weight_bytes: dict[Part, int] = {}
    kv_bytes: dict[int, int] = {}
    for section in graph.sections():
        for step in section.steps:
            if step.stage == "guess":
                continue
            size = sum(int(sizes[weight.name] * share) for weight, share in weights_read(step.operation))
            if isinstance(step.operation, (op.Embed, ex.TableRoute)):
                size //= graph.spec.vocab_size
            if isinstance(step.operation, ex.Experts):  # of the bases of all experts
                size = size * step.operation.experts.shape[1] // step.operation.slots.shape[0]
            if isinstance(step.operation, no.Neurons):
                size += step.operation.experts.shape[1] * neuron_bytes
            fixed = {value for value in values_of(step.operation) if value.undo is not None}
            size += sum(map(bytes_needed, fixed))
            size += sum(4 * len(value.numbers) for value in values_of(step.operation))
            weight_bytes[step.part] = weight_bytes.get(step.part, 0) + size
            if isinstance(step.operation, so.Attention):
                window, page = step.operation.window, sum(_page_bytes(step.operation, kv_format))
                kv_bytes[window] = kv_bytes.get(window, 0) + page // op.PAGE_TOKENS
            if isinstance(step.operation, bo.ChooseBlocks):
                page = bytes_of(cast("Value", step.operation.keys), 1, op.PAGE_TOKENS, kv_format)
                kv_bytes[0] = kv_bytes.get(0, 0) + page // op.PAGE_TOKENS
            if isinstance(step.operation, bo.CompressedAttention):
                caches = {step.operation.window: step.operation.window_cache, 0: step.operation.compressed}
                for window, cache in caches.items():
                    page = bytes_of(cast("Value", cache), 1, op.PAGE_TOKENS, kv_format)
                    kv_bytes[window] = kv_bytes.get(window, 0) + page // op.PAGE_TOKENS
    for number, routed in graph.spec.routed_of_tokens.items():
        size = int(routed.mean_top_k * manifest.mean_expert_bytes(number))
        weight_bytes["experts"] = weight_bytes.get("experts", 0) + size
    return TokenTraffic(weight_bytes, sorted(kv_bytes.items()))


def _page_bytes(attention: so.Attention, kv_format: KvFormat) -> Iterator[int]:
    """Bytes of a page of keys and of one of values, where these are not a part of the keys."""
    for cache in (attention.key_cache, attention.value_cache):
        if cache is not None:
            yield bytes_of(cast("Value", cache), 1, op.PAGE_TOKENS, kv_format)
