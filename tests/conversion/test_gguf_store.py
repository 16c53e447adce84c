"""A GGUF file opened as it is: the bits of the store that conversion makes of it, with its blocks kept.

Under every budget, from several files, for every type; and what is refused, or noticed while it is open.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgemoe
from edgemoe.conversion.gguf_store import GgufStore
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import open_engine
from edgemoe.errors import ReadError, SourceError, StoreError
from edgemoe.experts.loading import load_experts
from edgemoe.kernels.formats import Matrix
from edgemoe.kernels.row_types import ROW_TYPES
from edgemoe.session.stores import open_store
from edgemoe.store.reader import Store
from tests.conversion.gguf.test_source import CONFIGS
from tests.support.checkpoints import read_tensors, write_checkpoint
from tests.support.engines import engine_with_slots, use_portable_reader
from tests.support.gguf_files import write_gguf
from tests.support.pairs import default_pairs

IDS = [7, 3, 99, 12, 5, 64, 1, 2, 88, 41, 17]
ROUTED = [name for name in CONFIGS if not name.startswith("llama")]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in ROUTED:
        write_checkpoint(folder / name, CONFIGS[name], dtype="F32")
    return folder


def file_of(checkpoints: Path, folder: Path, name: str, kinds: dict[str, str], **options: Any) -> Path:
    return write_gguf(folder / "m.gguf", CONFIGS[name], read_tensors(checkpoints / name), kinds=kinds, **options)


def logits(store: Store, slots: int, threads: int = 1) -> np.ndarray:
    with engine_with_slots(store, slots, threads, warm_start=False) as engine:
        return engine.forward(IDS, all_logits=True)


def landed(store: Store) -> list[np.ndarray]:
    """The weights of each record, as they stand in the slot of a model with all experts in memory."""
    records = store.manifest.records
    arena = np.zeros((len(records), store.slot_bytes), np.uint8)
    counts = [records.count(layer) for layer in range(records.layers)]
    loading = load_experts(arena, [np.zeros(count, np.int32) if count else None for count in counts], store)
    loading.wait()
    ends = [store.manifest.layouts[number] for number in records.layout]
    return [slot[: layout.weight_bytes] for slot, layout in zip(arena, ends, strict=True)]


RUN = ("mixtral", "gpt_oss")
"""Models whose logits are compared too; those of the others follow from their weights, which slow tests compare."""
WIDE = {"hidden_size": 256, "intermediate_size": 256}
"""Sizes of whole blocks of any type."""
UNLIKE = [("Q4_0", "Q8_0"), ("Q4_K", "Q6_K"), ("F16", "IQ2_XXS"), ("F32", "IQ3_S")]
"""Types of gate and of up in one file."""
PAIRS = [
    *default_pairs(RUN, [*ROW_TYPES], every=7),
    *(pytest.param(name, "Q4_0", marks=pytest.mark.slow) for name in ROUTED if name not in RUN),
]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_the_bits_are_those_of_the_converted_store(name: str, kind: str, checkpoints: Path, tmp_path: Path) -> None:
    kinds = {"ffn_down_exps": "Q8_0", "_exps": kind, "ffn_gate_inp": "F32", "attn_v": "F16", ".": "Q8_0"}
    if ROW_TYPES[kind].columns > 32:
        kinds = {"attn_output": "Q8_0"} | kinds | {".": kind}
        write_checkpoint(tmp_path / name, CONFIGS[name] | WIDE, dtype="F32")
        path = write_gguf(tmp_path / "m.gguf", CONFIGS[name] | WIDE, read_tensors(tmp_path / name), kinds=kinds)
    else:
        path = file_of(checkpoints, tmp_path, name, kinds)
    opened = open_store(path)
    stored = Store.open(convert_checkpoint(str(path), tmp_path / "store", experts="keep"))
    assert isinstance(opened, GgufStore)
    assert opened.model == stored.model
    assert [layout.matrices for layout in opened.manifest.layouts] == [x.matrices for x in stored.manifest.layouts]
    dense = opened.begin_dense()
    dense.wait()
    for tensor, value in stored.load_dense().items():
        other = dense.tensors[tensor]
        assert isinstance(value, Matrix) == isinstance(other, Matrix)
        np.testing.assert_array_equal(getattr(other, "data", other), getattr(value, "data", value), err_msg=tensor)
    for one, other in zip(landed(opened), landed(stored), strict=True):
        np.testing.assert_array_equal(one, other)
    assert opened.record_bytes == sum(opened.manifest.layouts[0].parts["bytes"])
    if name in RUN:
        check_logits(opened, logits(stored, len(stored.manifest.records)))


def check_logits(opened: Store, expected: np.ndarray) -> None:
    """The logits of a file, resident and streamed, in one call and token by token, are the expected ones."""
    assert np.isfinite(expected).all()
    for slots, cuts in ((len(opened.manifest.records), (4,)), (6, (len(IDS), 1))):
        with engine_with_slots(opened, slots, threads=2, warm_start=False) as engine:
            for together in cuts:
                engine.rewind(0)
                pieces = (IDS[start : start + together] for start in range(0, len(IDS), together))
                found = np.concatenate([engine.forward(piece, all_logits=True) for piece in pieces])
                np.testing.assert_array_equal(found, expected, err_msg=f"{slots} slots, {together} tokens a call")


@pytest.mark.parametrize(("name", "kinds"), default_pairs(RUN, UNLIKE, every=3))
def test_gate_and_up_of_two_types(name: str, kinds: tuple[str, str], tmp_path: Path) -> None:
    """Files in mixes have them. The engine computes the dequantised weights' logits, as far as int8 inputs let it."""
    gate, up = kinds
    config = CONFIGS[name] | WIDE
    write_checkpoint(tmp_path / name, config, dtype="F32")
    types = {"ffn_gate_exps": gate, "ffn_up_exps": up, "ffn_down_exps": "Q8_0", ".": "F32"}
    path = write_gguf(tmp_path / "m.gguf", config, read_tensors(tmp_path / name), kinds=types)
    opened, stored = open_store(path), Store.open(convert_checkpoint(str(path), tmp_path / "store"))
    assert stored.manifest.quantisation["experts"]["relative_error"] == 0 or "F" in gate
    stored = Store.open(convert_checkpoint(str(path), tmp_path / "kept", experts="keep"))
    assert stored.manifest.quantisation["experts"]["relative_error"] == 0
    for one, other in zip(landed(opened), landed(stored), strict=True):
        np.testing.assert_array_equal(one, other)
    expected = logits(stored, len(stored.manifest.records))
    check_logits(opened, expected)
    floats = Store.open(convert_checkpoint(str(path), tmp_path / "floats", experts="f32", dense="f32"))
    exact = logits(floats, len(floats.manifest.records))
    assert np.abs(expected - exact).max() < 0.05 * np.abs(exact).max()


def test_a_dense_model(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "llama", CONFIGS["llama"], dtype="F32")
    path = file_of(tmp_path, tmp_path, "llama", {".": "F16"})
    stored = Store.open(convert_checkpoint(str(path), tmp_path / "store"))
    np.testing.assert_array_equal(logits(open_store(path), 0), logits(stored, 0))


def test_several_files_and_merged_tensors(checkpoints: Path, tmp_path: Path) -> None:
    for number, options in enumerate(({"files": 3}, {"merged": True}, {"stacked": False})):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = file_of(checkpoints, folder, "qwen3_moe", {"_exps|ffn_(gate|up|down)\\.": "Q4_0", ".": "F32"}, **options)
        stored = Store.open(convert_checkpoint(str(path), folder / "store", experts="keep"))
        np.testing.assert_array_equal(logits(open_store(path), 5), logits(stored, 5))
        assert len(open_store(path).manifest.files) == options.get("files", 1)


def test_without_kernels_in_c(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_of(checkpoints, tmp_path, "gpt_oss", {"_exps.weight": "MXFP4", ".": "Q8_0"})
    stored = Store.open(convert_checkpoint(str(path), tmp_path / "store", experts="keep"))
    use_portable_reader(monkeypatch)
    np.testing.assert_array_equal(logits(open_store(path), 5), logits(stored, 5))


def test_a_model_has_its_text(checkpoints: Path, tmp_path: Path) -> None:
    path = file_of(checkpoints, tmp_path, "mixtral", {"_exps": "Q4_0", ".": "Q8_0"})
    (tmp_path / "tokenizer.json").write_text("{}")  # of another model that lies in the same folder
    stored = convert_checkpoint(str(path), tmp_path / "store", experts="keep")
    with edgemoe.load(path, warm_start=False) as opened, edgemoe.load(stored, warm_start=False) as expected:
        ids = opened.encode("Hello")
        assert ids == expected.encode("Hello")
        assert opened.generate(ids, 5).token_ids == expected.generate(ids, 5).token_ids
        assert opened.path == path
        memory = opened.engine.memory
        assert memory.staging_bytes > 0
        assert memory.planned_bytes <= memory.budget_bytes
        assert opened.folder.is_dir()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "IQ4_NL"])
def test_an_embedding_left_in_its_file(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    opened = open_store(file_of(checkpoints, tmp_path, "mixtral", {"token_embd": kind, "_exps": "Q4_0", ".": "Q8_0"}))
    panels = opened.embedding_panels
    assert panels is not None
    assert opened.dense_bytes() - opened.dense_bytes(embedding=False) >= panels.count * panels.panel_bytes
    for portable in (False, True):
        if portable:
            use_portable_reader(monkeypatch)
        expected = logits(opened, 4)
        with engine_with_slots(opened, 4, embedding_resident=False, warm_start=False) as engine:
            pieces = np.concatenate([engine.forward(piece, all_logits=True) for piece in (IDS[:5], IDS[5:])])
            np.testing.assert_array_equal(pieces, expected)
            os.utime(panels.path, ns=(0, 10**18))
            with pytest.raises(ReadError, match=r"The embedding of tokens \d+ to \d+: its file was changed"):
                engine.forward(IDS)
            os.utime(panels.path, ns=(0, opened.modified_ns(0)))


def test_a_file_that_changes_while_it_is_open(checkpoints: Path, tmp_path: Path) -> None:
    path = file_of(checkpoints, tmp_path, "mixtral", {"_exps": "Q4_0", ".": "Q8_0"})
    with engine_with_slots(open_store(path), 4, warm_start=False) as engine:
        os.utime(path, ns=(0, 10**18))
        with pytest.raises(ReadError, match=r"Layer 0, expert \d+: its file was changed while it was open"):
            engine.forward(IDS)
    opened = open_store(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(StoreError, match=r"m\.gguf: its size changed from \d+ to \d+ bytes while it was open"):
        open_engine(opened)
    with pytest.raises(SourceError, match=r"the file ends at"):
        open_store(path)
