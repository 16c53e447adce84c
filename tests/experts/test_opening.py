"""The places of records, as the pager in C takes them, are those of the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.experts.opening import record_table
from edgemoe.io.reads import ExpertFiles
from edgemoe.store.reader import Store
from tests.support.checkpoints import write_checkpoint
from tests.support.stores import version_1

CONFIG = {
    "model_type": "qwen2_moe",
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "intermediate_size": 48,
    "mlp_only_layers": [0, 2],
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
}
"""Dense layers before and between those with experts."""


@pytest.mark.parametrize("fast_checksums", [True, False])
def test_the_pager_has_the_places_of_the_store(tmp_path: Path, fast_checksums: bool) -> None:
    write_checkpoint(tmp_path / "checkpoint", CONFIG)
    store = Store.open(convert_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "store"))
    if not fast_checksums:
        store = version_1(store.path, fast_checksums=False)
    files = ExpertFiles(store.expert_paths)
    try:
        places = record_table(store, files)
        assert places.shape == (4, 6)
        for layer in range(4):
            for expert in range(6):
                found = places[layer, expert]
                if layer in (0, 2):
                    assert found["length"] == 0
                    continue
                record = store.record(layer, expert)
                crc = -1 if record.crc32c is None else record.crc32c
                assert (crc >= 0) == fast_checksums
                assert found.item() == (record.offset, record.length, crc, files.descriptor(record.path), 0)
    finally:
        files.close()
