"""The reference as a backend, which runs whatever another backend has no function for."""

from __future__ import annotations

from edgemoe.kernels import operations as op
from edgemoe.kernels.formats import GROUP_COLUMNS, PANEL_ROWS, group_count
from edgemoe.kernels.operations import PAGE_TOKENS
from edgemoe.kernels.reference import (  # noqa: F401 - whose operations no other backend has
    compressed,
    mixtures,
    neurons,
    sinkhorn,
    trees,
)
from edgemoe.kernels.reference.attention import attention, quantise_cache_rows
from edgemoe.kernels.reference.block_choice import best_blocks
from edgemoe.kernels.reference.experts import combine, route, within_capacity
from edgemoe.kernels.reference.layers import (
    channel_scan,
    clip,
    delta_rule,
    gate,
    layer_norm,
    mix,
    rms_norm,
    rope,
    scale_by_position,
    selective_scan,
    short_conv,
    soft_cap,
)
from edgemoe.kernels.reference.products import PANELS_AT_ONCE, embed, gated_ffn, matmul, plain_ffn
from edgemoe.kernels.reference.streams import gate_by_agreement, read_streams, write_streams
from edgemoe.kernels.stepwise import StepwiseBackend


class ReferenceBackend(StepwiseBackend):
    """The reference as a backend: slow, and correct by definition."""

    name = "reference"
    element_scratch_bytes = 40  # five float64 arrays
    matmul = staticmethod(matmul)
    embed = staticmethod(embed)
    rms_norm = staticmethod(rms_norm)
    layer_norm = staticmethod(layer_norm)
    rope = staticmethod(rope)
    scale_by_position = staticmethod(scale_by_position)
    clip = staticmethod(clip)
    quantise_cache_rows = staticmethod(quantise_cache_rows)
    attention = staticmethod(attention)
    gate = staticmethod(gate)
    soft_cap = staticmethod(soft_cap)
    short_conv = staticmethod(short_conv)
    delta_rule = staticmethod(delta_rule)
    selective_scan = staticmethod(selective_scan)
    channel_scan = staticmethod(channel_scan)
    route = staticmethod(route)
    within_capacity = staticmethod(within_capacity)
    gated_ffn = staticmethod(gated_ffn)
    plain_ffn = staticmethod(plain_ffn)
    combine = staticmethod(combine)
    mix = staticmethod(mix)
    best_blocks = staticmethod(best_blocks)
    read_streams = staticmethod(read_streams)
    write_streams = staticmethod(write_streams)
    gate_by_agreement = staticmethod(gate_by_agreement)

    def kernels_for(self, kind: type[op.Operation]) -> StepwiseBackend:
        return self

    def product_scratch_bytes(self, tokens: int, rows: int, columns: int) -> int:
        """Temporaries of one `matmul`, its result included."""
        unpacked = min(rows, PANELS_AT_ONCE * PANEL_ROWS) * (columns + GROUP_COLUMNS) * 24
        return unpacked + tokens * (rows * 16 + columns * 32)

    def attention_scratch_bytes(self, tokens: int, heads: int, kv_heads: int, width: int, context_length: int) -> int:
        """Temporaries of one `attention` at the end of the context, its result included."""
        caches = 2 * 8 * kv_heads * (context_length + PAGE_TOKENS) * group_count(width) * GROUP_COLUMNS
        scores = 4 * 8 * heads * context_length
        return caches + scores + 5 * 8 * tokens * heads * width


REFERENCE = ReferenceBackend()
"""The one that runs what another backend has no function for."""
