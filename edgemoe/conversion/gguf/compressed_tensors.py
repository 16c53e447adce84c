"""DeepSeek-V4 in GGUF files: its names and shapes. Source: llama.cpp, conversion/deepseek.py (2026)."""

from __future__ import annotations

from collections.abc import Mapping

from edgemoe.architectures.deepseek_v4_tensors import TENSORS
from edgemoe.model.blocks import Moe
from edgemoe.model.spec import LayerSpec

ARCHITECTURE = "deepseek4"
_COMPRESSOR = {
    "kv.weight": "wkv.weight",
    "gate.weight": "wgate.weight",
    "ape.weight": "ape",
    "norm.weight": "norm.weight",
}
_OF_MODEL = {
    "token_embd.weight": "embed.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "head.weight",
    **{f"output_hc_{part}.weight": f"hc_head_{part}" for part in ("fn", "base", "scale")},
}
_OF_LAYER = {
    "attn_norm.weight": "attn_norm.weight",
    "attn_q_a.weight": "attn.wq_a.weight",
    "attn_q_a_norm.weight": "attn.q_norm.weight",
    "attn_q_b.weight": "attn.wq_b.weight",
    "attn_kv.weight": "attn.wkv.weight",
    "attn_kv_a_norm.weight": "attn.kv_norm.weight",
    "attn_sinks.weight": "attn.attn_sink",
    "attn_output_a.weight": "attn.wo_a.weight",
    "attn_output_b.weight": "attn.wo_b.weight",
    **{f"attn_compressor_{part}": f"attn.compressor.{own}" for part, own in _COMPRESSOR.items()},
    **{f"indexer_compressor_{part}": f"attn.indexer.compressor.{own}" for part, own in _COMPRESSOR.items()},
    "indexer.attn_q_b.weight": "attn.indexer.wq_b.weight",
    "indexer.proj.weight": "attn.indexer.weights_proj.weight",
    **{
        f"hc_{block}_{part}.weight": f"hc_{block}_{part}"
        for block in ("attn", "ffn")
        for part in ("fn", "base", "scale")
    },
    "ffn_norm.weight": "ffn_norm.weight",
    "exp_probs_b.bias": "ffn.gate.bias",
    "exp_probs_b_vl.bias": "ffn.gate.bias_vl",
    "ffn_gate_tid2eid.weight": "ffn.gate.tid2eid",
}
CHECKPOINT_NAMES = _OF_MODEL | _OF_LAYER
"""Names in checkpoints by those in the model or layer of the file."""

_SOURCES = {own: name for name, own in _OF_MODEL.items()} | {
    f"layers.{{layer}}.{own}": f"blk.{{bid}}.{name}" for name, own in _OF_LAYER.items()
}
FILE_NAMES = {
    name.removeprefix("layers.{layer}."): _SOURCES[row.source]
    for row in TENSORS
    if row.source in _SOURCES
    for name in row.internal
}
"""Names in the file by those within our model or layer."""
TABLE = "router_table"
"""Its table of whole numbers, which the file has as such."""


def compressed_rows(layer: LayerSpec, vocab_size: int) -> Mapping[str, int]:
    """The rows that vectors of a layer have in the file, by their names in the model."""
    rows = {TABLE: vocab_size} if isinstance(layer.blocks[-1].body, Moe) else {}
    mixer = layer.blocks[0].body
    return rows | dict.fromkeys(("compress_bias", "index_bias"), getattr(mixer, "rate", 0))
