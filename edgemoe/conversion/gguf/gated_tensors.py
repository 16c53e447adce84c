"""Qwen3.8 in GGUF files: names of its streams, indexer and table. Source: llama.cpp, conversion/qwen4exp.py (2026)."""

from __future__ import annotations

from edgemoe.architectures.qwen4_exp import TENSORS
from edgemoe.architectures.table import SUM_SUFFIX
from edgemoe.conversion.gguf.linear import LINEAR_NAMES

ARCHITECTURE = "qwen4exp"
TABLE_ROWS = "per_layer_token_embd.weight"
"""The rows of the one table."""
TABLE_IN_CHECKPOINT = "model.layers.{layer}.ple.ple_embedding.ngram_embedding.shard_0.weight"
"""The name of the same in a checkpoint that has them in one part."""
TAPS = "ple_conv1d.weight"

_MIX = "input_mix_weight_"
_OF_MODEL = {
    "output_hc_norm.weight": "model.hyper_connection_mixer.hc_norm" + SUM_SUFFIX,
    "output_hc_down.weight": f"model.hyper_connection_mixer.{_MIX}down.weight",
    "output_hc_up.weight": f"model.hyper_connection_mixer.{_MIX}up.weight",
}
_OF_LAYER = {
    "indexer.q_proj.weight": "self_attn.indexer.q_proj.weight",
    "indexer.k_proj.weight": "self_attn.indexer.k_proj.weight",
    "indexer.q_norm.weight": "self_attn.indexer.q_layernorm" + SUM_SUFFIX,
    "indexer.k_norm.weight": "self_attn.indexer.k_layernorm" + SUM_SUFFIX,
    "ple_key.weight": "ple.key_proj.weight",
    "ple_value.weight": "ple.value_proj.weight",
    "ple_norm_key.weight": "ple.norm_key" + SUM_SUFFIX,
    "ple_norm_query.weight": "ple.norm_query" + SUM_SUFFIX,
    "ple_norm_conv.weight": "ple.norm_conv" + SUM_SUFFIX,
    TAPS: "ple.conv1d.weight",
}
for _file, _source in (("attn", "attn"), ("ffn", "mlp")):
    _OF_LAYER |= {
        f"hc_{_file}_norm.weight": f"{_source}_hyper_connection.hc_norm" + SUM_SUFFIX,
        f"hc_{_file}_down.weight": f"{_source}_hyper_connection.{_MIX}down.weight",
        f"hc_{_file}_up.weight": f"{_source}_hyper_connection.{_MIX}up.weight",
        f"hc_{_file}_inject.weight": f"{_source}_hyper_connection.block_inject_weight.weight",
    }
CHECKPOINT_NAMES = LINEAR_NAMES | _OF_MODEL | _OF_LAYER
"""Names in checkpoints by those in the model or layer of the file."""

_SOURCES = {own: name for name, own in _OF_MODEL.items()} | {
    f"model.layers.{{layer}}.{own}": f"blk.{{bid}}.{name}" for name, own in _OF_LAYER.items()
}
FILE_NAMES = {
    name.removeprefix("layers.{layer}."): _SOURCES[row.source]
    for row in TENSORS
    if row.source in _SOURCES
    for name in row.internal
} | {"row_table": TABLE_ROWS}
"""Names in the file by those within our model or layer, of what other architectures have not."""
