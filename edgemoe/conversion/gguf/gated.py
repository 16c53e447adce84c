"""Qwen3.8 in GGUF files: the keys of llama.cpp's qwen4exp beyond those of Qwen3.5.

A file has the constants that rows of its table are found by, and not the settings that these follow from in a config.
Source: llama.cpp, src/models/qwen4exp.cpp and conversion/qwen4exp.py (2026).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from edgemoe.architectures.qwen4_exp import LARGEST_HEAD_ROWS
from edgemoe.conversion.gguf.file import GgufTensor
from edgemoe.conversion.gguf.gated_tensors import ARCHITECTURE, TABLE_ROWS
from edgemoe.conversion.gguf.keys import Metadata
from edgemoe.conversion.gguf.layers import attention_of
from edgemoe.conversion.gguf.package import GGUFValueType, GGUFWriter
from edgemoe.model.blocks import GatedDelta, NgramTable
from edgemoe.model.gated_streams import GatedStreams
from edgemoe.model.ngrams import MOST_HEADS, NgramRows
from edgemoe.model.spec import LayerSpec, ModelSpec

_SEED = 1234
"""The seed of published models."""
_SEEDS = 1 << 12
"""How many seeds are tried for the factors of a file."""
_MULTIPLES = (128, 1)
"""The numbers of which a table's rows may be a multiple: that of published models, or any."""


def gated_config(metadata: Metadata, tensors: Mapping[str, GgufTensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Give the keys of the config that it has beyond those of Qwen3.5, whose keys are in `config`."""
    types, ratios = config["layer_types"], metadata.value("attention.compress_ratios")
    listed = ratios if isinstance(ratios, list) else [ratios] * len(types)
    seen = {ratio for ratio, kind in zip(listed, types, strict=False) if kind == "full_attention"}
    block = seen.pop() if len(seen) == 1 else None
    if len(listed) < len(types) or type(block) is not int or block < 1:
        raise metadata.wrong("attention.compress_ratios", "one number above 0 for all layers with attention", ratios)
    return {
        "hc_count": metadata.count("hyper_connection.count"),
        "hc_lowrank": metadata.count("hyper_connection.low_rank"),
        "indexer_budget": metadata.count("attention.indexer.top_k"),
        "indexer_compress_ratio": block,
        "indexer_head_dim": metadata.count("attention.indexer.key_length"),
        "indexer_kv_heads": 1,
        "indexer_n_heads": metadata.count("attention.indexer.head_count"),
        "output_gate_type": "sigmoid",
        **_table_config(metadata, tensors),
    }


def _table_config(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """The settings by which a table has the constants of the file; `ple_layer_ids` is empty without one."""
    number = metadata.value("ple.layers")
    if number is None:
        return {"ple_layer_ids": []}
    if type(number) is not int:  # of a list of one, only that is left
        raise metadata.wrong("ple.layers", "one layer", number)
    metadata.value("ple.image_token_id")  # of places that images take
    longest, heads = metadata.count("ple.ngram_size"), metadata.count("ple.heads_per_ngram")
    width, embedding = metadata.count("embedding_length_per_layer_input"), tensors.get("token_embd.weight")
    found = {name: _numbers(metadata, f"ple.{name}") for name in ("head_vocab_sizes", "head_offsets")}
    sizes, rows = found["head_vocab_sizes"], tensors.get(TABLE_ROWS)
    if not (longest - 1) * heads == len(sizes) <= MOST_HEADS or not 0 < sizes[0] <= LARGEST_HEAD_ROWS:
        wanted = f"{(longest - 1) * heads} numbers, {MOST_HEADS} at most, from 1 to {LARGEST_HEAD_ROWS}"
        raise metadata.wrong("ple.head_vocab_sizes", wanted, sizes)
    rule = NgramRows(
        longest,
        heads,
        sizes[0],
        1,
        0,
        _SEED,
        embedding.shape[0] if embedding else metadata.count("vocab_size"),
        metadata.count("ple.eos_token_id", minimum=0),
    )
    offsets = [0, *itertools.accumulate(sizes)]
    for name, expected in (("head_vocab_sizes", rule.rows_of_heads), ("head_offsets", offsets[: rule.count])):
        if found[name] != list(expected):
            raise metadata.wrong(f"ple.{name}", f"{list(expected)}", found[name])
    factors = _numbers(metadata, "ple.layer_multipliers")
    seeds = (_SEED, *range(_SEEDS))
    seed = next((seed for seed in seeds if list(replace(rule, seed=seed).multipliers) == factors), None)
    if seed is None:
        raise metadata.wrong("ple.layer_multipliers", f"those of a seed below {_SEEDS}", factors)
    total = rows.shape[0] if rows else rule.total_rows
    multiple = next((one for one in _MULTIPLES if replace(rule, multiple=one).total_rows == total), None)
    if multiple is None:
        raise metadata.wrong("ple.head_vocab_sizes", f"a table of {total} rows", found["head_vocab_sizes"])
    return {
        "eos_token_id": rule.end_token,
        "heads_per_ngram": heads,
        "make_ngram_vocab_size_divisible_by": multiple,
        "ngram_size": longest,
        "ngram_vocab_size_base": rule.least_rows,
        "ple_conv_kernel_size": metadata.count("ple.conv_kernel"),
        "ple_embed_dim": width * rule.count,
        "ple_layer_ids": [number + 1],
        "seed": seed,
        "split_ngram_parts": 1,
    }


def _numbers(metadata: Metadata, key: str) -> list[int]:
    found = metadata.value(key)
    numbers = [found] if type(found) is int else found
    if not isinstance(numbers, list) or not numbers or not all(type(number) is int for number in numbers):
        raise metadata.wrong(key, "a list of whole numbers", found)
    return numbers


# ---- the way back ------------------------------------------------------------------------------------------------


def gated_problems(spec: ModelSpec) -> Iterator[str]:
    """Yield what llama.cpp has not, beside what it has of Qwen3.5. The exporter reads the file back too."""
    if not isinstance(spec.streams, GatedStreams):
        yield "models with one residual stream"
    tables = _tables(spec)
    if len(tables) > 1:
        yield "several tables"
    if any(table.width != spec.hidden_size for table in tables):
        yield "rows of a table that are not together as wide as the model"
    deltas = (block.body for layer in spec.layers for block in layer.blocks if isinstance(block.body, GatedDelta))
    if any(delta.gating != "sigmoid" for delta in deltas):
        yield "gates by SiLU in layers of Gated DeltaNet"
    if any(own.indexer is None for own in attention_of(spec)):
        yield "attention to all earlier tokens"


def gated_remark(spec: ModelSpec) -> str:
    """Say what llama.cpp computes a little differently: it always takes as many tokens as a choice has at most."""
    own = next(own.indexer for own in attention_of(spec) if own.indexer is not None)
    return (
        f"llama.cpp shows a token up to {own.block - 1} tokens of one block beside the {own.kept} blocks that the"
        f" indexer chooses: results differ a little in contexts beyond {own.kept * own.block:,} tokens, as in every"
        " GGUF of it."
    )


def without_additions(spec: ModelSpec) -> ModelSpec:
    """The same model as one of Qwen3.5: without streams, tables and choices of tokens."""
    layers = []
    for layer in spec.layers:
        blocks = (block for block in layer.blocks if not isinstance(block.body, NgramTable))
        layers.append(LayerSpec(tuple(replace(block, body=_plain(block.body)) for block in blocks)))
    return replace(spec, layers=tuple(layers), streams=None)


def _plain(body: Any) -> Any:
    return replace(body, indexer=None) if getattr(body, "indexer", None) is not None else body


def in_one_part(spec: ModelSpec) -> ModelSpec:
    """The same model with tables in one part, by a rule that has what a file says of it."""
    layers = []
    for layer in spec.layers:
        blocks = (
            replace(block, body=_in_one_part(block.body)) if isinstance(block.body, NgramTable) else block
            for block in layer.blocks
        )
        layers.append(replace(layer, blocks=tuple(blocks)))
    return replace(spec, layers=tuple(layers))


def _in_one_part(table: NgramTable) -> NgramTable:
    rule = table.rule
    multiple = next((one for one in _MULTIPLES if replace(rule, multiple=one).total_rows == rule.total_rows), 0)
    return replace(table, rule=replace(rule, least_rows=rule.rows_of_heads[0], multiple=multiple), parts=1)


def _tables(spec: ModelSpec) -> dict[NgramTable, int]:
    """The tables, with their layers."""
    return {
        block.body: number
        for number, layer in enumerate(spec.layers)
        for block in layer.blocks
        if isinstance(block.body, NgramTable)
    }


def write_gated(writer: GGUFWriter, spec: ModelSpec) -> None:
    """Write the keys that a file has beyond those of Qwen3.5."""
    streams, attention = spec.streams, attention_of(spec)
    assert isinstance(streams, GatedStreams)  # `gated_problems` has seen to it
    indexer = attention[0].indexer
    assert indexer is not None
    with_attention = [bool(attention_of(replace(spec, layers=(layer,)))) for layer in spec.layers]
    key = f"{ARCHITECTURE}.{{}}".format
    writer.add_uint32(key("hyper_connection.count"), streams.count)
    writer.add_uint32(key("hyper_connection.low_rank"), streams.rank)
    writer.add_indexer_head_count(indexer.heads)
    writer.add_indexer_key_length(indexer.head_dim)
    writer.add_indexer_top_k(indexer.kept * indexer.block)
    writer.add_array(key("attention.compress_ratios"), [indexer.block * own for own in with_attention])
    for table, layer in _tables(spec).items():
        rule = table.rule
        sizes = rule.rows_of_heads
        writer.add_array(key("ple.layers"), [layer])
        writer.add_uint32(key("ple.ngram_size"), rule.longest)
        writer.add_uint32(key("ple.heads_per_ngram"), rule.heads)
        writer.add_uint32(key("ple.conv_kernel"), table.length)
        writer.add_uint32(key("ple.eos_token_id"), rule.end_token)
        writer.add_uint32(key("embedding_length_per_layer_input"), table.width // rule.count)
        for name, numbers in (
            ("layer_multipliers", rule.multipliers),
            ("head_offsets", [0, *itertools.accumulate(sizes[:-1])]),
            ("head_vocab_sizes", sizes),
        ):
            writer.add_key_value(key(f"ple.{name}"), list(numbers), GGUFValueType.ARRAY, GGUFValueType.UINT64)
