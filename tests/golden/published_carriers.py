"""edgemoe's own carriers, computed in float64 from the papers of their FFNs; `published_code.py` has what is common.

Fast feedforward networks: Belcak and Wattenhofer 2023, arXiv 2308.14711, and 2311.10770 for trees whose nodes add to
the output. Hierarchical mixtures of experts: Shazeer et al. 2017, arXiv 1701.06538, appendix B.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tests.golden.published_code import Array
from tests.golden.published_more import SmallThinker, attention_shapes


class Carrier(SmallThinker):
    """The body of Llama around an FFN that the config names."""

    @classmethod
    def shapes(cls, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        shapes = attention_shapes(config)
        for layer in range(config["num_hidden_layers"]):
            own = _tree_shapes(config) if config["ffn"] == "fff" else _moe_shapes(config)
            shapes |= {f"model.layers.{layer}.mlp.{name}": shape for name, shape in own.items()}
        return shapes

    def logits(self, ids: Array) -> Array:
        self.margins.clear()
        stream = self._tensor("model.embed_tokens")[ids]
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            stream = stream + self._attention(self._norm(stream, f"{name}.input_layernorm"), name)
            ffn = self._trees if self.config["ffn"] == "fff" else self._experts
            stream = stream + ffn(self._norm(stream, f"{name}.post_attention_layernorm"), f"{name}.mlp")
        head = "model.embed_tokens" if self.config["tie_word_embeddings"] else "lm_head"
        return self._linear(self._norm(stream, "model.norm"), head)

    def _trees(self, rows: Array, name: str) -> Array:
        depth, trees, width = (self.config.get(key, other) for key, other in _DEFAULTS.items())
        tensors = {key: self.tensors[f"{name}.{key}"].astype(np.float64) for key in _tree_shapes(self.config)}
        logits = rows @ tensors["node_weights"].T + tensors["node_biases"][:, 0]
        output, nodes = np.zeros_like(rows), len(logits[0]) // trees
        margins = np.full(len(rows), np.inf)
        for token, row in enumerate(rows):
            for tree in range(trees):
                place = 0
                for _ in range(depth + (not width)):
                    z = logits[token, tree * nodes + place]
                    margins[token] = min(margins[token], abs(z))
                    if not width:
                        output[token] += self._activate(z) * tensors["node_outputs"][tree * nodes + place]
                    place = 2 * place + (2 if z >= 0 else 1)
                if width:
                    leaf = tree * 2**depth + place - nodes
                    hidden = self._activate(row @ tensors["w1s"][leaf] + tensors["b1s"][leaf])
                    output[token] += hidden @ tensors["w2s"][leaf] + tensors.get("b2s", np.zeros(leaf + 1))[leaf]
        self.margins.append(margins)
        return output

    def _experts(self, rows: Array, name: str) -> Array:
        sizes, chosen = _levels(self.config)
        logits = self._linear(rows, f"{name}.gate")
        output = np.zeros_like(rows)
        margins = np.full(len(rows), np.inf)
        for token, row in enumerate(rows):
            paths, start = {0: 1.0}, 0
            for level, (size, top_k) in enumerate(zip(sizes, chosen, strict=True)):
                further = {}
                for group, weight in paths.items():
                    own = logits[token, start + group * size :][:size]
                    order = np.argsort(-own)
                    if top_k < size:
                        margins[token] = min(margins[token], own[order[top_k - 1]] - own[order[top_k]])
                    among = own[order[:top_k]] if self.config["norm_topk_prob"] else own
                    for member in order[:top_k]:
                        share = np.exp(own[member]) / np.exp(among).sum()
                        further[group * size + int(member)] = weight * share
                start += math.prod(sizes[: level + 1])
                paths = further
            for expert, weight in paths.items():
                output[token] += weight * self._ffn(row, f"{name}.experts.{expert}")
        self.margins.append(margins)
        return output

    def _activate(self, x: Array) -> Array:
        positive: Array = np.maximum(x, 0)
        activations = {
            "gelu": x * np.vectorize(math.erfc)(-x / np.sqrt(2)) / 2,
            "relu": positive,
            "silu": x / (1 + np.exp(-x)),
            "gelu_pytorch_tanh": 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        }
        return activations[self.config["hidden_act"]]


def _levels(config: dict[str, Any]) -> tuple[list[int], list[int]]:
    """The sizes of a router's levels, and how many a token chooses at each."""
    return (
        config.get("levels") or [config["num_experts"]],
        config.get("level_top_k") or [config["num_experts_per_tok"]],
    )


def _moe_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a layer's experts."""
    D, width, sizes = config["hidden_size"], config["moe_intermediate_size"], _levels(config)[0]
    numbers = sum(math.prod(sizes[: level + 1]) for level in range(len(sizes)))
    shapes: dict[str, tuple[int, ...]] = {"gate.weight": (numbers, D)}
    for expert in range(math.prod(sizes)):
        for part, shape in {"gate": (width, D), "up": (width, D), "down": (D, width)}.items():
            shapes[f"experts.{expert}.{part}_proj.weight"] = shape
    return shapes


_DEFAULTS = {"depth": 0, "trees": 1, "leaf_width": 0}


def _tree_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a layer's trees."""
    D = config["hidden_size"]
    depth, trees, width = (config.get(key, other) for key, other in _DEFAULTS.items())
    leaves, nodes = trees * 2**depth, trees * (2**depth - 1 if width else 2 ** (depth + 1) - 1)
    shapes: dict[str, tuple[int, ...]] = {"node_weights": (nodes, D), "node_biases": (nodes, 1)}
    if not width:
        return shapes | {"node_outputs": (nodes, D)}
    shapes |= {"w1s": (leaves, D, width), "b1s": (leaves, width), "w2s": (leaves, width, D)}
    return shapes | ({"b2s": (leaves, D)} if config.get("leaf_output_bias") else {})
