"""More families that transformers has no class for, as `published_code.py` has them, which says what is common.

Read from: `modeling_smallthinker.py` of PowerInfer/SmallThinker-4BA0.6B-Instruct, and ports of `modeling_grove_moe.py`
of inclusionAI/GroveMoE-Inst.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.golden.published_code import Array, Model


class SmallThinker(Model):
    """The router reads what enters a layer; experts read what attention has made of it."""

    @classmethod
    def shapes(cls, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        D, width = config["hidden_size"], config["moe_ffn_hidden_size"]
        shapes = attention_shapes(config)
        for layer in range(config["num_hidden_layers"]):
            name = f"model.layers.{layer}.block_sparse_moe"
            shapes[f"{name}.primary_router.weight"] = (config["moe_num_primary_experts"], D)
            for expert in range(config["moe_num_primary_experts"]):
                for part, shape in {"gate": (width, D), "up": (width, D), "down": (D, width)}.items():
                    shapes[f"{name}.experts.{expert}.{part}.weight"] = shape
        return shapes

    def logits(self, ids: Array) -> Array:
        self.margins.clear()
        config, softmax = self.config, self.config.get("moe_primary_router_apply_softmax")
        stream = self._tensor("model.embed_tokens")[ids]
        for layer in range(config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            logits = self._linear(stream, f"{name}.block_sparse_moe.primary_router")
            window = config["sliding_window_size"] * config["sliding_window_layout"][layer]
            normed = self._norm(stream, f"{name}.input_layernorm")
            stream = stream + self._attention(normed, name, bool(config["rope_layout"][layer]), window)
            normed = self._norm(stream, f"{name}.post_attention_layernorm")
            chosen = self._largest(logits, config["moe_num_active_primary_experts"])
            weights = np.take_along_axis(logits, chosen, axis=1)
            weights = np.exp(weights) if softmax else 1 / (1 + np.exp(-weights))
            weights /= weights.sum(axis=1, keepdims=True)
            outputs = np.zeros_like(normed)
            for token, row in enumerate(normed):
                for expert, weight in zip(chosen[token], weights[token], strict=True):
                    own = f"{name}.block_sparse_moe.experts.{expert}"
                    hidden = np.maximum(self._linear(row, f"{own}.gate"), 0) * self._linear(row, f"{own}.up")
                    outputs[token] += weight * self._linear(hidden, f"{own}.down")
            stream = stream + outputs
        head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
        return self._linear(self._norm(stream, "model.norm"), head)

    def _attention(self, rows: Array, name: str, rotated: bool = True, window: int = 0) -> Array:
        parts = (self._linear(rows, f"{name}.self_attn.{part}_proj") for part in "qkv")
        query, key, value = (part.reshape(len(rows), -1, self._head_dim) for part in parts)
        if f"{name}.self_attn.q_norm.weight" in self.tensors:
            query = self._norm(query, f"{name}.self_attn.q_norm")
            key = self._norm(key, f"{name}.self_attn.k_norm")
        if rotated:
            query, key = self._rotate(query), self._rotate(key)
        return self._linear(self._attend(query, key, value, window=window), f"{name}.self_attn.o_proj")


class GroveMoe(SmallThinker):
    """Each expert and the adjugate expert of its group read the same rows; the latter counts a twentieth."""

    @classmethod
    def shapes(cls, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        D, shapes = config["hidden_size"], attention_shapes(config)
        for layer in range(config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            shapes |= {f"{name}.self_attn.{norm}_norm.weight": (config["head_dim"],) for norm in "qk"}
            if layer in config["mlp_only_layers"]:
                shapes |= _ffn_shapes(f"{name}.mlp", D, config["intermediate_size"])
                continue
            shapes[f"{name}.mlp.gate.weight"] = (config["num_experts"], D)
            for expert in range(config["num_experts"]):
                shapes |= _ffn_shapes(f"{name}.mlp.experts.{expert}", D, config["moe_intermediate_size"])
            for group in range(config["num_experts"] // 2):
                shapes |= _ffn_shapes(f"{name}.mlp.chunk_experts.{group}", D, 128)
        return shapes

    def logits(self, ids: Array) -> Array:
        self.margins.clear()
        stream = self._tensor("model.embed_tokens")[ids]
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            stream = stream + self._attention(self._norm(stream, f"{name}.input_layernorm"), name)
            normed = self._norm(stream, f"{name}.post_attention_layernorm")
            if layer in self.config["mlp_only_layers"]:
                stream = stream + self._ffn(normed, f"{name}.mlp")
                continue
            logits = self._linear(normed, f"{name}.mlp.gate")
            chosen = self._largest(logits, self.config["num_experts_per_tok"])
            weights = np.exp(np.take_along_axis(logits, chosen, axis=1))
            weights /= weights.sum(axis=1, keepdims=True)
            outputs = np.zeros_like(normed)
            for token, row in enumerate(normed):
                for expert, weight in zip(chosen[token], weights[token], strict=True):
                    adjugate = self._ffn(row, f"{name}.mlp.chunk_experts.{expert // 2}")
                    outputs[token] += weight * (self._ffn(row, f"{name}.mlp.experts.{expert}") + 0.05 * adjugate)
            stream = stream + outputs
        head = "model.embed_tokens" if self.config["tie_word_embeddings"] else "lm_head"
        return self._linear(self._norm(stream, "model.norm"), head)


class Grok2(Model):
    """Grok-1's norms and multipliers; experts and a dense FFN side by side; scores that grow after their cap."""

    @classmethod
    def shapes(cls, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        D, width, shapes = config["hidden_size"], config["moe_intermediate_size"], attention_shapes(config)
        for layer in range(config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            shapes = {key: shape for key, shape in shapes.items() if not key.endswith("layernorm.weight")}
            shapes |= {
                f"{name}.{when}_{what}_norm.weight": (D,) for when in ("pre", "post") for what in ("attn", "moe")
            }
            shapes[f"{name}.block_sparse_moe.gate.weight"] = (config["num_local_experts"], D)
            for expert in range(config["num_local_experts"]):
                own = f"{name}.block_sparse_moe.experts.{expert}"
                shapes |= {f"{own}.w{part}.weight": (D, width) if part == 2 else (width, D) for part in (1, 2, 3)}
            if config["residual_moe"]:
                shapes |= _ffn_shapes(f"{name}.mlp", D, config["intermediate_size"])
        return shapes

    def logits(self, ids: Array) -> Array:
        self.margins.clear()
        config = self.config
        stream = self._tensor("model.embed_tokens")[ids] * config["embedding_multiplier_scale"]
        for layer in range(config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            attended = self._attention(self._norm(stream, f"{name}.pre_attn_norm"), f"{name}.self_attn")
            stream = stream + self._norm(attended, f"{name}.post_attn_norm")
            normed = self._norm(stream, f"{name}.pre_moe_norm")
            outputs = self._experts(normed, f"{name}.block_sparse_moe")
            if config["residual_moe"]:
                dense = f"{name}.mlp"
                outputs += self._gelu_ffn(normed, *(f"{dense}.{part}_proj" for part in ("gate", "up", "down")))
                outputs /= np.sqrt(2.0)
            stream = stream + self._norm(outputs, f"{name}.post_moe_norm")
        head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
        logits = self._linear(self._norm(stream, "model.norm"), head) * config["output_multiplier_scale"]
        cap = config["final_logit_softcapping"]
        return logits if cap is None else cap * np.tanh(logits / cap)

    def _attention(self, rows: Array, name: str) -> Array:
        config, parts = self.config, (self._linear(rows, f"{name}.{part}_proj") for part in "qkv")
        query, key, value = (part.reshape(len(rows), -1, self._head_dim) for part in parts)
        shared = query.shape[1] // key.shape[1]
        query, key, value = self._rotate(query), *(np.repeat(p, shared, axis=1) for p in (self._rotate(key), value))
        scores = np.einsum("qhw,khw->hqk", query, key) / np.sqrt(self._head_dim)
        scores = config["attn_logit_softcapping"] * np.tanh(scores / config["attn_logit_softcapping"])
        positions, length = np.arange(len(rows)), config["attn_temperature_len"]
        if length > 0:
            grown = np.log2(np.maximum(positions, 1)) / np.log2(length)
            scores *= np.where(positions > length, grown, 1.0)[:, None]
        shares = np.where(positions[:, None] >= positions, np.exp(scores), 0)
        shares /= shares.sum(axis=2, keepdims=True)
        return self._linear(np.einsum("hqk,khw->qhw", shares, value).reshape(len(rows), -1), f"{name}.o_proj")

    def _experts(self, rows: Array, name: str) -> Array:
        cap, logits = self.config["router_logit_softcapping"], self._linear(rows, f"{name}.gate")
        shares = np.exp(cap * np.tanh(logits / cap))
        shares /= shares.sum(axis=1, keepdims=True)
        chosen, outputs = self._largest(shares, self.config["num_experts_per_tok"]), np.zeros_like(rows)
        for token, row in enumerate(rows):
            for expert in chosen[token]:
                own = f"{name}.experts.{expert}"
                outputs[token] += shares[token, expert] * self._gelu_ffn(row, f"{own}.w1", f"{own}.w3", f"{own}.w2")
        return outputs

    def _gelu_ffn(self, rows: Array, gate_name: str, up: str, down: str) -> Array:
        gate = self._linear(rows, gate_name)
        gelu = gate / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        return self._linear(gelu * self._linear(rows, up), down)


def _ffn_shapes(name: str, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.gate_proj.weight": (width, hidden),
        f"{name}.up_proj.weight": (width, hidden),
        f"{name}.down_proj.weight": (hidden, width),
    }


def attention_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Embedding, head, attention and the norms of layers."""
    D, head_dim = config["hidden_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], D)}
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.{norm}.weight": (D,) for norm in ("input_layernorm", "post_attention_layernorm")}
        for part, shape in {"q": (query, D), "k": (key, D), "v": (key, D), "o": (D, query)}.items():
            shapes[f"{name}.self_attn.{part}_proj.weight"] = shape
    head = {} if config["tie_word_embeddings"] else {"lm_head.weight": (config["vocab_size"], D)}
    return shapes | {"model.norm.weight": (D,)} | head


KINDS: dict[str, type[Model]] = {"git": Grok2, "grove_moe": GroveMoe, "smallthinker": SmallThinker}
"""By `model_type`."""
