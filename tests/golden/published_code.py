"""Random models of families that transformers has no class for, computed in float64 as their published code does.

Read from: `modeling_deepseek.py` of deepseek-ai/deepseek-moe-16b-base, `modeling_bailing_moe_v2.py` of
inclusionAI/Ling-mini-2.0, `modeling_arctic.py` of Snowflake/snowflake-arctic-instruct, and `model.py` of xai-org/grok-1
(its names are those of hpcai-tech/grok-1). Names of tensors and keys of config.json are those of these checkpoints.
More families are in `published_more.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgemoe.store.headers import build_header
from tests.golden.cases import Case

FAMILIES = {
    "arctic": "ArcticForCausalLM",
    "bailing_moe": "BailingMoeV2ForCausalLM",
    "bailing_moe_v2": "BailingMoeV2ForCausalLM",
    "deepseek": "DeepseekForCausalLM",
    "edgemoe_carrier": "EdgemoeCarrierForCausalLM",
    "git": "Grok1ForCausalLM",
    "grok-1": "Grok1ModelForCausalLM",
    "grove_moe": "GroveMoeForCausalLM",
    "smallthinker": "SmallThinkerForCausalLM",
}
"""The class of each family's published code, by `model_type`."""
_ROUTERS = ("mlp.gate.weight", "moe.gate.weight", "block.gate.weight", "primary_router.weight")
CLEAR_ROUTING = 2e-5
"""As in `oracle.py`."""

Array = np.ndarray[Any, Any]


@dataclass
class Model:
    """A checkpoint's config and tensors, float32 values that bfloat16 holds."""

    config: dict[str, Any]
    tensors: dict[str, Array]
    margins: list[Array] = field(default_factory=list)
    """How clear each choice of a run was, of experts or of groups, `(T,)` each."""

    @classmethod
    def shapes(cls, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """The tensors of a checkpoint, by the names of its published code."""
        return _shapes(config)

    def logits(self, ids: Array) -> Array:
        """Logits after each token, `(T, V)`."""
        self.margins.clear()
        if self.config["model_type"] == "arctic":
            return self._arctic_logits(ids)
        if self.config["model_type"] == "grok-1":
            return self._grok_logits(ids)
        deepseek, config = self.config["model_type"] == "deepseek", self.config
        stream = self._tensor("model.embed_tokens" if deepseek else "model.word_embeddings")[ids]
        for layer in range(config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            normed = self._norm(stream, f"{name}.input_layernorm")
            stream = stream + (self._deepseek_attention if deepseek else self._ling_attention)(normed, name)
            normed = self._norm(stream, f"{name}.post_attention_layernorm")
            if f"{name}.mlp.gate.weight" not in self.tensors:
                stream = stream + self._ffn(normed, f"{name}.mlp")
                continue
            chosen, weights = (self._deepseek_gate if deepseek else self._ling_gate)(normed, f"{name}.mlp.gate")
            outputs = np.zeros_like(normed)
            for token, row in enumerate(normed):
                for expert, weight in zip(chosen[token], weights[token], strict=True):
                    outputs[token] += weight * self._ffn(row, f"{name}.mlp.experts.{expert}")
            stream = stream + outputs + self._ffn(normed, f"{name}.mlp.shared_experts")
        return self._linear(self._norm(stream, "model.norm"), "lm_head")

    def _arctic_logits(self, ids: Array) -> Array:
        stream = self._tensor("model.embed_tokens")[ids]
        for layer in range(self.config["num_hidden_layers"]):
            name, begin = f"model.layers.{layer}", stream
            stream = stream + self._deepseek_attention(self._norm(stream, f"{name}.input_layernorm"), name)
            experts, read = f"{name}.block_sparse_moe", stream
            if f"{name}.residual_layernorm.weight" in self.tensors:
                stream = stream + self._w123(self._norm(stream, f"{name}.residual_layernorm"), f"{name}.residual_mlp")
                read = begin
            normed = self._norm(read, f"{name}.post_attention_layernorm")
            if f"{experts}.gate.weight" not in self.tensors:
                stream = stream + self._w123(normed, f"{experts}.mlp")
                continue
            logits = self._linear(normed, f"{experts}.gate")
            chosen = self._largest(logits, self.config["num_experts_per_tok"])
            weights = np.exp(np.take_along_axis(logits, chosen, axis=1))
            weights /= weights.sum(axis=1, keepdims=True)
            outputs = np.zeros_like(normed)
            for token, row in enumerate(normed):
                for expert, weight in zip(chosen[token], weights[token], strict=True):
                    outputs[token] += weight * self._w123(row, f"{experts}.experts.{expert}")
            stream = stream + outputs
        return self._linear(self._norm(stream, "model.norm"), "lm_head")

    def _grok_logits(self, ids: Array) -> Array:
        config = self.config
        stream = self._tensor("model.embed_tokens")[ids] * config["embedding_multiplier_scale"]
        for layer in range(config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            normed = self._norm(stream, f"{name}.pre_attn_norm", "scale")
            parts = (self._linear(normed, f"{name}.attn.{part}_proj") for part in "qkv")
            query, key, value = (part.reshape(len(normed), -1, self._head_dim) for part in parts)
            limits = config["attn_output_multiplier"], config["max_attn_value"]
            attended = self._attend(self._rotate(query), self._rotate(key), value, *limits)
            attended = self._linear(attended, f"{name}.attn.o_proj")
            stream = stream + self._norm(attended, f"{name}.post_attn_norm", "scale")
            normed = self._norm(stream, f"{name}.pre_moe_norm", "scale")
            chosen, weights = self._deepseek_gate(normed, f"{name}.moe_block.gate")
            outputs = np.zeros_like(normed)
            for token, row in enumerate(normed):
                for expert, weight in zip(chosen[token], weights[token], strict=True):
                    own = f"{name}.moe_block.experts.{expert}"
                    gate = self._linear(row, f"{own}.linear")
                    gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
                    outputs[token] += weight * self._linear(
                        gelu * self._linear(row, f"{own}.linear_v"), f"{own}.linear_1"
                    )
            stream = stream + self._norm(outputs, f"{name}.post_moe_norm", "scale")
        head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
        return self._linear(self._norm(stream, "model.norm", "scale"), head) * config["output_multiplier_scale"]

    def _w123(self, rows: Array, name: str) -> Array:
        gate = self._linear(rows, f"{name}.w1")
        return self._linear(gate / (1 + np.exp(-gate)) * self._linear(rows, f"{name}.w3"), f"{name}.w2")

    def _tensor(self, name: str, kind: str = "weight") -> Array:
        return self.tensors[f"{name}.{kind}"].astype(np.float64)

    def _linear(self, rows: Array, name: str) -> Array:
        product: Array = rows @ self._tensor(name).T
        return product + self._tensor(name, "bias") if f"{name}.bias" in self.tensors else product

    def _norm(self, rows: Array, name: str, kind: str = "weight") -> Array:
        square = np.square(rows).mean(axis=-1, keepdims=True) + self.config["rms_norm_eps"]
        normed: Array = rows / np.sqrt(square) * self._tensor(name, kind)
        return normed

    def _ffn(self, rows: Array, name: str) -> Array:
        gate = self._linear(rows, f"{name}.gate_proj")
        return self._linear(gate / (1 + np.exp(-gate)) * self._linear(rows, f"{name}.up_proj"), f"{name}.down_proj")

    def _deepseek_attention(self, rows: Array, name: str) -> Array:
        parts = (self._linear(rows, f"{name}.self_attn.{part}_proj") for part in "qkv")
        query, key, value = (part.reshape(len(rows), -1, self._head_dim) for part in parts)
        return self._linear(self._attend(self._rotate(query), self._rotate(key), value), f"{name}.self_attn.o_proj")

    def _ling_attention(self, rows: Array, name: str) -> Array:
        heads, kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        whole = self._linear(rows, f"{name}.attention.query_key_value").reshape(len(rows), -1, self._head_dim)
        query, key, value = np.split(whole, [heads, heads + kv_heads], axis=1)
        query = self._rotate(self._norm(query, f"{name}.attention.query_layernorm"))
        key = self._rotate(self._norm(key, f"{name}.attention.key_layernorm"))
        return self._linear(self._attend(query, key, value), f"{name}.attention.dense")

    @property
    def _head_dim(self) -> int:
        return int(self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"])

    def _rotate(self, heads: Array) -> Array:
        rotated = int(self._head_dim * self.config.get("partial_rotary_factor", 1.0))
        frequencies = self.config.get("rope_theta", 1e4) ** -(np.arange(0, rotated, 2) / rotated)
        angles = (np.arange(len(heads))[:, None] * frequencies)[:, None]
        first, second, rest = np.split(heads, [rotated // 2, rotated], axis=2)
        cosine, sine = np.cos(angles), np.sin(angles)
        return np.concatenate([first * cosine - second * sine, second * cosine + first * sine, rest], axis=2)

    def _attend(
        self, query: Array, key: Array, value: Array, scale: float | None = None, cap: float = 0.0, window: int = 0
    ) -> Array:
        shared = query.shape[1] // key.shape[1]
        key, value = np.repeat(key, shared, axis=1), np.repeat(value, shared, axis=1)
        scores = np.einsum("qhw,khw->hqk", query, key) * (self._head_dim**-0.5 if scale is None else scale)
        scores = cap * np.tanh(scores / cap) if cap else scores
        seen = np.tri(len(query), dtype=bool) & ~np.tri(len(query), k=-(window or len(query)), dtype=bool)
        scores = np.where(seen, scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=2, keepdims=True))
        shares /= shares.sum(axis=2, keepdims=True)
        return np.einsum("hqk,khw->qhw", shares, value).reshape(len(query), -1)

    def _deepseek_gate(self, rows: Array, name: str) -> tuple[Array, Array]:
        logits = self._linear(rows, name)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        top_k = self.config["num_experts_per_tok"]
        chosen = self._largest(shares, top_k)
        weights = np.take_along_axis(shares, chosen, axis=1)
        if top_k > 1 and self.config.get("norm_topk_prob"):
            weights /= weights.sum(axis=1, keepdims=True) + 1e-20
        return chosen, weights

    def _ling_gate(self, rows: Array, name: str) -> tuple[Array, Array]:
        shares = 1 / (1 + np.exp(-(rows @ self._tensor(name).T)))
        choice = shares + self._tensor(name, "expert_bias")
        groups, kept, top_k = (self.config[key] for key in ("n_group", "topk_group", "num_experts_per_tok"))
        grouped = choice.reshape(len(rows), groups, -1)
        best = self._largest(np.sort(grouped, axis=2)[:, :, -2:].sum(axis=2), kept)
        dropped = np.ones(grouped.shape, bool)
        np.put_along_axis(dropped, best[:, :, None], False, axis=1)
        chosen = self._largest(np.where(dropped, -np.inf, grouped).reshape(choice.shape), top_k)
        weights = np.take_along_axis(shares, chosen, axis=1)
        if top_k > 1:
            weights = weights / (weights.sum(axis=1, keepdims=True) + 1e-20)
        return chosen, weights * self.config["routed_scaling_factor"]

    def _largest(self, scores: Array, count: int) -> Array:
        """The columns of the `count` largest scores of each row, whose margin is noted."""
        order = np.argsort(-scores, axis=1, kind="stable")
        if count < scores.shape[1]:
            last, next_one = (np.take_along_axis(scores, order[:, n : n + 1], axis=1)[:, 0] for n in (count - 1, count))
            self.margins.append(last - next_one)
        return order[:, :count]


def make_model(case: Case, kind: type[Model] = Model) -> Model:
    """A model of random weights, every constant of which acts."""
    config = {"model_type": case.model_type, "architectures": [FAMILIES[case.model_type]], **case.config}
    random = np.random.default_rng(case.seed)
    tensors = {}
    for name, shape in kind.shapes(config).items():
        values = random.standard_normal(shape)
        if "norm" in name:
            values = 1 + 0.2 * values
        elif name.endswith("bias"):
            values *= 0.3
        elif "embed" in name:
            values *= 0.25 if config.get("tie_word_embeddings") else 1.0  # as in `oracle.py`
        else:
            values *= (2.0 if name.endswith(_ROUTERS) else 1.0) / np.sqrt(shape[-1])
        tensors[name] = (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    return kind(config, tensors)


def run(model: Model, ids: Array) -> tuple[Array, Array]:
    """Logits `(T, V)`, and for each token whether its routing is clear in every layer, `(T,)`."""
    logits = model.logits(ids).astype(np.float32)
    clear = np.min(model.margins, axis=0) > CLEAR_ROUTING if model.margins else np.ones(len(ids), bool)
    return logits, np.logical_and.accumulate(clear)


def save(model: Model, folder: Path) -> None:
    """Write the checkpoint, weights in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config, indent=2, sort_keys=True) + "\n")
    with (folder / "model.safetensors").open("wb") as file:
        sizes = ((name, "BF16", values.shape, 2 * values.size) for name, values in model.tensors.items())
        file.write(build_header(sizes))
        for values in model.tensors.values():
            file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())


def _arctic_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    D, width, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], D)}

    def add_ffn(name: str, intermediate: int) -> None:
        for part, shape in (("w1", (intermediate, D)), ("w3", (intermediate, D)), ("w2", (D, intermediate))):
            shapes[f"{name}.{part}.weight"] = shape

    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.{norm}.weight": (D,) for norm in ("input_layernorm", "post_attention_layernorm")}
        for part, shape in {"q": (query, D), "k": (key, D), "v": (key, D), "o": (D, query)}.items():
            shapes[f"{name}.self_attn.{part}_proj.weight"] = shape
        if (layer + 1) % config["moe_layer_frequency"]:
            add_ffn(f"{name}.block_sparse_moe.mlp", width)
            continue
        shapes[f"{name}.block_sparse_moe.gate.weight"] = (config["num_local_experts"], D)
        for expert in range(config["num_local_experts"]):
            add_ffn(f"{name}.block_sparse_moe.experts.{expert}", width)
        if config["parallel_attn_mlp_res"]:
            shapes[f"{name}.residual_layernorm.weight"] = (D,)
            add_ffn(f"{name}.residual_mlp", D)
    return shapes | {"model.norm.weight": (D,), "lm_head.weight": (config["vocab_size"], D)}


def _grok_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    D, width = config["hidden_size"], config["intermediate_size"]
    key = config["num_key_value_heads"] * D // config["num_attention_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], D)}
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        for norm in ("pre_attn", "post_attn", "pre_moe", "post_moe"):
            shapes[f"{name}.{norm}_norm.scale"] = (D,)
        for part, rows in {"q": D, "k": key, "v": key, "o": D}.items():
            shapes[f"{name}.attn.{part}_proj.weight"] = (rows, D)
        shapes[f"{name}.moe_block.gate.weight"] = (config["num_experts"], D)
        for expert in range(config["num_experts"]):
            for part, shape in {"linear": (width, D), "linear_v": (width, D), "linear_1": (D, width)}.items():
                shapes[f"{name}.moe_block.experts.{expert}.{part}.weight"] = shape
    head = {} if config["tie_word_embeddings"] else {"lm_head.weight": (config["vocab_size"], D)}
    return shapes | {"model.norm.scale": (D,)} | head


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint, by the names of its published code."""
    if config["model_type"] == "arctic":
        return _arctic_shapes(config)
    if config["model_type"] == "grok-1":
        return _grok_shapes(config)
    deepseek = config["model_type"] == "deepseek"
    experts, shared = ("n_routed_experts", "n_shared_experts") if deepseek else ("num_experts", "num_shared_experts")
    D, width, heads = config["hidden_size"], config["moe_intermediate_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or D // heads
    query, key = heads * head_dim, config["num_key_value_heads"] * head_dim
    embedding = "embed_tokens" if deepseek else "word_embeddings"
    shapes: dict[str, tuple[int, ...]] = {f"model.{embedding}.weight": (config["vocab_size"], D)}

    def add_ffn(name: str, intermediate: int) -> None:
        for part in ("gate_proj", "up_proj"):
            shapes[f"{name}.{part}.weight"] = (intermediate, D)
        shapes[f"{name}.down_proj.weight"] = (D, intermediate)

    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.{norm}.weight": (D,) for norm in ("input_layernorm", "post_attention_layernorm")}
        if deepseek:
            matrices = {"q": (query, D), "k": (key, D), "v": (key, D), "o": (D, query)}
            for part, shape in matrices.items():
                shapes[f"{name}.self_attn.{part}_proj.weight"] = shape
                if config["attention_bias"]:
                    shapes[f"{name}.self_attn.{part}_proj.bias"] = shape[:1]
        else:
            shapes[f"{name}.attention.query_key_value.weight"] = (query + 2 * key, D)
            if config["use_qkv_bias"]:
                shapes[f"{name}.attention.query_key_value.bias"] = (query + 2 * key,)
            shapes[f"{name}.attention.dense.weight"] = (D, query)
            shapes |= {f"{name}.attention.{part}_layernorm.weight": (head_dim,) for part in ("query", "key")}
        if layer < config["first_k_dense_replace"] or layer % config.get("moe_layer_freq", 1):
            add_ffn(f"{name}.mlp", config["intermediate_size"])
            continue
        shapes[f"{name}.mlp.gate.weight"] = (config[experts], D)
        if not deepseek:
            shapes[f"{name}.mlp.gate.expert_bias"] = (config[experts],)
        for expert in range(config[experts]):
            add_ffn(f"{name}.mlp.experts.{expert}", width)
        add_ffn(f"{name}.mlp.shared_experts", width * config[shared])
    return shapes | {"model.norm.weight": (D,), "lm_head.weight": (config["vocab_size"], D)}
