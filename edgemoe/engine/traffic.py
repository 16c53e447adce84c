"""The bytes that one token must read from memory, whose rate bounds the speed of decoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgemoe.engine.decoder import Decoder
from edgemoe.engine.ledger import Part
from edgemoe.engine.memory import KvFormat, kv_position_bytes
from edgemoe.kernels import operations as op
from edgemoe.kernels.formats import Matrix
from edgemoe.model.spec import ModelSpec, MoeSpec
from edgemoe.store.manifest import Manifest


@dataclass(frozen=True)
class TokenTraffic:
    """Bytes that one token reads: every weight it needs once, and the keys and values of all positions up to its own.

    Weights are those of all layers and the head, scales included, of the experts that the router chooses, and one row
    of the embedding. Activations stay in the processor's caches and are not counted, nor is prediction.
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


def token_traffic(decoder: Decoder) -> TokenTraffic:
    """The traffic of a token, counted from the operations that run."""
    weight_bytes: dict[Part, int] = {}
    kv_bytes_per_position = 0
    beforehand = [] if decoder.begin else decoder.embed
    for operation in beforehand + decoder.whole() + decoder.head:
        part = decoder.part_of(operation)
        weight_bytes[part] = weight_bytes.get(part, 0) + _weight_bytes(operation)
        if isinstance(operation, op.Attention):
            for cache in (operation.key_cache, operation.value_cache):
                kv_bytes_per_position += cache.nbytes // cache.shape[1]
    return TokenTraffic(weight_bytes, kv_bytes_per_position)


def planned_traffic(spec: ModelSpec, manifest: Manifest, kv_format: KvFormat) -> TokenTraffic:
    """The traffic of a token, computed from the manifest of a store, written or planned, without its weights."""
    weight_bytes: dict[Part, int] = {}

    def read(part: Part, size: int) -> None:
        weight_bytes[part] = weight_bytes.get(part, 0) + size

    for tensor in manifest.resident:
        if tensor.name == "embedding":
            read("embedding", tensor.bytes // tensor.rows)
        if tensor.name != "embedding" or spec.tied_embeddings:
            read(_part_of_tensor(tensor.name, spec), tensor.bytes)
    for number, layer in enumerate(spec.layers):
        if isinstance(layer.ffn, MoeSpec):
            read("experts", layer.ffn.experts_per_token * manifest.mean_expert_bytes(number))
    return TokenTraffic(weight_bytes, kv_position_bytes(spec, kv_format))


_TENSOR_PARTS: Mapping[str, Part] = {
    "embedding": "head",
    "head": "head",
    "final_norm": "head",
    "ffn": "dense_ffn",
    "router": "router",
    "shared": "shared_expert",
    "shared_gate": "shared_expert",
}
"""Parts by the name of a resident tensor (within a layer: its first part); the embedding counts as the tied head."""


def _part_of_tensor(name: str, spec: ModelSpec) -> Part:
    if not name.startswith("layers."):
        return _TENSOR_PARTS[name]
    number, within = name.split(".")[1:3]
    if within == "ffn_norm":
        return "router" if isinstance(spec.layers[int(number)].ffn, MoeSpec) else "dense_ffn"
    return _TENSOR_PARTS.get(within, "attention")


def _weight_bytes(operation: op.Operation) -> int:
    """Bytes of weights that an operation reads for one token."""
    if isinstance(operation, op.Embed):
        return _matrix_bytes(operation.matrix) // operation.matrix.rows
    if isinstance(operation, op.RmsNorm):
        return int(operation.weight.nbytes)
    if isinstance(operation, op.Linear):
        biases = sum(part.bias.nbytes for part in operation.parts if part.bias is not None)
        return biases + sum(_matrix_bytes(part.matrix) for part in operation.parts)
    if isinstance(operation, op.GatedFfn):
        return _matrix_bytes(operation.gate_up) + _matrix_bytes(operation.down)
    if isinstance(operation, op.Experts):
        expert_bytes = operation.layout.gate_up_bytes + operation.layout.down_bytes
        return int(operation.experts.shape[1]) * expert_bytes
    return 0


def _matrix_bytes(matrix: Matrix) -> int:
    return matrix.format.matrix_bytes(matrix.rows, matrix.columns)
