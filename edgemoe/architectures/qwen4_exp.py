"""Qwen4-Exp (Qwen3.8-Flash-Next): the mixers and experts of Qwen3.5 on several residual streams, and n-gram tables.

Layers of `ple_layer_ids`, which count from 1, begin with a table (`NgramTable`), of which the checkpoint has parts.
Attention sees `indexer_budget` earlier tokens, which an indexer chooses in blocks (`BlockIndexer`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from edgemoe.architectures import qwen3_5_moe, qwen3_next
from edgemoe.architectures.config import (
    DAMAGED,
    LARGEST_POSITIONS,
    LARGEST_VOCABULARY,
    LARGEST_WIDTH,
    ConfigReader,
    show,
    unsupported,
)
from edgemoe.architectures.table import Row, layer_rows, rows, sums_with_one
from edgemoe.errors import SourceError
from edgemoe.kernels.block_operations import WIDEST_BLOCK_KEY
from edgemoe.kernels.operations import PAGE_TOKENS
from edgemoe.kernels.state_operations import MOST_DILATION, MOST_TAPS
from edgemoe.kernels.stream_operations import MOST_STREAMS
from edgemoe.model.blocks import Attention, BlockIndexer, NgramTable
from edgemoe.model.blocks.ngram_table import MOST_PARTS
from edgemoe.model.gated_streams import GatedStreams
from edgemoe.model.ngrams import MOST_HEADS, NgramRows
from edgemoe.model.spec import Block, LayerSpec, ModelSpec

MIXERS = (*qwen3_next.MIXERS, "indexed_attention")
LARGEST_HEAD_ROWS = 1 << 26
"""The most rows that each head of a table has at least."""

_WHOLE = "streams*model"
_STREAMS = {"attention": "attn", "delta": "attn", "ffn": "mlp"}
_TABLE = layer_rows(
    ("row_table.{part}", "ple.ple_embedding.ngram_embedding.shard_{part}.weight", ("table_rows", "table_row")),
    ("table_key", "ple.key_proj.weight", (_WHOLE, "table_width")),
    ("table_value", "ple.value_proj.weight", ("model", "table_width")),
    ("table_taps", "ple.conv1d.weight", (_WHOLE, "one", "table_length")),
)


def _stream_rows() -> tuple[Row, ...]:
    """The rows of what blocks read and write streams with, and of the last mix."""
    made: tuple[Row, ...] = ()
    for internal, source in _STREAMS.items():
        place = f"{source}_hyper_connection."
        made += layer_rows(
            (f"{internal}_mix_down", f"{place}input_mix_weight_down.weight", ("stream_rank", _WHOLE)),
            (f"{internal}_mix_up", f"{place}input_mix_weight_up.weight", (_WHOLE, "stream_rank")),
            (f"{internal}_shares", f"{place}block_inject_weight.weight", ("streams", _WHOLE)),
        )
    mixer = "model.hyper_connection_mixer.input_mix_weight_"
    made += rows(
        ("final_mix_down", f"{mixer}down.weight", ("stream_rank", _WHOLE)),
        ("final_mix_up", f"{mixer}up.weight", (_WHOLE, "stream_rank")),
    )
    norms = layer_rows(
        *(
            (f"{name}_norm", f"{source}_hyper_connection.hc_norm.weight", (_WHOLE,))
            for name, source in _STREAMS.items()
        ),
        ("table_key_norm", "ple.norm_key.weight", (_WHOLE,)),
        ("table_query_norm", "ple.norm_query.weight", (_WHOLE,)),
        ("table_taps_norm", "ple.norm_conv.weight", (_WHOLE,)),
        ("index_query_norm", "self_attn.indexer.q_layernorm.weight", ("index_key",)),
        ("index_key_norm", "self_attn.indexer.k_layernorm.weight", ("index_key",)),
    ) + rows(("final_norm", "model.hyper_connection_mixer.hc_norm.weight", (_WHOLE,)))
    return made + sums_with_one(norms)


_INDEXER = layer_rows(
    (
        "index_query index_key",
        "self_attn.indexer.index_qk_proj.weight",
        ("index_query+index_key", "model"),
    ),
    ("index_query", "self_attn.indexer.q_proj.weight", ("index_query", "model")),
    ("index_key", "self_attn.indexer.k_proj.weight", ("index_key", "model")),
)
"""Only GGUF files have the two parts apart."""
_OTHER_NORMS = ("model.norm.", "_layernorm.")
_ROWS = (
    tuple(row for row in qwen3_5_moe.ROWS if not any(part in row.source for part in _OTHER_NORMS))
    + _stream_rows()
    + _TABLE
    + _INDEXER
)
TENSORS = qwen3_5_moe.with_text_tower(_ROWS)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes, or its `text_config`. Raises SourceError."""
    text, frame = qwen3_5_moe.read_text(reader, "qwen4_exp", MIXERS)
    text.require("output_gate_type", "silu", "sigmoid")
    gating: Literal["silu", "sigmoid"] = "sigmoid" if text.value("output_gate_type") == "sigmoid" else "silu"
    streams = GatedStreams(
        text.integer("hc_count", minimum=2, maximum=MOST_STREAMS, default=4),
        text.integer("hc_lowrank", maximum=LARGEST_WIDTH, default=320),
    )
    normalise = text.flag("norm_topk_prob", True)
    in_turn = text.flag(qwen3_5_moe.IN_TURN, False)
    layers = qwen3_next.read_linear_layers(text, frame, normalise, gating=gating, in_turn=in_turn)
    tables, indexer = _read_tables(text, frame, streams.count, layers), _read_indexer(text)
    text.skip("number_of_conv_states")  # how another program keeps state
    text.skip("intermediate_size", "mtp")  # no layer is dense; layers for further tokens are left out

    def blocks(number: int, layer: LayerSpec) -> LayerSpec:
        mixer, ffn = layer.blocks
        if isinstance(mixer.body, Attention):
            rotated = mixer.body.rope.rotated if mixer.body.rope else 0
            if rotated > indexer.head_dim:
                raise SourceError(
                    f"config.json: indexer_head_dim is {indexer.head_dim}; expected at least the {rotated} channels"
                    " that positions rotate.",
                    DAMAGED,
                )
            mixer = replace(mixer, body=replace(mixer.body, indexer=indexer))
        before = (Block(tables[number], input_norm=False),) if number in tables else ()
        return LayerSpec((*before, mixer, ffn))

    return replace(frame, layers=tuple(blocks(*layer) for layer in enumerate(layers)), streams=streams)


def _read_indexer(reader: ConfigReader) -> BlockIndexer:
    seen = reader.integer("indexer_budget", maximum=LARGEST_POSITIONS)
    block = reader.integer("indexer_compress_ratio", maximum=LARGEST_POSITIONS)
    if block < 2 or PAGE_TOKENS % block:
        raise unsupported("indexer_compress_ratio", block, f"divisors of {PAGE_TOKENS} above 1")
    if seen % block:
        raise SourceError(
            f"config.json: indexer_budget is {seen}; expected a multiple of indexer_compress_ratio, which is {block}.",
            DAMAGED,
        )
    reader.require("indexer_kv_heads", 1)
    head_dim = reader.integer("indexer_head_dim", maximum=WIDEST_BLOCK_KEY)
    return BlockIndexer(
        reader.integer("indexer_n_heads", maximum=LARGEST_WIDTH // head_dim), head_dim, block, seen // block
    )


def _read_tables(
    reader: ConfigReader, frame: ModelSpec, streams: int, layers: tuple[LayerSpec, ...]
) -> dict[int, NgramTable]:
    """The tables by the numbers of their layers."""
    listed = reader.sequence("ple_layer_ids")
    for number in listed:
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= len(layers):
            raise SourceError(
                f"config.json: ple_layer_ids holds {show(number)}; expected layers from 1 to {len(layers)}.", DAMAGED
            )
        if layers[number - 1].blocks[0].body.kind != "gated_delta":
            raise unsupported("ple_layer_ids", number, "tables before linear attention")

    def size(name: str, default: int, maximum: int, minimum: int = 1) -> int:
        return reader.integer(name, minimum=minimum, maximum=maximum, default=default)

    longest = size("ngram_size", 3, MOST_DILATION, 2)
    heads, width = size("heads_per_ngram", 8, MOST_HEADS), size("ple_embed_dim", frame.hidden_size, LARGEST_WIDTH)
    rule = NgramRows(
        longest,
        heads,
        size("ngram_vocab_size_base", 20_000_000, LARGEST_HEAD_ROWS),
        size("make_ngram_vocab_size_divisible_by", 128, LARGEST_WIDTH),
        0,
        size("seed", 1234, LARGEST_POSITIONS, 0),
        frame.vocab_size,
        _read_end_token(reader, frame.vocab_size) if listed else 0,
    )
    if listed and (width % rule.count or rule.count > MOST_HEADS or len(listed) * rule.count > 256):
        raise SourceError(
            f"config.json: ple_embed_dim is {width} for {len(set(listed))} tables with {rule.count} rows for a token;"
            f" expected a multiple of these, which are at most {MOST_HEADS}, and 256 of all tables.",
            DAMAGED,
        )
    parts = size("split_ngram_parts", 512, MOST_PARTS)
    length = size("ple_conv_kernel_size", 4, MOST_TAPS, 2)
    return {
        number - 1: NgramTable(replace(rule, number=index), width, parts, streams, length, longest)
        for index, number in enumerate(sorted(set(listed)))
    }


def _read_end_token(reader: ConfigReader, vocab_size: int) -> int:
    """The id that ends a text, of those listed the first."""
    value = reader.value("eos_token_id")
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    if isinstance(first, bool) or not isinstance(first, int) or not 0 <= first < min(vocab_size, LARGEST_VOCABULARY):
        raise SourceError(
            f"config.json: eos_token_id is {show(value)}; expected an id below {vocab_size}: n-grams begin after it.",
            DAMAGED,
        )
    return first
