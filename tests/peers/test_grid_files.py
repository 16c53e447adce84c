"""Files in GGUF's IQ1, IQ2 and IQ3 types: computed as well as llama.cpp does, and written back to the bit.

llama.cpp makes most of them with an importance matrix only, so these have random codes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import edgemoe
from edgemoe.conversion.gguf.export import export_gguf
from edgemoe.kernels.formats import FORMATS
from edgemoe.kernels.row_types import BLOCK_FORMATS
from edgemoe.store.reader import Store
from tests.peers.test_quantised_files import compare, content, tensors_of, wide_config
from tests.support.checkpoints import read_tensors, write_checkpoint
from tests.support.gguf_files import write_gguf

pytestmark = pytest.mark.peer

GRID_TYPES = [name for name, twin in BLOCK_FORMATS.items() if FORMATS[twin].grid != "none"]


@pytest.mark.parametrize("kind", GRID_TYPES)
def test_a_file_of_a_type_with_a_grid(kind: str, tmp_path: Path) -> None:
    config = wide_config()
    write_checkpoint(tmp_path / "wide", config, dtype="F32", side_files={"README.md": b""})
    kinds = {"norm": "F32", "ffn_gate_inp": "F32", "token_embd": "Q8_0", ".": kind}
    path = write_gguf(tmp_path / "m.gguf", config, read_tensors(tmp_path / "wide"), kinds=kinds)
    store = Store.open(edgemoe.convert(path, tmp_path / "store"))
    exported = export_gguf(store, tmp_path / "back.gguf", name="back", tokenizer=False)
    given, back = tensors_of(path), tensors_of(exported)
    assert sum(tensor.type_name == kind for tensor in given.values()) > 5
    for name, tensor in given.items():
        assert content(back[name]) == content(tensor), name
    compare(kind, exported, tmp_path)
