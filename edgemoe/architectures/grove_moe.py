"""GroveMoE: Qwen3-MoE whose experts come in groups of two, each with a narrow adjugate expert that both share.

What a token's experts give is the sum of `w (expert(x) + 0.05 adjugate(x))`, so an expert and its adjugate are one
wider FFN: gate and up have the rows of both, down the columns of both. Each expert has that as its record, which one
read brings; an adjugate expert stands in two records.

Source: `modeling_grove_moe.py` of inclusionAI/GroveMoE-Inst, by way of ports to other programs: number and width of
adjugate experts and their factor stand in its code, not in the config.
"""

from __future__ import annotations

import re
from dataclasses import replace

from edgemoe.architectures import qwen3_moe
from edgemoe.architectures.config import LARGEST_WIDTH, ConfigReader, unsupported
from edgemoe.architectures.frame import check_own_code
from edgemoe.architectures.tails import Tail
from edgemoe.model.blocks import Moe
from edgemoe.model.spec import Block, LayerSpec, ModelSpec

TENSORS = qwen3_moe.TENSORS
_GROUP, _WIDTH, _FACTOR = 2, 128, 0.05
_EXPERT = re.compile(r"(model\.layers\.\d{1,6}\.mlp\.)experts\.(\d{1,6})(\.(?:gate|up|down)_proj\.weight)")


def tail_of(name: str) -> Tail | None:
    """The part of the adjugate expert that belongs to a tensor of an expert."""
    found = _EXPERT.fullmatch(name)
    if found is None:
        return None
    adjugate = f"{found[1]}chunk_experts.{int(found[2]) // _GROUP}{found[3]}"
    down = found[3].startswith(".down")
    return Tail(adjugate, columns=down, factor=_FACTOR if down else 1.0)


def read(reader: ConfigReader) -> ModelSpec:
    """The model that a config describes. Raises SourceError."""
    check_own_code(reader, "GroveMoeForCausalLM")
    reader.require("norm_topk_prob", True, default=True)
    spec = qwen3_moe.read(reader)
    for routed in spec.routed.values():
        if routed.num_experts % _GROUP:
            raise unsupported("num_experts", routed.num_experts, f"groups of {_GROUP} experts")
        if routed.intermediate_size + _WIDTH > LARGEST_WIDTH:
            raise unsupported("moe_intermediate_size", routed.intermediate_size, f"widths up to {LARGEST_WIDTH}")
    made = {layer: LayerSpec(tuple(map(_with_adjugates, layer.blocks))) for layer in dict.fromkeys(spec.layers)}
    return replace(spec, family="grove_moe", layers=tuple(made[layer] for layer in spec.layers))


def _with_adjugates(block: Block) -> Block:
    body = block.body
    if not isinstance(body, Moe):
        return block
    router = replace(body.router, normalise=True)
    return replace(block, body=replace(body, intermediate_size=body.intermediate_size + _WIDTH, router=router))
