"""Maps the tensors of a GGUF to the names of the original checkpoint, and converts the order of their rows.

Letters: `D` model width, `F` expert width, `E` experts.

The rows of query and key have one of two orders. For most architectures that rotate neighbouring pairs (`llama`,
`granitemoe`, `deepseek`), the file has the two elements of a pair side by side; checkpoints, and so edgemoe, have all
first elements of a head before all second ones. Only whole rows are moved: the blocks in them are unchanged. The rows
of `ernie4_5-moe` have the order of the file in checkpoints and in edgemoe too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgemoe.conversion.gguf.family import Family
from edgemoe.conversion.gguf.file import GgufTensor
from edgemoe.conversion.gguf.gated_tensors import TABLE_IN_CHECKPOINT, TABLE_ROWS
from edgemoe.conversion.gguf.gated_tensors import TAPS as TABLE_TAPS
from edgemoe.conversion.gguf.linear import OF_LINEAR, Turns, turns_of
from edgemoe.errors import SourceError
from edgemoe.model.blocks import GatedDelta, NgramTable
from edgemoe.model.spec import ModelSpec

TAKE_ANOTHER = "Use another GGUF of this model, or its original checkpoint."
ROPE_FACTORS = "rope_freqs.weight"
SHORT_FACTORS, LONG_FACTORS = "rope_factors_short.weight", "rope_factors_long.weight"
"""The divisors of frequencies of LongRoPE."""


_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_output.bias": "self_attn.o_proj.bias",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "ffn_gate_inp_shexp.weight": "mlp.shared_expert_gate.weight",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    "layer_output_norm.weight": "final_layernorm.weight",
    "attn_sinks.weight": "self_attn.sinks",
    **{f"nextn.{name}.weight": f"{name}.weight" for name in ("eh_proj", "enorm", "hnorm", "embed_tokens")},
    **{f"nextn.shared_head_{name}.weight": f"shared_head.{name}.weight" for name in ("head", "norm")},
}
_ROTATED_NAMES = {
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_k.bias": "self_attn.k_proj.bias",
}
_OF_HEADS = ("attn_k_b.weight", "attn_v_b.weight")
"""A matrix for each head, which checkpoints would have one below the other; `attn_kv_b` beside them repeats both."""
_WHOLE_EXPANSION = "attn_kv_b.weight"
OWN_TAPS = frozenset(f"ssm_conv1d_{letter}.weight" for letter in "qkv") | {TABLE_TAPS}
"""Taps of queries, keys and values that have convolutions of their own, and those of a table."""
_LAYER = re.compile(r"blk\.(\d{1,6})\.(.+)")
_MATRIX = re.compile(r"ffn_(gate|up|down)(_exps|_shexp|\.\d{1,6})\.(weight|bias)")
MERGED_GATE_UP = "ffn_gate_up_exps.weight"
"""Gate and up of all experts of a layer in one tensor; within each expert the rows of gate come first.

Source: llama.cpp splits the product in this order (src/llama-graph.cpp, `build_moe_ffn`); its converter writes it.
"""
_MAX_EXPERTS = 1 << 16


@dataclass(frozen=True)
class TensorView:
    """A tensor of the checkpoint, composed of rows of tensors of the file. A vector may be one row of a matrix there.

    `parts` have the same shape and are concatenated along the rows (within each expert if they have three
    dimensions). With `expert`, the view is that one expert of its stacked parts. With `head_dim`, the rows of each
    head are reordered from interleaved pairs to two halves. With `first_row`, it begins at that row of the expert. With
    `elements`, its elements in order are read as those of a vector. With `turns`, heads of values are brought together.
    """

    parts: tuple[GgufTensor, ...]
    shape: tuple[int, ...]
    expert: int | None = None
    head_dim: int | None = None
    first_row: int = 0
    elements: bool = False
    turns: Turns | None = None


def checkpoint_tensors(
    family: Family, spec: ModelSpec, head_dim: int, tensors: Mapping[str, GgufTensor]
) -> dict[str, TensorView]:
    """Every tensor of the file by its checkpoint name; an unknown tensor keeps its GGUF name.

    Raises SourceError if two tensors of the file map to the same tensor of the checkpoint.
    """
    views: dict[str, TensorView] = {}
    bodies = (block.body for layer in spec.layers for block in layer.blocks if family.heads_in_turn)
    mixer = next((body for body in bodies if isinstance(body, GatedDelta) and not body.in_turn), None)
    table = next((n for n, layer in enumerate(spec.layers) if isinstance(layer.blocks[0].body, NgramTable)), None)
    turns = {OF_LINEAR[name]: order for name, order in turns_of(mixer).items()} if mixer else {}
    for name, tensor in tensors.items():
        found = _views(family, head_dim, tensor, tensors)
        if name == TABLE_ROWS and table is not None:
            found = {TABLE_IN_CHECKPOINT.format(layer=table): TensorView((tensor,), tensor.shape)}
        own = turns.get(name.partition(".")[2].partition(".")[2])
        if own is not None:
            found = {checkpoint_name: replace(view, turns=own) for checkpoint_name, view in found.items()}
        twice = views.keys() & found.keys()
        if twice:
            other = views[min(twice)].parts[0].name
            raise SourceError(
                f"{tensor.path}: expected one tensor for {min(twice)}, found two: {other} and {name}.", TAKE_ANOTHER
            )
        views |= found
    return views


def _views(
    family: Family, head_dim: int, tensor: GgufTensor, tensors: Mapping[str, GgufTensor]
) -> dict[str, TensorView]:
    """The views on one tensor of the file, by their names in the checkpoint."""
    name = tensor.name
    layer = _LAYER.fullmatch(name)
    if not layer:
        top_names = {**_TOP_NAMES, **family.own_names}
        factors = (ROPE_FACTORS, SHORT_FACTORS, LONG_FACTORS) if family.longrope else (ROPE_FACTORS,)
        return {} if name in factors else {top_names.get(name, name): TensorView((tensor,), tensor.shape)}
    prefix, own = family.layers.format(layer=layer[1]), layer[2]
    if (matrix := _MATRIX.fullmatch(own)) and family.matrices:
        if matrix[3] == "bias":
            return _bias_views(family, prefix, tensor, matrix[1], matrix[2])
        return _expert_views(family, prefix, tensor, matrix[1], matrix[2], tensors)
    if own == MERGED_GATE_UP and family.matrices:
        return _merged_views(family, prefix, tensor)
    if own in _ROTATED_NAMES:
        rotated = head_dim if family.interleaved_rotation else None
        own_name = family.own_names.get(own, _ROTATED_NAMES[own])
        return {prefix + own_name: _checked_heads(TensorView((tensor,), tensor.shape, head_dim=rotated))}
    if own in ("ffn_gate_inp.weight", "ffn_gate_inp.bias") and family.router:
        router = family.router if own.endswith("weight") else _bias_of(family.router)
        return {prefix + router: TensorView((tensor,), tensor.shape)}
    if own == family.taps[0] and len(tensor.shape) == 2:
        shape = tensor.shape[0], 1, tensor.shape[1]
        return {prefix + family.taps[1]: TensorView((tensor,), shape, elements=True)}
    if own in OWN_TAPS and own in family.own_names:  # perhaps of four dimensions, of which two are one
        shape = math.prod(tensor.shape[:-1]), 1, tensor.shape[-1]
        flat = replace(tensor, shape=(shape[0], shape[2]))
        return {prefix + family.own_names[own]: TensorView((flat,), shape, elements=True)}
    if own in family.flat:
        return {
            prefix + family.own_names[own]: TensorView(
                (tensor,), (math.prod(tensor.shape),), elements=len(tensor.shape) > 1
            )
        }
    if own in _OF_HEADS and len(tensor.shape) == 3:
        tensor = replace(tensor, shape=(tensor.shape[0] * tensor.shape[1], tensor.shape[2]))
    if own == _WHOLE_EXPANSION and name.replace(own, _OF_HEADS[0]) in tensors:
        return {}
    if own in family.own_names:
        return {prefix + family.own_names[own]: TensorView((tensor,), tensor.shape)}
    if own in _LAYER_NAMES:
        # The file has the shared expert's gate as a vector, checkpoints as a matrix of one row.
        one_row = own == "ffn_gate_inp_shexp.weight" and len(tensor.shape) == 1
        return {prefix + _LAYER_NAMES[own]: TensorView((tensor,), (1, *tensor.shape) if one_row else tensor.shape)}
    return {name: TensorView((tensor,), tensor.shape)}


def _checked_heads(view: TensorView) -> TensorView:
    rows = view.shape[0]
    if view.head_dim and (rows % view.head_dim or view.head_dim % 2):
        tensor = view.parts[0]
        raise SourceError(
            f"{tensor.path}: {tensor.name}: expected whole heads of {view.head_dim} rows, found {rows} rows.",
            TAKE_ANOTHER,
        )
    return view


def _expert_views(
    family: Family, prefix: str, tensor: GgufTensor, matrix: str, kind: str, tensors: Mapping[str, GgufTensor]
) -> dict[str, TensorView]:
    """The views on one expert tensor: `kind` is `_exps` (stacked), `_shexp` (shared) or `.3` (expert 3 alone)."""
    template = family.shared if kind == "_shexp" else family.expert
    fused = "gate_up" in family.matrices
    fits = len(tensor.shape) == 3 and tensor.shape[0] <= _MAX_EXPERTS if kind == "_exps" else len(tensor.shape) == 2
    known = fused or matrix in family.matrices
    if not template or not fits or not known or (fused and kind.startswith(".")):
        # Keep the GGUF name, so that resolving the model's tensors reports it as left over.
        return {tensor.name: TensorView((tensor,), tensor.shape)}
    if fused and matrix != "down":
        name = prefix + template.format(matrix=family.matrices["gate_up"])
        return {name: _fused_view(tensor, tensors)} if matrix == "gate" else {}
    name = prefix + template.replace("{matrix}", family.matrices[matrix])
    if "{expert}" in name and kind == "_exps":
        return {
            name.format(expert=number): TensorView((tensor,), tensor.shape[1:], expert=number)
            for number in range(tensor.shape[0])
        }
    return {name.format(expert=kind[1:]): TensorView((tensor,), tensor.shape)}


def _bias_views(family: Family, prefix: str, tensor: GgufTensor, matrix: str, kind: str) -> dict[str, TensorView]:
    """The views on the biases of all experts (E, F), or of one (F), which are named like the matrices."""
    stacked = kind == "_exps"
    fits = len(tensor.shape) == 1 + stacked and (not stacked or tensor.shape[0] <= _MAX_EXPERTS)
    if kind == "_shexp" or not fits or "{expert}" not in family.expert:
        return {tensor.name: TensorView((tensor,), tensor.shape)}  # left over, as any tensor without a place
    name = prefix + _bias_of(family.expert.replace("{matrix}", family.matrices[matrix]))
    if not stacked:
        return {name.format(expert=kind[1:]): TensorView((tensor,), tensor.shape)}
    return {
        name.format(expert=number): TensorView((tensor,), tensor.shape[1:], expert=number)
        for number in range(tensor.shape[0])
    }


def _bias_of(weight: str) -> str:
    """The name of the bias beside a weight."""
    return weight.removesuffix("weight") + "bias"


def _merged_views(family: Family, prefix: str, tensor: GgufTensor) -> dict[str, TensorView]:
    """The views on gate and up of all experts, which share one tensor (E, 2F, D)."""
    if len(tensor.shape) != 3 or tensor.shape[0] > _MAX_EXPERTS or tensor.shape[1] % 2:
        raise SourceError(
            f"{tensor.path}: {tensor.name}: expected experts, each with as many rows for gate as for up, "
            f"found the shape {tensor.shape}.",
            TAKE_ANOTHER,
        )
    experts, rows, columns = tensor.shape
    if "gate_up" in family.matrices:
        return {prefix + family.expert.format(matrix=family.matrices["gate_up"]): TensorView((tensor,), tensor.shape)}
    width = rows // 2
    return {
        prefix + family.expert.format(expert=number, matrix=family.matrices[matrix]): TensorView(
            (tensor,), (width, columns), expert=number, first_row=first_row
        )
        for number in range(experts)
        for matrix, first_row in (("gate", 0), ("up", width))
    }


def _fused_view(gate: GgufTensor, tensors: Mapping[str, GgufTensor]) -> TensorView:
    """Stack gate above up, within each expert if there are several: (E, 2F, D) or (2F, D)."""
    up = tensors.get(gate.name.replace("ffn_gate", "ffn_up"))
    if up is None or up.shape != gate.shape:
        raise SourceError(
            f"{gate.path}: {gate.name}: expected an ffn_up of the shape {gate.shape} beside it, "
            f"found {up.shape if up else 'none'}.",
            TAKE_ANOTHER,
        )
    return TensorView((gate, up), (*gate.shape[:-2], 2 * gate.shape[-2], gate.shape[-1]))


def halves_order(first: int, last: int, head_dim: int) -> npt.NDArray[np.int64]:
    """For the rows `first` to `last` of a checkpoint, the corresponding rows of the file."""
    rows = np.arange(first, last)
    head, within = rows // head_dim, rows % head_dim
    half, pair = within // (head_dim // 2), within % (head_dim // 2)
    return head * head_dim + 2 * pair + half


def pairs_order(first: int, last: int, head_dim: int) -> npt.NDArray[np.int64]:
    """For the rows `first` to `last` of a file, the corresponding rows of the checkpoint."""
    rows = np.arange(first, last)
    head, within = rows // head_dim, rows % head_dim
    return head * head_dim + within % 2 * (head_dim // 2) + within // 2
