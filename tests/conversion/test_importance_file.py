"""Files of llama.cpp's imatrix: both forms say the same, and one of another model is refused by name."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgemoe.conversion.calibration.importance_file import ImportanceFile, gguf_names
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.errors import SourceError, UsageError
from edgemoe.store.reader import Store
from tests.support.checkpoints import SMALL_MIXTRAL, folder_bytes, write_checkpoint

Values = dict[str, np.ndarray]


def importance(hidden: int = 64, intermediate: int = 72, experts: int = 4) -> Values:
    """The importance of the experts' columns of `SMALL_MIXTRAL`."""
    random = np.random.default_rng(5)
    widths = {"ffn_gate_exps": hidden, "ffn_up_exps": hidden, "ffn_down_exps": intermediate}
    return {
        f"blk.{layer}.{name}.weight": np.exp(2 * random.standard_normal((experts, width))).astype(np.float32)
        for layer in range(2)
        for name, width in widths.items()
    }


def write_gguf(path: Path, values: Values, kind: str = "imatrix") -> Path:
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type(kind)
    for name, own in values.items():
        writer.add_tensor(f"{name}.in_sum2", own * 8)
        writer.add_tensor(f"{name}.counts", np.full((len(own), 1), 8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_plain(path: Path, values: Values) -> Path:
    data = struct.pack("<i", len(values))
    for name, own in values.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 3, own.size) + own.tobytes()
    path.write_bytes(data)
    return path


def test_both_forms_make_the_same_weights_and_other_ones_than_none(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", SMALL_MIXTRAL)
    files = write_gguf(tmp_path / "a.gguf", importance()), write_plain(tmp_path / "b.dat", importance())
    stores = [
        convert_checkpoint(
            str(tmp_path / "checkpoint"),
            tmp_path / f"store{number}",
            experts="n2",
            calibration=None if file is None else ImportanceFile.read(file),
        )
        for number, file in enumerate((None, *files))
    ]
    plain, *found = (folder_bytes(store)["experts-00000.safetensors"] for store in stores)
    assert found[0] == found[1] != plain
    assert Store.open(stores[1]).manifest.provenance["calibration"].startswith("importance of a.gguf (")


def test_names_of_gguf_files() -> None:
    assert gguf_names("layers.3.query") == ["blk.3.attn_q.weight", "blk.3.attn_qkv.weight"]
    assert gguf_names("layers.3.experts.17.down") == ["blk.3.ffn_down_exps.weight"]
    assert gguf_names("layers.0.shared.gate")[:3] == [
        f"blk.0.{name}_shexp.weight" for name in ("ffn_gate", "ffn_gate_up", "ffn_up")
    ]
    assert gguf_names("layers.0.ffn.up")[0] == "blk.0.ffn_up.weight"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            importance(hidden=96),
            "of another model: expected 4 x 64 numbers for blk.0.ffn_gate_exps.weight, found 4 x 96",
        ),
        (importance(experts=5), "found 5 x 64"),
        (
            {"blk.0.ffn_gate.weight": np.ones((1, 64), np.float32)},
            "none of this one's matrices, such as blk.0.ffn_gate",
        ),
    ],
)
def test_a_file_of_another_model_is_refused(values: Values, expected: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint", SMALL_MIXTRAL)
    file = ImportanceFile.read(write_gguf(tmp_path / "a.gguf", values))
    with pytest.raises(UsageError, match=expected):
        convert_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "store", experts="n2", calibration=file)
    with pytest.raises(UsageError, match="a format with a trellis"):
        convert_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "store", experts="q4", calibration=file)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """Cut anywhere, of another kind, and with numbers that are none."""
    one = {"blk.0.ffn_up.weight": np.ones((1, 8), np.float32)}
    data = write_plain(tmp_path / "whole.dat", one).read_bytes()
    cases = [data[:end] for end in (0, 3, 4, 7, 20, len(data) - 1)]
    cases += [b"\xff" * 64, struct.pack("<i", 0), data.replace(struct.pack("<f", 1), struct.pack("<f", np.nan), 1)]
    cases += [data.replace(struct.pack("<f", 1), struct.pack("<f", -1), 1)]
    for content in cases:
        (tmp_path / "damaged").write_bytes(content)
        with pytest.raises(SourceError, match="damaged: "):
            ImportanceFile.read(tmp_path / "damaged")
    with pytest.raises(SourceError, match="type imatrix, found model"):
        ImportanceFile.read(write_gguf(tmp_path / "model.gguf", one, "model"))
    with pytest.raises(SourceError, match="cannot be read"):
        ImportanceFile.read(tmp_path / "missing")
