"""The attention block with everything that a specification can ask of it, against its formula in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgemoe.engine.decoder import Decoder
from edgemoe.engine.workspace import Workspace
from edgemoe.kernels.blocks import Blocks, pack
from edgemoe.kernels.formats import FORMATS, Matrix
from edgemoe.kernels.reference.backend import ReferenceBackend
from edgemoe.model.blocks import Attention, OutputGate
from edgemoe.model.build import build_graph
from edgemoe.model.rope import RopeSpec, rope_tables
from edgemoe.model.spec import LayerSpec, ModelSpec
from tests.support.pairs import some

D, H, G, W, V, TOKENS = 24, 6, 2, 16, 5, 90
FULL = Attention(H, G, W, 0.3, RopeSpec(1e4, W))
BLOCKS = {
    "full": FULL,
    "window": Attention(H, G, W, 0.3, RopeSpec(1e4, W), window=7),
    "a window of one": Attention(H, G, W, 0.3, RopeSpec(1e4, W), window=1),
    "sinks": Attention(H, G, W, 0.3, RopeSpec(1e4, W), sinks=True),
    "values of another width": Attention(H, G, W, 0.3, RopeSpec(1e4, W), value_dim=40, qkv_bias=True),
    "no rotation": Attention(H, G, W, 0.3, None, window=9),
    "partial rotation": Attention(H, G, W, 0.3, RopeSpec(1e4, 6)),
    "a gate for each head": Attention(H, G, W, 0.3, None, output_gate=OutputGate("head", "softplus"), value_dim=8),
    "a gate for each channel": Attention(H, G, W, 0.3, None, output_gate=OutputGate("channel"), output_scale=0.7),
    "values normed": Attention(H, G, W, 1.0, RopeSpec(1e4, W), value_norm=True, value_dim=8),
    "values from keys": Attention(
        H,
        G,
        W,
        1.0,
        RopeSpec(1e6, W, "proportional", {"factor": 2.0, "pairs": 3}),
        qkv_bias=True,
        qk_norm="head",
        value_norm=True,
        values_from_keys=True,
    ),
    "all": Attention(H, G, W, 0.3, RopeSpec(1e4, 8), True, True, "head", window=70, sinks=True, value_dim=8),
}


def spec_of(block: Attention) -> ModelSpec:
    return ModelSpec("test", V, D, (LayerSpec.of(block),), 1e-5, 128, tied_embeddings=True)


def rms(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return values / np.sqrt(np.square(values).mean(axis=-1, keepdims=True) + 1e-5) * weight


def formula(block: Attention, w: dict[str, np.ndarray], normed: np.ndarray) -> np.ndarray:
    """Compute the body's result from the rows that it reads, token by token and head by head."""

    def projected(name: str, heads: int) -> np.ndarray:
        product = normed @ w[name].T + w.get(f"{name}_bias", 0)
        return product.reshape(len(normed), heads, -1)

    query, key = projected("query", H), projected("key", G)
    value = projected("key" if block.values_from_keys else "value", G)
    if block.value_norm:
        value = rms(value, np.ones(value.shape[2]))
    if block.qk_norm == "head":
        query, key = rms(query, w["query_norm"]), rms(key, w["key_norm"])
    for rows in (query, key) if block.rope else ():
        half = block.rope.rotated // 2
        cosine, sine = (table.astype(float)[:, None] for table in rope_tables(block.rope, len(normed)))
        a, b = rows[..., :half].copy(), rows[..., half : 2 * half].copy()
        rows[..., :half], rows[..., half : 2 * half] = a * cosine - b * sine, b * cosine + a * sine
    attended = np.zeros((len(normed), H, value.shape[2]))
    for t, head in np.ndindex(len(normed), H):
        seen = range(max(0, t + 1 - block.window) if block.window else 0, t + 1)
        weights = np.exp([block.scale * (query[t, head] @ key[j, head // (H // G)]) for j in seen])
        total = weights.sum() + (np.exp(w["sinks"][head]) if block.sinks else 0)
        attended[t, head] = sum(x * value[j, head // (H // G)] for x, j in zip(weights, seen, strict=True)) / total
    if block.output_gate is not None:
        gates = projected("output_gate", H)
        attended *= 1 / (1 + np.exp(-gates)) if block.output_gate.gating == "sigmoid" else np.log1p(np.exp(gates))
    return block.output_scale * (attended.reshape(len(normed), -1) @ w["output"].T) + w.get("output_bias", 0)


@pytest.mark.parametrize("name", some(BLOCKS))
def test_the_block_is_its_formula(name: str) -> None:
    block, random = BLOCKS[name], np.random.default_rng(3)
    spec = spec_of(block)
    assert ModelSpec.from_json(spec.to_json()) == spec
    stream, after, own = run(spec, random)
    expected = stream + formula(block, own, rms(stream, own["attention_norm"]))
    np.testing.assert_allclose(after, expected, rtol=0, atol=2e-5)


def run(spec: ModelSpec, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Run a layer of attention blocks with random weights; the stream before and after it, and the weights."""
    arrays = {key: random.standard_normal(shape).astype(np.float32) / 3 for key, shape in spec.dense_tensors().items()}
    f32 = FORMATS["f32"]
    weights: dict[str, Any] = {
        key: array if array.ndim == 1 else Matrix(pack(Blocks(f32, array)), f32, *array.shape)
        for key, array in arrays.items()
    }
    graph = build_graph(spec)
    space = Workspace(graph, 64, TOKENS, "f32")
    space.pages[0] = [1, 0]
    decoder = Decoder(graph, weights, space, np.zeros((0, 64), np.uint8), [None])
    program = ReferenceBackend().program(decoder.layers[0].attend)
    stream = random.standard_normal((TOKENS, D)).astype(np.float32)
    after = np.empty_like(stream)
    for start, end in ((0, 50), (50, 51), (51, TOKENS)):
        rows = slice(end - start)
        space.residual[rows], space.positions[rows] = stream[start:end], np.arange(start, end)
        program.run(end - start)
        after[start:end] = space.residual[rows]
    own = {key.removeprefix("layers.0."): array.astype(float) for key, array in arrays.items()}
    return stream.astype(float), after, own


def test_older_stores_have_none_of_it() -> None:
    plain = spec_of(FULL).to_json()
    body = plain["layers"][0]["blocks"][0]["body"]
    for name in ("window", "sinks", "value_dim", "output_gate", "output_scale"):
        del body[name]
    assert ModelSpec.from_json(plain) == spec_of(FULL)
    body["window"] = -1
    with pytest.raises(ValueError, match="window is '-1'"):
        ModelSpec.from_json(plain)
