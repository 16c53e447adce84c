"""DeepSeek-V4: four residual streams, one key for all heads, a window with compressed history, and routers that go by
token ids in the first layers.

Layers of one type see a row for each 4 tokens, of which an indexer chooses `index_topk`; those of another type see a
row for each 128 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgemoe.architectures.config import (
    DAMAGED,
    LARGEST_LAYERS,
    LARGEST_POSITIONS,
    LARGEST_WIDTH,
    ConfigReader,
    unsupported,
)
from edgemoe.architectures.deepseek_v4_tensors import TENSORS
from edgemoe.architectures.frame import pair_layers, read_experts, read_frame, read_layer_count
from edgemoe.architectures.positions import SMALLEST_NUMBER, read_rope
from edgemoe.errors import SourceError
from edgemoe.kernels.block_operations import LONGEST_BLOCK
from edgemoe.kernels.operations import PAGE_TOKENS, Activation
from edgemoe.kernels.state_operations import MOST_BITS
from edgemoe.kernels.stream_operations import MOST_STREAMS
from edgemoe.model.blocks import BlockIndex, CompressedAttention, Moe, RouterSpec, SharedExpert
from edgemoe.model.rope import RopeSpec
from edgemoe.model.sinkhorn_streams import SinkhornStreams
from edgemoe.model.spec import ModelSpec

__all__ = ["TENSORS", "read"]

_SLIDING, _SPARSE, _HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
_RATIOS = {0: _SLIDING, 4: _SPARSE, 128: _HEAVY}
"""The types of layers by the numbers that published configs have for them."""
_RATES = {_SPARSE: ("compress_rate_csa", 4), _HEAVY: ("compress_rate_hca", 128)}


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    kinds = (_SLIDING, _SPARSE, _HEAVY)
    frame = read_frame(reader, "deepseek_v4", own_code="DeepseekV4ForCausalLM", layer_types=kinds, windows=True)
    moe = _read_experts(reader)
    count = read_layer_count(reader, moe)
    attention = _read_attention(reader, frame)
    types = _read_types(reader, count)
    by_table = replace(moe, router=replace(moe.router, choice_bias=False, table=frame.vocab_size))
    ffns = [by_table if hashed else moe for hashed in _read_hashed(reader, count)]
    # The layers that predict further tokens are left out (see `table.unused_tensors`), however many there are.
    reader.integer("num_nextn_predict_layers", minimum=0, maximum=LARGEST_LAYERS, default=0)
    streams = SinkhornStreams(
        count=reader.integer("hc_mult", minimum=2, maximum=MOST_STREAMS, default=4),
        iterations=reader.integer("hc_sinkhorn_iters", maximum=1000, default=20),
        epsilon=reader.number("hc_eps", 1e-6, maximum=1.0),
    )
    return replace(
        frame,
        layers=pair_layers([attention[kind] for kind in types], ffns),
        streams=streams,
    )


def _read_experts(reader: ConfigReader) -> Moe:
    """The routed experts and the shared one, which clamp alike."""
    for name, only in (("scoring_func", "sqrtsoftplus"), ("topk_method", "noaux_tc"), ("norm_topk_prob", True)):
        reader.require(name, only, default=only)
    for name in ("n_shared_experts", "n_group", "topk_group"):
        reader.require(name, 1, default=1)
    reader.skip("expert_dtype")  # how they are written, as their tensors say
    scale = reader.number("routed_scaling_factor", 1.5)
    router = RouterSpec(normalise=True, score="sqrt_softplus", choice_bias=True, epsilon=1e-20, scale=scale)
    moe = read_experts(reader, width_key="moe_intermediate_size", count_key="n_routed_experts", router=router)
    clamped = Activation("clamped_silu", limit=reader.number("swiglu_limit", 10.0, above=SMALLEST_NUMBER))
    return replace(moe, activation=clamped, shared=SharedExpert(moe.intermediate_size, activation=clamped))


def _read_attention(reader: ConfigReader, frame: ModelSpec) -> Mapping[str, CompressedAttention]:
    """The attention of each type of layer."""

    def width(name: str, default: int | None = None) -> int:
        return reader.integer(name, maximum=LARGEST_WIDTH, default=default)

    heads, head_dim, groups = width("num_attention_heads"), width("head_dim", 512), width("o_groups", 8)
    reader.require("num_key_value_heads", 1, default=1)
    reader.require("attention_bias", False)
    if heads % groups or heads * head_dim > LARGEST_WIDTH:
        raise SourceError(
            f"config.json: num_attention_heads is {heads}, each {head_dim} wide; expected a multiple of o_groups, which"
            f" is {groups}, and {LARGEST_WIDTH} values at most.",
            DAMAGED,
        )
    main, compressed = _read_ropes(reader, head_dim, frame.max_positions)
    sliding = CompressedAttention(
        heads=heads,
        head_dim=head_dim,
        query_rank=width("q_lora_rank", 1024),
        groups=groups,
        group_rank=width("o_lora_rank", 1024),
        window=reader.integer("sliding_window", maximum=LARGEST_POSITIONS, default=128),
        rope=main,
    )
    index = BlockIndex(
        heads=width("index_n_heads", 64),
        head_dim=width("index_head_dim", 128),
        most=reader.integer("index_topk", maximum=LARGEST_POSITIONS, default=512),
    )
    if not compressed.rotated <= index.head_dim <= LARGEST_WIDTH // index.heads:
        raise SourceError(
            f"config.json: index_head_dim is {index.head_dim}; expected {compressed.rotated} channels at least, which"
            f" positions rotate, and {LARGEST_WIDTH} values at most in {index.heads} heads.",
            DAMAGED,
        )
    rates = _read_rates(reader)
    sparse, heavy = (replace(sliding, rope=compressed, rate=rates[kind]) for kind in (_SPARSE, _HEAVY))
    return {_SLIDING: sliding, _SPARSE: replace(sparse, overlap=True, index=index), _HEAVY: heavy}


def _read_rates(reader: ConfigReader) -> Mapping[str, int]:
    """The tokens of a block in the two types of layers that compress."""
    listed, rates = reader.inner("compress_rates"), {}
    for kind, (older, default) in _RATES.items():
        rate = default if listed is None else listed.integer(kind, maximum=LARGEST_POSITIONS, default=default)
        rates[kind] = reader.integer(older, maximum=LARGEST_POSITIONS, default=rate)
        most, least = LONGEST_BLOCK // 2, PAGE_TOKENS // MOST_BITS if kind == _SPARSE else 1
        if (PAGE_TOKENS % rates[kind] and rates[kind] % PAGE_TOKENS) or not least <= rates[kind] <= most:
            wanted = f"divisors and multiples of {PAGE_TOKENS} from {least} to {most}"
            raise unsupported(f"compress_rates.{kind}", rates[kind], wanted)
    return rates


def _read_ropes(reader: ConfigReader, head_dim: int, max_positions: int) -> tuple[RopeSpec, RopeSpec]:
    """The positions of layers that see a window alone, and of those that compress: rotations of neighbours.

    The objects of older files are those of layers that compress; YaRN has no gain here unless they say so.
    """
    rotated = reader.integer("qk_rope_head_dim", maximum=head_dim, default=0)
    partial = reader.value("partial_rotary_factor")
    theta = {"main": reader.value("rope_theta"), "compress": reader.value("compress_rope_theta")}
    objects: dict[str, dict[str, Any]] = {"main": {}, "compress": {}}
    for name in ("rope_scaling", "rope_parameters"):
        found = reader.value(name)
        if isinstance(found, Mapping) and ("main" in found or "compress" in found):
            for kind, own in objects.items():
                own[name] = found.get(kind)
        elif isinstance(found, Mapping):  # whose theta is that of the other layers
            objects["compress"][name] = {key: value for key, value in found.items() if key != "rope_theta"}
        elif found is not None:
            objects["compress"][name] = found
    specs = []
    for kind, default in (("main", 10_000.0), ("compress", 160_000.0)):
        own = {name: _without_gain(value) for name, value in objects[kind].items()}
        inner = ConfigReader({"rope_theta": theta[kind], "partial_rotary_factor": partial, **own})
        spec = read_rope(inner, head_dim, default, max_positions, (rotated or head_dim // 8) / head_dim)
        if rotated and spec.rotated != rotated:
            raise SourceError(
                f"config.json: qk_rope_head_dim is {rotated}, but partial_rotary_factor means {spec.rotated} channels;"
                " expected one number.",
                DAMAGED,
            )
        specs.append(replace(spec, pairing="neighbours"))
    return specs[0], specs[1]


def _without_gain(value: Any) -> Any:
    """An object of positions, in which YaRN without `attention_factor` means 1."""
    yarn = isinstance(value, Mapping) and "yarn" in (value.get("rope_type"), value.get("type"))
    return {**value, "attention_factor": 1.0} if yarn and value.get("attention_factor") is None else value


def _read_types(reader: ConfigReader, count: int) -> Sequence[str]:
    """The type of each layer: listed by words or by numbers, else two that compress much, then in turn."""
    ratios, listed = reader.sequence("compress_ratios"), reader.sequence("layer_types")
    for ratio in ratios:
        if type(ratio) is not int or ratio not in _RATIOS:
            raise unsupported("compress_ratios", ratio, ", ".join(map(str, _RATIOS)))
    in_turn = [_HEAVY] * 2 + [_SPARSE if number % 2 else _HEAVY for number in range(count)]
    types = listed or [_RATIOS[ratio] for ratio in ratios] or in_turn
    # Published lists go on with the layers that predict further tokens.
    if len(types) < count or (listed and len(listed) != count):
        name = "layer_types" if listed else "compress_ratios"
        raise SourceError(f"config.json: {name} lists {len(types)} layers; expected {count}.", DAMAGED)
    return types[:count]


def _read_hashed(reader: ConfigReader, count: int) -> Sequence[bool]:
    """Whether a table chooses the experts of each layer."""
    leading = reader.integer("num_hash_layers", minimum=0, maximum=LARGEST_LAYERS, default=3)
    types = reader.sequence("mlp_layer_types")
    if types and len(types) != count:
        raise SourceError(f"config.json: mlp_layer_types lists {len(types)} layers; expected {count}.", DAMAGED)
    for kind in types:
        if kind not in ("hash_moe", "moe"):
            raise unsupported("mlp_layer_types", kind, '"hash_moe" or "moe"')
    return [kind == "hash_moe" for kind in types] or [number < leading for number in range(count)]
