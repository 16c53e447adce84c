"""Random models with an encoder, built and run by transformers on the spot. Needs torch and transformers."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.model.relative import RelativeBias, bucket_table
from tests.architectures.harness import Reference, load_checkpoint, relative_error
from tests.golden.cases import Case

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-4


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A small model, with everything drawn that a config of it may say."""

    def number(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    layers, decoder_layers = number(1, 4), number(1, 4)
    buckets = 4 * number(1, 10)
    config = {
        "d_model": number(8, 70),
        "d_kv": 2 * number(1, 12),
        "d_ff": number(1, 70),
        "num_heads": number(1, 5),
        "num_layers": layers,
        "num_decoder_layers": decoder_layers,
        "num_sparse_encoder_layers": number(0, layers),
        "num_sparse_decoder_layers": number(0, decoder_layers),
        "num_experts": number(1, 9),
        "expert_capacity": number(1, 80),
        "router_bias": draw(st.booleans()),
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": buckets // 2 + number(1, 200),
        "layer_norm_epsilon": draw(st.sampled_from([1e-6, 1e-2])),
        "tie_word_embeddings": draw(st.booleans()),
        "vocab_size": number(16, 200),
        "decoder_start_token_id": number(0, 15),
    }
    return Case("switch_transformers", number(0, 10**6), config)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_logits_agree_with_transformers(data: st.DataObject) -> None:
    from tests.golden import oracle

    case = data.draw(cases())
    model = oracle.make_model(case)
    read, length = data.draw(st.integers(1, 250)), data.draw(st.integers(1, 40))
    ids = oracle.prompt(case, read + length)
    expected, clear = oracle.run_with_input(model, ids[:read], ids[read:])
    assume(clear)
    buckets = case.config["relative_attention_num_buckets"], case.config["relative_attention_max_distance"]
    assume(all(same_buckets(*buckets, causal) for causal in (True, False)))
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=3))) if length > 1 else []
    with tempfile.TemporaryDirectory() as name:
        checkpoint, store = Path(name) / "checkpoint", Path(name) / "store"
        oracle.save(model, case, checkpoint)
        reference = Reference(*load_checkpoint(checkpoint))
        reference.encode(ids[:read])
        assert relative_error(reference.logits(ids[read:]), expected) < TOLERANCE, "the reference kernels"
        convert_checkpoint(str(checkpoint), store, experts="f32", dense="f32")
        with open_engine(store, EngineOptions(threads=1, context_length=256)) as engine:
            engine.encode(ids[:read])
            found = np.concatenate([engine.forward(part, all_logits=True) for part in np.split(ids[read:], cuts)])
        assert relative_error(found, expected) < TOLERANCE, "the engine"


def same_buckets(buckets: int, most: int, causal: bool) -> bool:
    """Whether distances have the same buckets as in transformers, whose logarithms may be off by their last bit."""
    import torch
    from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersAttention

    distances = torch.arange(-most, most + 1)
    expected = SwitchTransformersAttention._relative_position_bucket(
        distances, bidirectional=not causal, num_buckets=buckets, max_distance=most
    )
    return np.array_equal(bucket_table(RelativeBias(buckets, most), causal), expected.numpy())


def test_distances_have_the_buckets_of_transformers() -> None:
    """Where they are powers of two, as those of all published models are, for every distance."""
    for buckets in (8, 16, 32, 64):
        for most in (64, 128, 256, 1024):
            for causal in (True, False):
                assert same_buckets(buckets, most, causal), (buckets, most, causal)
