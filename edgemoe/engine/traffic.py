"""The bytes that one token must read from memory, whose rate bounds the speed of decoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgemoe.engine.workspace import KvFormat, bytes_needed, state_bytes
from edgemoe.kernels import operations as op
from edgemoe.model.build import Graph
from edgemoe.model.graph import Part, values_of, weights_of
from edgemoe.store.manifest import Manifest


@dataclass(frozen=True)
class TokenTraffic:
    """Bytes that one token reads: every weight it needs once, and the keys and values of all positions up to its own.

    Weights are those of all layers and the head, scales included, of the experts that the router chooses, and one row
    of the embedding; the fixed state of a sequence, which every token needs alike, is counted with them. Activations
    stay in the processor's caches and are not counted, nor is prefetch.
    """

    weight_bytes: Mapping[Part, int]
    kv_bytes_per_position: int

    def at(self, position: float) -> float:
        """Bytes of the token at a position (a mean position gives the bytes of the mean token)."""
        return sum(self.weight_bytes.values()) + self.kv_bytes_per_position * (position + 1)

    def of_part(self, part: Part, position: float) -> float:
        """Bytes of one part of the token's work."""
        cached = self.kv_bytes_per_position * (position + 1) if part == "attention" else 0
        return self.weight_bytes.get(part, 0) + cached


def token_traffic(graph: Graph, manifest: Manifest, kv_format: KvFormat) -> TokenTraffic:
    """The traffic of a token: that of the graph's operations, with the sizes of a store's tensors (written or not)."""
    sizes = {tensor.name: tensor.bytes for tensor in manifest.resident}
    weight_bytes: dict[Part, int] = {}
    for section in graph.sections():
        for step in section.steps:
            if step.stage == "guess":
                continue
            size = sum(sizes[weight.name] for weight in weights_of(step.operation))
            if isinstance(step.operation, op.Embed):
                size //= graph.spec.vocab_size
            fixed = {value for value in values_of(step.operation) if value.undo is not None}
            size += sum(map(bytes_needed, fixed))
            weight_bytes[step.part] = weight_bytes.get(step.part, 0) + size
    for number, routed in graph.spec.routed.items():
        size = routed.top_k * manifest.mean_expert_bytes(number)
        weight_bytes["experts"] = weight_bytes.get("experts", 0) + size
    return TokenTraffic(weight_bytes, state_bytes(graph, op.PAGE_TOKENS, kv_format) // op.PAGE_TOKENS)
