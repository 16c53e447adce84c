"""The tensors of DeepSeek-V4: under the names of published files, and under those by which transformers runs it.

Files that transformers saves have published names within `model.`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from edgemoe.architectures.table import HEAD, Row, rows

_SHARES, _BASES, _SCALES = ("streams+joining", "streams*model"), ("streams+joining",), ("1+2",)

_INDEX = "self_attn.compressor.indexer."

_LAYER: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("attention_norm", "attn_norm.weight", "input_layernorm.weight", ("model",)),
    ("query_latent", "attn.wq_a.weight", "self_attn.q_a_proj.weight", ("query_rank", "model")),
    ("query_latent_norm", "attn.q_norm.weight", "self_attn.q_a_norm.weight", ("query_rank",)),
    ("query", "attn.wq_b.weight", "self_attn.q_b_proj.weight", ("query", "query_rank")),
    ("key", "attn.wkv.weight", "self_attn.kv_proj.weight", ("head_dim", "model")),
    ("key_norm", "attn.kv_norm.weight", "self_attn.kv_norm.weight", ("head_dim",)),
    ("sinks", "attn.attn_sink", "self_attn.sinks", ("heads",)),
    ("group_output", "attn.wo_a.weight", "self_attn.o_a_proj.weight", ("grouped", "of_group")),
    ("output", "attn.wo_b.weight", "self_attn.o_b_proj.weight", ("model", "grouped")),
    ("compress_values", "attn.compressor.wkv.weight", "self_attn.compressor.kv_proj.weight", ("compressed", "model")),
    (
        "compress_gates",
        "attn.compressor.wgate.weight",
        "self_attn.compressor.gate_proj.weight",
        ("compressed", "model"),
    ),
    ("compress_bias", "attn.compressor.ape", "self_attn.compressor.position_bias", ("rate", "compressed")),
    ("compress_norm", "attn.compressor.norm.weight", "self_attn.compressor.kv_norm.weight", ("head_dim",)),
    ("index_values", "attn.indexer.compressor.wkv.weight", _INDEX + "kv_proj.weight", ("indexed", "model")),
    ("index_gates", "attn.indexer.compressor.wgate.weight", _INDEX + "gate_proj.weight", ("indexed", "model")),
    ("index_bias", "attn.indexer.compressor.ape", _INDEX + "position_bias", ("rate", "indexed")),
    ("index_norm", "attn.indexer.compressor.norm.weight", _INDEX + "kv_norm.weight", ("index_dim",)),
    ("index_query", "attn.indexer.wq_b.weight", _INDEX + "q_b_proj.weight", ("index_query", "query_rank")),
    (
        "index_heads",
        "attn.indexer.weights_proj.weight",
        _INDEX + "scorer.weights_proj.weight",
        ("index_heads", "model"),
    ),
    ("attention_collapse_shares attention_balance_shares", "hc_attn_fn", "attn_hc.fn", _SHARES),
    ("attention_collapse_base attention_balance_base", "hc_attn_base", "attn_hc.base", _BASES),
    ("attention_collapse_scale attention_balance_scales", "hc_attn_scale", "attn_hc.scale", _SCALES),
    ("ffn_collapse_shares ffn_balance_shares", "hc_ffn_fn", "ffn_hc.fn", _SHARES),
    ("ffn_collapse_base ffn_balance_base", "hc_ffn_base", "ffn_hc.base", _BASES),
    ("ffn_collapse_scale ffn_balance_scales", "hc_ffn_scale", "ffn_hc.scale", _SCALES),
    ("ffn_norm", "ffn_norm.weight", "post_attention_layernorm.weight", ("model",)),
    ("router", "ffn.gate.weight", "mlp.gate.weight", ("experts", "model")),
    ("router_choice_bias", "ffn.gate.bias", "mlp.gate.e_score_correction_bias", ("experts",)),
    ("router_table", "ffn.gate.tid2eid", "mlp.gate.tid2eid", ("vocabulary", "used")),
    ("shared.gate", "ffn.shared_experts.w1.weight", "mlp.shared_experts.gate_proj.weight", ("shared_width", "model")),
    ("shared.up", "ffn.shared_experts.w3.weight", "mlp.shared_experts.up_proj.weight", ("shared_width", "model")),
    ("shared.down", "ffn.shared_experts.w2.weight", "mlp.shared_experts.down_proj.weight", ("model", "shared_width")),
)
"""Internal names, published name, name while it runs, and shape."""

_PUBLISHED_EXPERTS = (
    ("experts.{expert}.gate", "ffn.experts.{expert}.w1.weight", ("expert_width", "model")),
    ("experts.{expert}.up", "ffn.experts.{expert}.w3.weight", ("expert_width", "model")),
    ("experts.{expert}.down", "ffn.experts.{expert}.w2.weight", ("model", "expert_width")),
)
_FUSED_EXPERTS = (
    ("experts.{expert}.gate experts.{expert}.up", "mlp.experts.gate_up_proj", ("experts", "2*expert_width", "model")),
    ("experts.{expert}.down", "mlp.experts.down_proj", ("experts", "model", "expert_width")),
)

_TOP: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("embedding", ("embed.weight", "model.embed_tokens.weight"), ("vocabulary", "model")),
    ("final_norm", ("norm.weight", "model.norm.weight"), ("model",)),
    ("head", ("head.weight", HEAD), ("vocabulary", "model")),
    ("final_collapse_shares", ("hc_head_fn", "model.hc_head.hc_fn"), ("streams", "streams*model")),
    ("final_collapse_base", ("hc_head_base", "model.hc_head.hc_base"), ("streams",)),
    ("final_collapse_scale", ("hc_head_scale", "model.hc_head.hc_scale"), ("one",)),
)


def _table() -> Iterator[Row]:
    for name, sources, shape in _TOP:
        yield from rows(*((name, source, shape) for source in sources))
    published = [(names, source, shape) for names, source, _, shape in _LAYER]
    published += _PUBLISHED_EXPERTS
    saved = ("key_norm", "attn.norm.weight", ("head_dim",))  # as transformers calls it when it saves
    running = [(names, source, shape) for names, _, source, shape in _LAYER]
    running += _FUSED_EXPERTS
    for prefix, lines in (("", published), ("model.", [*published, saved]), ("model.", running)):
        for row in rows(*lines, internal="layers.{layer}.", source=f"{prefix}layers.{{layer}}."):
            as_vector = row.internal[0].endswith(("compress_bias", "index_bias", "router_table"))
            whole = row.internal[0].endswith("router_table")
            yield replace(row, as_vector=as_vector, change="whole" if whole else "none")


TENSORS: tuple[Row, ...] = tuple(_table())
