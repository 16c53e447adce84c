"""The operations of PEER against the package peer-pytorch, random weights and sizes. Needs torch and that package."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.kernels import neuron_operations as no
from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Backend
from edgemoe.kernels.blocks import Blocks, pack
from edgemoe.kernels.formats import FORMATS, Matrix
from edgemoe.kernels.pages import PAGE_BYTES
from tests.kernels.builders import aligned, aligned_copy, few_examples, seeds

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-5


def exact_matrix(values: op.Floats) -> Matrix:
    """A matrix of these weights in float32."""
    blocks = Blocks(FORMATS["f32"], np.ascontiguousarray(values))
    return Matrix(aligned_copy(pack(blocks)), blocks.format, *values.shape)


@few_examples
@given(
    seeds,
    st.integers(1, 9),
    st.integers(1, 65),
    st.integers(1, 5),
    st.integers(1, 20),
    st.integers(1, 16),
    st.integers(1, 33),
    st.booleans(),
)
def test_peer_is_what_the_package_computes(
    backend: Backend,
    seed: int,
    tokens: int,
    half_width: int,
    heads: int,
    keys: int,
    count: int,
    key_dim: int,
    competing: bool,
) -> None:
    import torch
    from PEER_pytorch import PEER

    random, width, top_k = np.random.default_rng(seed), 2 * half_width, min(count, keys)
    torch.manual_seed(seed)
    # Scores that do not compete are those of relu, and each head then has one expert.
    options = {} if competing else {"product_key_topk": 1}
    theirs = PEER(
        width,
        heads=heads,
        num_experts=keys**2,
        num_experts_per_head=top_k,
        dim_key=key_dim,
        non_competing_scores=not competing,
        **options,
    )
    with torch.no_grad():
        theirs.keys.normal_()
        rows = torch.from_numpy(random.standard_normal((tokens, width)).astype(np.float32))
        expected = theirs(rows[None])[0].numpy()
    query = theirs.to_queries[0].weight.detach().numpy()
    halves = theirs.keys.detach().numpy().transpose(2, 0, 1, 3).reshape(2, heads * keys, key_dim)
    down, up = (table.weight.detach().numpy() for table in (theirs.weight_down_embed, theirs.weight_up_embed))

    found = np.zeros((tokens, width), np.float32)
    queries = [np.zeros((tokens, heads * key_dim), np.float32) for _ in range(2)]
    scores = [np.zeros((tokens, heads * keys), np.float32) for _ in range(2)]
    chosen = heads * (top_k if competing else 1)
    experts, weights = np.zeros((tokens, chosen), np.int32), np.zeros((tokens, chosen), np.float32)
    source = np.ascontiguousarray(rows.numpy())
    parts = [
        op.LinearPart(exact_matrix(part), None, output)
        for part, output in zip(np.split(query, 2), queries, strict=True)
    ]
    size = -(-8 * width // 1024) * 1024
    per_page = math.lcm(size, PAGE_BYTES) // size
    pages = -(-(keys**2) // per_page)
    arena = aligned((pages, size * per_page), np.uint8)
    table = arena.reshape(-1)[: keys**2 * size].view(np.float32).reshape(keys**2, -1)
    table[:, :width], table[:, width : 2 * width] = down, up
    slots, layout = np.arange(pages, dtype=np.int32), no.NeuronLayout("f32", size, per_page)
    scoring: no.Scoring = "softmax" if competing else "relu"
    program = backend.program(
        [
            op.Linear(source, tuple(parts)),
            *(
                op.HeadLinear(own, exact_matrix(half), None, heads, output)
                for own, half, output in zip(queries, halves, scores, strict=True)
            ),
            no.RetrieveByKeys(*scores, heads, experts, weights, scoring),
            no.Neurons(
                *(source, experts, weights, arena, slots, layout, 0, keys**2, op.GELU, found),  # type: ignore[arg-type]
                accumulate=False,
            ),
        ]
    )
    program.run(tokens)
    # What terms come to that may cancel one another in few columns; a tenth is less than outputs have otherwise.
    terms = np.abs(up).max() * np.linalg.norm(down, axis=1).max() * np.linalg.norm(source, axis=1).max()
    scale = max(np.abs(expected).max(), 0.1 * terms)
    assert np.abs(found - expected).max() <= TOLERANCE * scale
