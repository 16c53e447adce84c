"""The buffers that a step of the model works in, allocated once and shared by all layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgemoe.engine.memory import HEAD_ROWS, KvFormat
from edgemoe.kernels.formats import group_count
from edgemoe.kernels.operations import Cache, Floats, Integers, QuantisedCache
from edgemoe.model.rope import rope_tables
from edgemoe.model.spec import ModelSpec, MoeSpec


@dataclass(frozen=True, eq=False)
class Workspace:
    """Activations for up to `T` tokens of one run. Widths are the largest of any layer; each layer uses views."""

    ids: Integers  # (T,)
    residual: Floats  # (T, D)
    normed: Floats  # (T, D)
    query: Floats  # flat: T * H * W
    key: Floats  # flat: T * G * W
    value: Floats  # flat: T * G * W
    attended: Floats  # flat: T * H * W
    router_logits: Floats  # flat: T * E
    routed: Floats  # flat: T * K * D
    ffn_output: Floats  # (T, D): of the shared expert, or of a dense FFN
    shared_gate: Floats  # (T, 1)
    predicted_input: Floats  # (1, D)
    predicted_logits: Floats  # (E,)
    head_input: Floats  # (HEAD_ROWS, D)
    logits: Floats  # (HEAD_ROWS, V)

    @classmethod
    def allocate(cls, spec: ModelSpec, chunk_tokens: int) -> Workspace:
        """Buffers for runs of up to `chunk_tokens` tokens."""
        T, D = chunk_tokens, spec.model_width
        attentions = [layer.attention for layer in spec.layers]
        moes = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoeSpec)]
        query = T * max(a.query_heads * a.head_width for a in attentions)
        key = T * max(a.kv_heads * a.head_width for a in attentions)
        experts = max((moe.experts for moe in moes), default=0)
        used = max((moe.experts_per_token for moe in moes), default=0)

        def floats(*shape: int) -> npt.NDArray[np.float32]:
            return np.zeros(shape, np.float32)

        return cls(
            ids=np.zeros(T, np.int32),
            residual=floats(T, D),
            normed=floats(T, D),
            query=floats(query),
            key=floats(key),
            value=floats(key),
            attended=floats(query),
            router_logits=floats(T * experts),
            routed=floats(T * used * D),
            ffn_output=floats(T, D),
            shared_gate=floats(T, 1),
            predicted_input=floats(1, D),
            predicted_logits=floats(experts),
            head_input=floats(HEAD_ROWS, D),
            logits=floats(HEAD_ROWS, spec.vocabulary),
        )


def take(flat: Floats, *shape: int) -> Floats:
    """A view of the given shape at the start of a flat buffer."""
    return flat[: int(np.prod(shape))].reshape(shape)


@dataclass(frozen=True, eq=False)
class KvCache:
    """Keys and values of every layer, each `(G, C, W)`, and tables of rotary positions by head width."""

    keys: tuple[Cache, ...]
    values: tuple[Cache, ...]
    rope: dict[int, tuple[Floats, Floats]]

    @classmethod
    def allocate(cls, spec: ModelSpec, context_length: int, kv_format: KvFormat) -> KvCache:
        """A cache for `context_length` tokens; the system allocates its pages when they are first written."""
        shapes = [(layer.attention.kv_heads, context_length, layer.attention.head_width) for layer in spec.layers]
        return cls(
            keys=tuple(_empty_cache(shape, kv_format) for shape in shapes),
            values=tuple(_empty_cache(shape, kv_format) for shape in shapes),
            rope={width: rope_tables(spec.rope, width, context_length) for width in {shape[2] for shape in shapes}},
        )


def _empty_cache(shape: tuple[int, int, int], kv_format: KvFormat) -> Cache:
    """Zeroed keys or values `(G, C, W)` of one layer."""
    if kv_format == "q8":
        scales_shape = (*shape[:2], group_count(shape[2]))
        return QuantisedCache(np.zeros(shape, np.int8), np.zeros(scales_shape, np.float16))
    return np.zeros(shape, np.float32 if kv_format == "f32" else np.float16)
