"""MXFP4 pairs of safetensors checkpoints: joined, kept bit for bit, exact in other formats, refused if wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgemoe.conversion.forecast import forecast_store
from edgemoe.conversion.opening import open_source
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.conversion.quantised.source import shown_dtypes, with_blocks
from edgemoe.conversion.source import Source, TensorInfo
from edgemoe.errors import SourceError
from edgemoe.kernels.blocks import Blocks, dequantise, pack
from edgemoe.kernels.formats import FORMATS
from edgemoe.store.reader import Store
from tests.support.bytes_source import BytesSource
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.every_case import every_case
from tests.support.hub_server import Repository, hub_server, use_hub
from tests.support.mxfp4_checkpoints import mxfp4_weights, random_mxfp4, write_packed_checkpoint
from tests.support.stores import store_weights

CONFIG = dict(SMALL_MIXTRAL, intermediate_size=96)
MODEL = "maker/tiny"
NAME = "model.layers.0.mlp.experts.gate_up_proj"


def is_packed(name: str) -> bool:
    return ".experts." in name or name.endswith(("q_proj.weight", "o_proj.weight"))


def assert_holds(store: Store, folder: Path, meant: dict[str, np.ndarray[Any, Any]]) -> None:
    """Check that the store's experts are those of the checkpoint, to the bit."""
    found = store_weights(store)
    for layer in range(2):
        for expert in range(4):
            for part, name in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
                wanted = meant[f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}.weight"]
                assert np.array_equal(found[f"layers.{layer}.experts.{expert}.{part}"], wanted)
        assert np.array_equal(found[f"layers.{layer}.query"], meant[f"model.layers.{layer}.self_attn.q_proj.weight"])


@pytest.mark.parametrize("apart", [False, True])
def test_a_packed_checkpoint_is_kept(tmp_path: Path, apart: bool) -> None:
    meant = write_packed_checkpoint(tmp_path / "model", CONFIG, is_packed, apart=apart)
    store = Store.open(convert_checkpoint(str(tmp_path / "model"), tmp_path / "store"))
    assert_holds(store, tmp_path / "model", meant)
    statistics = store.manifest.quantisation
    assert statistics["experts"]["formats"] == ["m4"]
    assert statistics["experts"]["relative_error"] == 0
    assert statistics["experts"]["bits_per_weight"] == pytest.approx(4.25, rel=0.05)
    assert statistics["attention"]["formats"] == ["m4", "q8"]  # keys and values are floats
    forecast = forecast_store(str(tmp_path / "model")).store.manifest
    assert [layout.matrices for layout in forecast.layouts] == [layout.matrices for layout in store.manifest.layouts]


@pytest.mark.parametrize("experts", ["m4", "q8", "f16", "f32"])
def test_a_packed_checkpoint_is_exact_in_wider_formats(tmp_path: Path, experts: str) -> None:
    meant = write_packed_checkpoint(tmp_path / "model", CONFIG, is_packed)
    path = convert_checkpoint(str(tmp_path / "model"), tmp_path / "store", experts=experts, dense="f32")
    assert_holds(Store.open(path), tmp_path / "model", meant)


def test_codes_of_a_store_are_those_of_the_checkpoint_minus_zero_too(tmp_path: Path) -> None:
    write_packed_checkpoint(tmp_path / "model", CONFIG, is_packed)
    store = Store.open(convert_checkpoint(str(tmp_path / "model"), tmp_path / "store"))
    query = store.load_dense()["layers.1.query"]
    source = open_source(str(tmp_path / "model"))
    blocks = source.read_rows("model.layers.1.self_attn.q_proj.weight", None, 0, query.rows)
    assert isinstance(blocks, Blocks)
    assert (blocks.values == 8).any()
    assert query.data.tobytes() == pack(blocks).tobytes()


@pytest.fixture
def stacked(tmp_path: Path) -> Iterator[tuple[Source, np.ndarray[Any, Any]]]:
    """A source with the experts of a layer of gpt-oss, 3 x (10, 64), and their weights."""
    write_checkpoint(tmp_path / "model", CONFIG)
    codes, scales = random_mxfp4((3, 10, 64), np.random.default_rng(2))
    pair = {f"{NAME}_blocks": codes.reshape(3, 10, 2, 16), f"{NAME}_scales": scales}
    save_file(pair, tmp_path / "model" / "model.safetensors")
    source = open_source(str(tmp_path / "model"))
    yield source, mxfp4_weights(codes, scales)
    source.close()


def test_stacked_experts_are_read_by_rows(stacked: tuple[Source, np.ndarray[Any, Any]]) -> None:
    source, weights = stacked
    assert dict(source.tensors()) == {f"{NAME}_blocks": TensorInfo((3, 10, 64), "m4", "model.safetensors")}
    for index in range(3):
        for start, stop in ((0, 10), (3, 4), (9, 10)):
            rows = source.read_rows(f"{NAME}_blocks", index, start, stop)
            assert isinstance(rows, Blocks)
            assert rows.format == FORMATS["m4"]
            assert np.array_equal(dequantise(rows), weights[index, start:stop])


def test_one_block_by_hand() -> None:
    """Bytes as openai/gpt-oss-20b has them: `convert_moe_packed_tensors` of transformers gives these numbers."""
    codes = np.array([[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE, *[0] * 8]], np.uint8)
    weights = mxfp4_weights(codes, np.array([[128]], np.uint8))
    positive = [0, 1, 2, 3, 4, 6, 8, 12]
    assert weights[0].tolist() == [*positive, *(-number for number in positive), *[0] * 16]


def shown(arrays: dict[str, Any], shards: dict[str, str] | None = None, dtypes: dict[str, str] | None = None) -> Source:
    """The source that is shown of zeros of these shapes, or of these arrays."""
    made = {name: np.zeros(value, np.uint8) if isinstance(value, tuple) else value for name, value in arrays.items()}
    return with_blocks(BytesSource(made, {}, dtypes, shards))


@every_case(
    ("codes", "scales"),
    [
        ((2, 4, 3, 16), (2, 4, 2)),
        ((2, 4, 2, 8), (2, 4, 2)),
        ((4, 16), (4,)),
        ((2, 8, 2, 16), (2, 4, 2)),
        ((0, 1, 16), (0, 1)),
    ],
)
def test_a_pair_whose_shapes_do_not_fit_is_refused(codes: tuple[int, ...], scales: tuple[int, ...]) -> None:
    with pytest.raises(SourceError, match=rf"all: {NAME}_scales: expected .* to fit {NAME}_blocks of .* found"):
        shown({f"{NAME}_blocks": codes, f"{NAME}_scales": scales})


def test_a_matrix_in_two_forms_is_refused() -> None:
    with pytest.raises(SourceError, match=r"x\.weight_packed: expected this or x\.weight, found both"):
        shown({"x.weight": np.zeros((4, 32), np.float32), "x.weight_packed": (4, 16), "x.weight_scale": (4, 1)})


@every_case(
    "arrays",
    [
        {"x.weight_packed": np.zeros((4, 16), np.int32), "x.weight_scale": np.zeros((4, 1), np.uint16)},
        {"x_blocks": np.zeros((4, 1, 16), np.float32)},
        {"x_scales": (4, 1)},
    ],
)
def test_what_is_no_pair_is_left_as_it_is(arrays: dict[str, Any]) -> None:
    assert isinstance(shown(arrays), BytesSource)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x_blocks": (4, 1, 16)}, "x_scales: missing; x_blocks has codes of MXFP4"),
        ({"x.weight_packed": (4, 16)}, "x.weight_scale: missing; x.weight_packed has codes of MXFP4"),
        (
            {"x_blocks": (4, 1, 16), "x_scales": np.zeros((4, 1), np.float32)},
            r"x_scales: expected MXFP4 with U8 or F8_E8M0, .*found F32",
        ),
    ],
)
def test_half_a_pair_is_refused(arrays: dict[str, Any], words: str) -> None:
    with pytest.raises(SourceError, match=words):
        shown(arrays)


def test_codes_without_scales_are_refused_by_their_names_alone() -> None:
    with pytest.raises(SourceError, match="x_scales: missing"):
        shown_dtypes({}, ["x_blocks", "y_blocks", "y_scales"])


def test_a_pair_lies_in_the_later_of_its_shards_and_the_order_is_kept() -> None:
    arrays = {
        "a.weight": np.zeros(3, np.float32),
        "x.weight_packed": (4, 16),
        "x.weight_scale": (4, 1),
        "z.weight": np.zeros(3, np.float32),
    }
    source = BytesSource(
        {name: np.zeros(value, np.uint8) if isinstance(value, tuple) else value for name, value in arrays.items()},
        {},
        {"x.weight_scale": "F8_E8M0"},
        {"x.weight_packed": "a", "x.weight_scale": "b", "a.weight": "b", "z.weight": "b"},
    )
    joined = with_blocks(source)
    assert list(joined.tensors()) == ["a.weight", "x.weight", "z.weight"]
    assert joined.tensors()["x.weight"] == TensorInfo((4, 32), "m4", "b")
    joined.release("a")
    assert source.released == []
    joined.release("b")
    assert source.released == ["a", "b"]


def test_scales_without_codes_and_codes_without_scales_are_refused_by_name(tmp_path: Path) -> None:
    write_packed_checkpoint(tmp_path / "model", CONFIG, is_packed)
    path = tmp_path / "model" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    without_codes = r"experts\.2\.w2\.weight_scale: expected unquantised weights, found"
    without_scales = r"experts\.2\.w2\.weight_scale: missing; .*\.weight_packed has codes of MXFP4, which need it"
    for missing, words in (("_packed", without_codes), ("_scale", without_scales)):
        left = {key: shard for key, shard in index["weight_map"].items() if key != name + missing}
        path.write_text(json.dumps(index | {"weight_map": left}))
        with pytest.raises(SourceError, match=words):
            convert_checkpoint(str(tmp_path / "model"), tmp_path / "store")


def test_each_shard_is_downloaded_once_though_pairs_lie_in_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_packed_checkpoint(tmp_path / "model", CONFIG, is_packed, apart=True)
    with hub_server() as server:
        files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
        repository = server.models[MODEL] = Repository(files)
        use_hub(monkeypatch, server.url, tmp_path / "cache")
        convert_checkpoint(MODEL, tmp_path / "store")
        for number in (1, 2):
            assert len(repository.gets(f"model-{number}-of-2.safetensors")) == 1
    convert_checkpoint(str(tmp_path / "model"), tmp_path / "from folder")
    for name in ("resident.safetensors", "experts-00000.safetensors"):
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "from folder" / name).read_bytes()
    assert not (tmp_path / "store.partial").exists()
