"""The structs of `native/include/edgemoe.h`, field for field; `library.py` checks their sizes at load."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_float, c_int32, c_int64, c_uint64, c_void_p

from edgemoe.kernels import operations as op

ABI_VERSION = 7
LINEAR_PARTS_MAX = 4


class MatrixStruct(ctypes.Structure):
    """`em_matrix`"""

    _fields_ = [
        ("data", c_void_p),
        ("format", c_int32),
        ("rows", c_int32),
        ("columns", c_int32),
        ("reserved", c_int32),
    ]


class EmbedStruct(ctypes.Structure):
    """`em_embed`"""

    _fields_ = [
        ("ids", c_void_p),
        ("output", c_void_p),
        ("matrix", MatrixStruct),
        ("scale", c_float),
        ("reserved", c_int32),
    ]


class RmsNormStruct(ctypes.Structure):
    """`em_rms_norm`"""

    _fields_ = [
        ("input", c_void_p),
        ("weight", c_void_p),
        ("output", c_void_p),
        ("epsilon", c_float),
        ("heads", c_int32),
        ("width", c_int32),
        ("reserved", c_int32),
    ]


class LinearPartStruct(ctypes.Structure):
    """`em_linear_part`"""

    _fields_ = [("matrix", MatrixStruct), ("bias", c_void_p), ("output", c_void_p)]


class LinearStruct(ctypes.Structure):
    """`em_linear`"""

    _fields_ = [
        ("input", c_void_p),
        ("parts", LinearPartStruct * LINEAR_PARTS_MAX),
        ("part_count", c_int32),
        ("accumulate", c_int32),
        ("scale", c_float),
        ("reserved", c_int32),
    ]


class RopeStruct(ctypes.Structure):
    """`em_rope`"""

    _fields_ = [
        ("values", c_void_p),
        ("cosine", c_void_p),
        ("sine", c_void_p),
        ("heads", c_int32),
        ("width", c_int32),
        ("context", c_int32),
        ("reserved", c_int32),
    ]


class CacheStruct(ctypes.Structure):
    """`em_cache`"""

    _fields_ = [("elements", c_void_p), ("scales", c_void_p)]


class StoreKvStruct(ctypes.Structure):
    """`em_store_kv`"""

    _fields_ = [
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_cache", CacheStruct),
        ("value_cache", CacheStruct),
        ("format", c_int32),
        ("groups", c_int32),
        ("width", c_int32),
        ("context", c_int32),
    ]


class AttentionStruct(ctypes.Structure):
    """`em_attention`"""

    _fields_ = [
        ("query", c_void_p),
        ("output", c_void_p),
        ("key_cache", CacheStruct),
        ("value_cache", CacheStruct),
        ("format", c_int32),
        ("heads", c_int32),
        ("groups", c_int32),
        ("width", c_int32),
        ("context", c_int32),
        ("scale", c_float),
    ]


class RouteStruct(ctypes.Structure):
    """`em_route`"""

    _fields_ = [
        ("logits", c_void_p),
        ("experts", c_void_p),
        ("weights", c_void_p),
        ("in_memory", c_void_p),
        ("expert_count", c_int32),
        ("used", c_int32),
        ("renormalise", c_int32),
        ("bonus", c_float),
    ]


class GatedFfnStruct(ctypes.Structure):
    """`em_gated_ffn`"""

    _fields_ = [
        ("input", c_void_p),
        ("output", c_void_p),
        ("gate_up", MatrixStruct),
        ("down", MatrixStruct),
    ]


class ArrivalsStruct(ctypes.Structure):
    """`em_arrivals`"""

    _fields_ = [("reader", c_void_p), ("tickets", c_void_p), ("timeout_us", c_int64)]


class ExpertsStruct(ctypes.Structure):
    """`em_experts`"""

    _fields_ = [
        ("input", c_void_p),
        ("experts", c_void_p),
        ("slots", c_void_p),
        ("arena", c_void_p),
        ("output", c_void_p),
        ("slot_bytes", c_int64),
        ("down_offset", c_int64),
        ("slot_count", c_int32),
        ("expert_count", c_int32),
        ("used", c_int32),
        ("model_width", c_int32),
        ("ffn_width", c_int32),
        ("gate_up_format", c_int32),
        ("down_format", c_int32),
        ("reserved", c_int32),
        ("arrivals", ArrivalsStruct),
    ]


class CombineStruct(ctypes.Structure):
    """`em_combine`"""

    _fields_ = [
        ("residual", c_void_p),
        ("routed", c_void_p),
        ("weights", c_void_p),
        ("shared", c_void_p),
        ("shared_gate", c_void_p),
        ("used", c_int32),
        ("width", c_int32),
        ("scale", c_float),
        ("reserved", c_int32),
    ]


UNION_MEMBERS: tuple[tuple[str, type[ctypes.Structure]], ...] = (
    ("embed", EmbedStruct),
    ("rms_norm", RmsNormStruct),
    ("linear", LinearStruct),
    ("rope", RopeStruct),
    ("store_kv", StoreKvStruct),
    ("attention", AttentionStruct),
    ("route", RouteStruct),
    ("gated_ffn", GatedFfnStruct),
    ("experts", ExpertsStruct),
    ("combine", CombineStruct),
)
"""The members of the union, in the order of `em_kind`."""

KINDS: tuple[type, ...] = (
    op.Embed,
    op.RmsNorm,
    op.Linear,
    op.Rope,
    op.StoreKv,
    op.Attention,
    op.Route,
    op.GatedFfn,
    op.Experts,
    op.Combine,
)
"""The operations in the order of `em_kind` and of the union's members."""


class OperationUnion(ctypes.Union):
    """The union in `em_operation`."""

    _fields_ = UNION_MEMBERS


class OperationStruct(ctypes.Structure):
    """`em_operation`"""

    _fields_ = [("kind", c_int32), ("reserved", c_int32), ("as_", OperationUnion)]


class ScratchStruct(ctypes.Structure):
    """`em_scratch`"""

    _fields_ = [("data", c_void_p), ("bytes", c_uint64)]


class ProgramTimesStruct(ctypes.Structure):
    """`em_program_times`"""

    _fields_ = [("operations", c_void_p), ("elapsed_ns", c_uint64)]


class ProgramStruct(ctypes.Structure):
    """`em_program`"""

    _fields_ = [
        ("kernels", c_void_p),
        ("pool", c_void_p),
        ("operations", c_void_p),
        ("scratch", c_void_p),
        ("times", c_void_p),
        ("scratch_bytes", c_uint64),
        ("operation_count", c_int32),
        ("tokens_max", c_int32),
        ("failed_operation", c_int32),
        ("reserved", c_int32),
    ]


class ReadStruct(ctypes.Structure):
    """`em_read`"""

    _fields_ = [
        ("offset", c_int64),
        ("length", c_int64),
        ("destination", c_void_p),
        ("crc32c", c_int64),
        ("descriptor", c_int32),
        ("reserved", c_int32),
    ]


class ReadCountersStruct(ctypes.Structure):
    """`em_read_counters`"""

    _fields_ = [
        ("bytes_read", c_uint64),
        ("read_ns", c_uint64),
        ("queue_wait_ns", c_uint64),
        ("reads", c_uint64),
        ("failed", c_uint64),
        ("cancelled", c_uint64),
    ]


class SourceStruct(ctypes.Structure):
    """`em_source`"""

    _fields_ = [
        ("context", c_void_p),
        ("submit", c_void_p),
        ("wait", c_void_p),
        ("wait_any", c_void_p),
        ("done", c_void_p),
        ("promote", c_void_p),
        ("cancel", c_void_p),
        ("release", c_void_p),
    ]


class PolicySettingsStruct(ctypes.Structure):
    """`em_policy_settings`"""

    _fields_ = [
        ("next_uses", c_void_p),
        ("rate", c_double),
        ("weight", c_double),
        ("kind", c_int32),
        ("reserved", c_int32),
    ]


class ReadFailureStruct(ctypes.Structure):
    """`em_read_failure`"""

    _fields_ = [
        ("detail", c_int64),
        ("status", c_int32),
        ("layer", c_int32),
        ("expert", c_int32),
        ("reserved", c_int32),
    ]


class PagerSetupStruct(ctypes.Structure):
    """`em_pager_setup`"""

    _fields_ = [
        ("source", SourceStruct),
        ("records", c_void_p),
        ("arena", c_void_p),
        ("slots", c_void_p),
        ("tickets", c_void_p),
        ("counters", c_void_p),
        ("failure", c_void_p),
        ("policy", PolicySettingsStruct),
        ("slot_bytes", c_int64),
        ("timeout_us", c_int64),
        ("slot_count", c_int32),
        ("layers", c_int32),
        ("experts", c_int32),
        ("reserved", c_int32),
    ]
