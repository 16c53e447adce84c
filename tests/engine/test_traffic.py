"""Bytes that a token reads, against the sizes in the store."""

from pathlib import Path
from typing import Any

import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.store.reader import Store
from tests.engine.test_engine import CONFIG, EXPERTS
from tests.engine.test_invariants import WINDOWED
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.engines import engine_with_slots

DENSE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
}


def test_a_window_bounds_the_positions_that_a_token_reads(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", WINDOWED)
    store = Store.open(convert_checkpoint(str(tmp_path / "source"), tmp_path / "store", experts="q4", dense="q8"))
    with engine_with_slots(store.path, EXPERTS) as engine:
        traffic = engine.traffic
    layer = 2 * 2 * 24 * 2  # keys and values of two heads, in float16
    assert traffic.kv_bytes == [(0, 2 * layer), (37, 2 * layer)]
    assert traffic.kv_bytes_per_position == 4 * layer
    assert traffic.at(36) - traffic.at(0) == 36 * 4 * layer
    assert traffic.at(37) - traffic.at(36) == traffic.at(200) - traffic.at(199) == 2 * layer
    biases = 4 * (48 + 48 + 96)
    layout = store.layouts_of_layers[0][0]
    assert layout.weight_bytes == layout.matrices.gate_up_bytes + layout.matrices.down_bytes + biases
    assert traffic.weight_bytes["experts"] == 4 * 3 * layout.weight_bytes


@pytest.mark.parametrize("config", [CONFIG, SMALL_MIXTRAL, DENSE])
def test_a_token_reads_every_weight_but_the_embedding_and_the_experts_not_chosen(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    write_checkpoint(tmp_path / "source", config)
    store = Store.open(convert_checkpoint(str(tmp_path / "source"), tmp_path / "store", experts="q4", dense="q8"))
    with engine_with_slots(store.path, config.get("num_local_experts", 0) * config["num_hidden_layers"]) as engine:
        traffic = engine.traffic
    expected = sum(tensor.bytes for tensor in store.manifest.dense)
    embedding = next(tensor for tensor in store.manifest.dense if tensor.name == "embedding")
    if not config.get("tie_word_embeddings"):
        expected -= embedding.bytes
    expected += embedding.bytes // embedding.rows
    for layouts in store.layouts_of_layers:
        for layout in (one.matrices for one in layouts):
            end = layout.down_offset + layout.down_format.matrix_bytes(layout.hidden_size, layout.intermediate_size)
            expected += config["num_experts_per_tok"] * end
    head_width = config["hidden_size"] // config["num_attention_heads"]
    kv_bytes = config["num_hidden_layers"] * 2 * config["num_key_value_heads"] * head_width * 2
    assert traffic.at(0) == expected + kv_bytes
    assert traffic.at(9.5) == expected + 10.5 * kv_bytes
    assert sum(traffic.of_part(part, 9.5) for part in traffic.weight_bytes) == traffic.at(9.5)
    assert traffic.of_part("attention", 1) - traffic.of_part("attention", 0) == kv_bytes
