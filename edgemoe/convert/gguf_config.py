"""A GGUF's metadata as the `config` of a checkpoint, and its tensors under the names of that checkpoint.

Letters: `D` model width, `F` expert width, `E` experts.

Metadata keys of the model that are not read here, and do not have a value that changes nothing, are refused
by name. The rows of query and key come in one of two orders. Where positions rotate neighbouring pairs
(`llama`, `granitemoe`), the file has the two elements of a pair side by side; checkpoints, and so edgemoe,
have all first elements of a head before all second ones. The blocks of a row are not touched by that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.convert.gguf_file import GgufTensor
from edgemoe.errors import SourceError


@dataclass(frozen=True)
class Family:
    """How one GGUF architecture is written as a checkpoint of ours. `{expert}` and `{matrix}` are filled in."""

    model_type: str
    interleaved_rotation: bool
    router: str = ""
    expert: str = ""
    """Name of one matrix of one expert; without `{expert}`, of all experts, gate and up fused (E, 2F, D)."""
    shared: str = ""
    matrices: Mapping[str, str] = field(default_factory=dict)
    """What this checkpoint calls the matrices of an expert: gate, up, down (or gate_up and down)."""


_SPLIT = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_FUSED = {"gate_up": "input_linear", "down": "output_linear"}
_QWEN_ROUTER, _QWEN_EXPERT = "mlp.gate.weight", "mlp.experts.{expert}.{matrix}.weight"

FAMILIES: dict[str, Family] = {
    "llama": Family("llama", True),
    "llama with experts": Family(
        "mixtral",
        True,
        "block_sparse_moe.gate.weight",
        "block_sparse_moe.experts.{expert}.{matrix}.weight",
        matrices={"gate": "w1", "up": "w3", "down": "w2"},
    ),
    "granitemoe": Family(
        "granitemoe",
        True,
        "block_sparse_moe.router.layer.weight",
        "block_sparse_moe.{matrix}.weight",
        "shared_mlp.{matrix}.weight",
        _FUSED,
    ),
    "olmoe": Family("olmoe", False, _QWEN_ROUTER, _QWEN_EXPERT, matrices=_SPLIT),
    "qwen2moe": Family("qwen2_moe", False, _QWEN_ROUTER, _QWEN_EXPERT, "mlp.shared_expert.{matrix}.weight", _SPLIT),
    "qwen3moe": Family("qwen3_moe", False, _QWEN_ROUTER, _QWEN_EXPERT, matrices=_SPLIT),
}

_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
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
}
_ROTATED_NAMES = {
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_k.bias": "self_attn.k_proj.bias",
}
_LAYER = re.compile(r"blk\.(\d{1,6})\.(.+)")
_MATRIX = re.compile(r"ffn_(gate|up|down)(_exps|_shexp|\.\d{1,6})\.weight")
_ROPE_FACTORS = "rope_freqs.weight"

_NO_EFFECT = frozenset({"vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "expert_shared_count"})
"""Keys that say again what the tensors say, or how the model was trained."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_gating_func": (0, 1),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_weights_scale": (0.0, 1.0),
    "final_logit_softcapping": (0.0,),
    "interleave_moe_layer_step": (0, 1),
    "leading_dense_block_count": (0,),
    "logit_scale": (0.0, 1.0),
    "moe_every_n_layers": (0, 1),
    "nextn_predict_layers": (0,),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "use_parallel_residual": (False,),
}
"""Keys that change what a model computes, each with the values that change nothing."""

_MAX_EXPERTS = 1 << 16

_UNSUPPORTED = "Take another GGUF of this model, or its original checkpoint."


@dataclass(frozen=True)
class TensorView:
    """A tensor of the checkpoint as rows of tensors of the file.

    `parts` have the same shape, and follow each other along the rows (within each expert where there are three
    dimensions). With `expert`, the view is that one expert of its stacked parts. With `head_width`, the rows of
    each head are brought from pairs side by side to halves.
    """

    parts: tuple[GgufTensor, ...]
    shape: tuple[int, ...]
    expert: int | None = None
    head_width: int | None = None


class Metadata:
    """The metadata of one model, and which of its keys have been accounted for. Every method raises SourceError."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self._path, self._values = path, values
        self._seen: set[str] = set()
        architecture = values.get("general.architecture")
        if not isinstance(architecture, str):
            raise SourceError(f"{path}: general.architecture is missing; expected a language model.", _UNSUPPORTED)
        self._prefix = architecture + "."
        self.architecture = architecture
        if architecture == "llama" and self.value("expert_count"):
            self.architecture = "llama with experts"
        if self.architecture not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise SourceError(f"{path}: general.architecture: expected one of {known}, found {architecture}.")

    def value(self, key: str, default: Any = None) -> Any:
        """The value of a key of the model, such as `block_count`. A list of equal numbers, one a layer, is one."""
        self._seen.add(key)
        value = self._values.get(self._prefix + key, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            return value[0]
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number above zero."""
        value = self.value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.wrong(key, "a whole number above 0", value)
        return value

    def wrong(self, key: str, expected: str, found: Any) -> SourceError:
        return SourceError(
            f"{self._path}: {self._prefix}{key}: expected {expected}, found {found!r:.80}.", _UNSUPPORTED
        )

    def finish(self) -> None:
        """Refuse every key of the model that nobody has read, unless its value changes nothing."""
        for name, value in self._values.items():
            key = name.removeprefix(self._prefix)
            if key == name or key in self._seen or key in _NO_EFFECT:
                continue
            if value not in _NEUTRAL.get(key, ()):
                wanted = " or ".join(map(str, _NEUTRAL[key])) if key in _NEUTRAL else "no such key"
                raise self.wrong(key, wanted, value)


def checkpoint_config(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """The config that a checkpoint of this model has, from the metadata and what tensors there are."""
    heads = metadata.count("attention.head_count")
    width = metadata.count("embedding_length")
    head_width = metadata.count("attention.key_length", width // heads or None)
    for key in ("attention.value_length", "rope.dimension_count"):
        if metadata.count(key, head_width) != head_width:
            raise metadata.wrong(key, f"{head_width}, the width of a head", metadata.value(key))
    embedding = tensors.get("token_embd.weight")
    config = {
        "model_type": FAMILIES[metadata.architecture].model_type,
        "vocab_size": embedding.shape[0] if embedding else metadata.count("vocab_size"),
        "hidden_size": width,
        "intermediate_size": metadata.count("feed_forward_length"),
        "num_hidden_layers": metadata.count("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.count("attention.head_count_kv", heads),
        "head_dim": head_width,
        "hidden_act": "silu",
        "max_position_embeddings": metadata.count("context_length"),
        "rms_norm_eps": metadata.value("attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.value("rope.freq_base", 10_000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    scaling = _rope_scaling(metadata, head_width, config["rope_theta"], tensors.get(_ROPE_FACTORS))
    window = metadata.value("attention.sliding_window", 0)
    config |= {"rope_scaling": scaling} if scaling else {}
    config |= {"sliding_window": window} if window else {}
    config |= _family_config(metadata, tensors, head_width)
    metadata.finish()
    return config


def _family_config(metadata: Metadata, tensors: Mapping[str, GgufTensor], head_width: int) -> dict[str, Any]:
    has_bias = "blk.0.attn_q.bias" in tensors
    if metadata.architecture == "llama":
        metadata.value("expert_count")
        metadata.value("expert_used_count")
        return {"attention_bias": has_bias}
    used = {"num_experts_per_tok": metadata.count("expert_used_count")}
    experts = metadata.count("expert_count")
    if metadata.architecture == "llama with experts":
        return used | {"num_local_experts": experts}
    if metadata.architecture == "granitemoe":
        return used | {"num_local_experts": experts} | _granite_config(metadata, tensors, head_width, has_bias)
    renormalises = metadata.architecture == "qwen3moe"
    config: dict[str, Any] = used | {
        "num_experts": experts,
        "norm_topk_prob": bool(metadata.value("expert_weights_norm", renormalises)),
    }
    if metadata.architecture == "olmoe":
        # The width of an expert, which some files name twice.
        metadata.value("expert_feed_forward_length")
        return config | {"attention_bias": has_bias}
    config["moe_intermediate_size"] = _expert_width(metadata, tensors, "expert_feed_forward_length", "exps")
    if metadata.architecture == "qwen2moe":
        shared = _expert_width(metadata, tensors, "expert_shared_feed_forward_length", "shexp")
        return config | {"shared_expert_intermediate_size": shared, "qkv_bias": has_bias}
    return config | {"attention_bias": has_bias}


def _granite_config(
    metadata: Metadata, tensors: Mapping[str, GgufTensor], head_width: int, has_bias: bool
) -> dict[str, Any]:
    if metadata.value("rope.scaling.finetuned", True) is not True:
        raise metadata.wrong("rope.scaling.finetuned", "true (rotary positions)", False)
    config: dict[str, Any] = {
        "attention_bias": has_bias,
        "attention_multiplier": metadata.value("attention.scale") or head_width**-0.5,
        "embedding_multiplier": metadata.value("embedding_scale") or 1.0,
        "residual_multiplier": metadata.value("residual_scale") or 1.0,
        "logits_scaling": metadata.value("logit_scale") or 1.0,
    }
    if "blk.0.ffn_gate_shexp.weight" in tensors:
        width = _expert_width(metadata, tensors, "expert_shared_feed_forward_length", "shexp")
        config |= {"model_type": "granitemoeshared", "shared_intermediate_size": width}
    return config


def _expert_width(metadata: Metadata, tensors: Mapping[str, GgufTensor], key: str, kind: str) -> int:
    """The key, or in files older than the key the rows of a gate."""
    suffix = f".ffn_gate_{kind}.weight"
    gate = next((tensor for name, tensor in tensors.items() if name.endswith(suffix)), None)
    return metadata.count(key, gate.shape[-2] if gate and len(gate.shape) > 1 else None)


def _rope_scaling(metadata: Metadata, head_width: int, theta: Any, factors: GgufTensor | None) -> dict[str, Any] | None:
    kind = metadata.value("rope.scaling.type", "none")
    factor = metadata.value("rope.scaling.factor")
    original = metadata.value("rope.scaling.original_context_length")
    if kind == "linear" and not factors:
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and not factors:
        betas = {
            name: value
            for name in ("beta_fast", "beta_slow")
            if (value := metadata.value(f"rope.scaling.yarn_{name}")) is not None
        }
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **betas}
    if kind != "none":
        raise metadata.wrong("rope.scaling.type", "none, linear or yarn", kind)
    if factors is None:
        return None
    return _llama3_scaling(metadata, head_width, theta, factors)


def _llama3_scaling(metadata: Metadata, head_width: int, theta: Any, factors: GgufTensor) -> dict[str, Any] | None:
    """The `llama3` rule from its effect, the only form in which the file has it.

    The file divides each frequency by a factor: 1 for short waves, `factor` for long ones, between them a blend.
    The bounds of the blend are those of every published model (1, 4 and 8192); any others are refused.
    """
    if factors.shape != (head_width // 2,) or factors.type_name != "F32":
        raise SourceError(
            f"{factors.path}: {_ROPE_FACTORS}: expected {head_width // 2} F32 values, "
            f"found {factors.shape} of {factors.type_name}.",
            _UNSUPPORTED,
        )
    found = factors.read(0, 1).view("<f4")[0].astype(np.float64)
    factor = float(found.max())
    if factor == 1.0 and found.min() == 1.0:
        return None
    low, high, original = 1.0, 4.0, 8192
    if not isinstance(theta, float):
        raise metadata.wrong("rope.freq_base", "a number", theta)
    with np.errstate(all="ignore"):
        wavelengths = 2 * np.pi * theta ** (np.arange(0, head_width, 2) / head_width)
        blend = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
        expected = 1 / ((1 - blend) / factor + blend)
    if not np.allclose(found, expected, rtol=1e-4):
        raise SourceError(
            f"{factors.path}: {_ROPE_FACTORS}: expected the factors of the llama3 rule (1, 4, 8192), found others.",
            _UNSUPPORTED,
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def checkpoint_tensors(metadata: Metadata, tensors: Mapping[str, GgufTensor]) -> dict[str, TensorView]:
    """Every tensor of the file under a name of the checkpoint; one that we do not know keeps its own name."""
    family = FAMILIES[metadata.architecture]
    heads = metadata.count("attention.head_count")
    head_width = metadata.count("attention.key_length", metadata.count("embedding_length") // heads or None)
    views: dict[str, TensorView] = {}
    for name, tensor in tensors.items():
        layer = _LAYER.fullmatch(name)
        if layer and (matrix := _MATRIX.fullmatch(layer[2])) and family.matrices:
            views |= _expert_views(family, f"model.layers.{layer[1]}.", tensor, matrix[1], matrix[2], tensors)
        elif layer and layer[2] in _ROTATED_NAMES:
            rotated = head_width if family.interleaved_rotation else None
            view = TensorView((tensor,), tensor.shape, head_width=rotated)
            views[f"model.layers.{layer[1]}.{_ROTATED_NAMES[layer[2]]}"] = _checked_heads(view)
        elif layer and layer[2] == "ffn_gate_inp.weight" and family.router:
            views[f"model.layers.{layer[1]}.{family.router}"] = TensorView((tensor,), tensor.shape)
        elif layer and layer[2] in _LAYER_NAMES:
            # The file has the shared expert's gate as a vector, checkpoints as a matrix of one row.
            one_row = layer[2] == "ffn_gate_inp_shexp.weight" and len(tensor.shape) == 1
            shape = (1, *tensor.shape) if one_row else tensor.shape
            views[f"model.layers.{layer[1]}.{_LAYER_NAMES[layer[2]]}"] = TensorView((tensor,), shape)
        elif name != _ROPE_FACTORS:
            views[_TOP_NAMES.get(name, name)] = TensorView((tensor,), tensor.shape)
    return views


def _checked_heads(view: TensorView) -> TensorView:
    rows = view.shape[0]
    if view.head_width and (rows % view.head_width or view.head_width % 2):
        tensor = view.parts[0]
        raise SourceError(
            f"{tensor.path}: {tensor.name}: expected whole heads of {view.head_width} rows, found {rows} rows.",
            _UNSUPPORTED,
        )
    return view


def _expert_views(
    family: Family, prefix: str, tensor: GgufTensor, matrix: str, kind: str, tensors: Mapping[str, GgufTensor]
) -> dict[str, TensorView]:
    """The views on one expert tensor: `kind` is `_exps` (stacked), `_shexp` (shared) or `.3` (expert 3 alone)."""
    template = family.shared if kind == "_shexp" else family.expert
    fused = "gate_up" in family.matrices
    fits = len(tensor.shape) == 3 and tensor.shape[0] <= _MAX_EXPERTS if kind == "_exps" else len(tensor.shape) == 2
    if not template or not fits or (fused and kind.startswith(".")):
        # Under its own name, so that whoever looks for the tensors of the model says that it is left over.
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


def _fused_view(gate: GgufTensor, tensors: Mapping[str, GgufTensor]) -> TensorView:
    """Gate over up, in each expert where there are several: (E, 2F, D) or (2F, D)."""
    up = tensors.get(gate.name.replace("ffn_gate", "ffn_up"))
    if up is None or up.shape != gate.shape:
        raise SourceError(
            f"{gate.path}: {gate.name}: expected an ffn_up of the shape {gate.shape} beside it, "
            f"found {up.shape if up else 'none'}.",
            _UNSUPPORTED,
        )
    return TensorView((gate, up), (*gate.shape[:-2], 2 * gate.shape[-2], gate.shape[-1]))


def halves_order(first: int, last: int, head_width: int) -> npt.NDArray[np.int64]:
    """For the rows `first` to `last` of a checkpoint, the row of the file that each of them is."""
    rows = np.arange(first, last)
    head, within = rows // head_width, rows % head_width
    half, pair = within // (head_width // 2), within % (head_width // 2)
    return head * head_width + 2 * pair + half
