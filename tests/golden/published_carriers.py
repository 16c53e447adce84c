"""edgemoe's own carriers, computed in float64 from the papers of their FFNs; `published_code.py` has what is common.

Fast feedforward networks: Belcak and Wattenhofer 2023, arXiv 2308.14711, and 2311.10770 for trees whose nodes add to
the output.
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
            shapes |= {f"model.layers.{layer}.mlp.{name}": shape for name, shape in _tree_shapes(config).items()}
        return shapes

    def logits(self, ids: Array) -> Array:
        self.margins.clear()
        stream = self._tensor("model.embed_tokens")[ids]
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            stream = stream + self._attention(self._norm(stream, f"{name}.input_layernorm"), name)
            stream = stream + self._trees(self._norm(stream, f"{name}.post_attention_layernorm"), f"{name}.mlp")
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

    def _activate(self, x: Array) -> Array:
        positive: Array = np.maximum(x, 0)
        activations = {
            "gelu": x * np.vectorize(math.erfc)(-x / np.sqrt(2)) / 2,
            "relu": positive,
            "silu": x / (1 + np.exp(-x)),
            "gelu_pytorch_tanh": 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        }
        return activations[self.config["hidden_act"]]


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
