"""A conversion end to end: the right weights in the right place, and nothing half-written under the final name."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe.architectures import resolve
from edgemoe.conversion import encoding, pipeline, places, side_files
from edgemoe.conversion.journal import Journal
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.conversion.progress import Progress
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import SourceError, StoreError, UsageError
from edgemoe.kernels.blocks import Blocks, dequantise
from edgemoe.kernels.formats import FORMATS
from edgemoe.model.spec import ModelSpec
from edgemoe.quant.quantise import quantise
from edgemoe.store.reader import Store
from edgemoe.store.verification import verify_store
from tests.support.checkpoints import SMALL_MIXTRAL, folder_bytes, read_tensors, write_checkpoint
from tests.support.every_case import every_case
from tests.support.homes import without_home
from tests.support.matrices import quantisation_error
from tests.support.quantised_source import QuantisedSource
from tests.support.stores import store_weights

QWEN2: dict[str, Any] = {
    "model_type": "qwen2_moe",
    "hidden_size": 48,
    "intermediate_size": 56,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
    "num_hidden_layers": 2,
    "mlp_only_layers": [1],
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "vocab_size": 70,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
}
"""Biases, a gated shared expert, a dense layer."""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    write_checkpoint(folder, SMALL_MIXTRAL, shards=3)
    return folder


def expected_weights(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of the model as the checkpoint has them, in float32."""
    config = json.loads((folder / "config.json").read_text())
    tensors = read_tensors(folder)
    places = resolve(config, {name: tensor.shape for name, tensor in tensors.items()})
    weights = {}
    for name, place in places.items():
        whole = tensors[place.tensor] if place.index is None else tensors[place.tensor][place.index]
        weights[name] = whole[place.row_start : place.row_stop]
    return weights


def is_exact(name: str) -> bool:
    return name.endswith(("router", "shared_gate", "norm", "bias"))


@pytest.mark.parametrize("config", [SMALL_MIXTRAL, QWEN2], ids=["mixtral", "qwen2_moe"])
@pytest.mark.parametrize(
    ("dtype", "stacked", "shards"), [("BF16", False, 1), ("F32", False, 4), ("F16", True, 1), ("F64", True, 2)]
)
def test_an_f32_store_holds_the_checkpoint_exactly(
    tmp_path: Path, config: dict[str, Any], dtype: str, stacked: bool, shards: int
) -> None:
    write_checkpoint(tmp_path / "source", config, dtype=dtype, stacked=stacked, shards=shards)
    path = convert_checkpoint(str(tmp_path / "source"), tmp_path / "store", experts="f32", dense="f32")
    expected = expected_weights(tmp_path / "source")
    store = Store.open(path)
    found = store_weights(store)
    assert found.keys() == expected.keys() == ModelSpec.from_json(store.model).tensors().keys()
    for name, weights in expected.items():
        assert np.array_equal(found[name], weights), name
    assert verify_store(store) == []


@pytest.mark.parametrize(
    ("experts", "dense"), [(None, None), ("n2", None), ("n075", "q8"), ("q8", "f16"), ("q4m", "q4"), ("f16", "q4m")]
)
def test_each_class_gets_its_format_and_the_nearest_weights(
    checkpoint: Path, tmp_path: Path, experts: str | None, dense: str | None
) -> None:
    store = Store.open(convert_checkpoint(str(checkpoint), tmp_path / "store", experts=experts, dense=dense))
    found = store_weights(store)
    for name, weights in expected_weights(checkpoint).items():
        option = (experts or "q4") if ".experts." in name else (dense or "q8")
        wanted = weights if is_exact(name) else dequantise(quantise(weights, FORMATS[option]))
        assert np.array_equal(found[name], wanted), name
    assert store.dense_format == (dense or "q8")


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_may_have_a_format_of_its_own(tied: bool, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", {**SMALL_MIXTRAL, "tie_word_embeddings": tied})
    store = Store.open(convert_checkpoint(str(tmp_path / "source"), tmp_path / "store", head="q4"))
    formats = {tensor.name: tensor.format.name for tensor in store.manifest.dense if tensor.format is not None}
    others = {name for name in formats if "router" not in name} - {"embedding" if tied else "head"}
    assert formats["embedding" if tied else "head"] == "q4"
    assert {formats[name] for name in others} == {"q8"}
    with pytest.raises(UsageError, match="head q4, not by default"):
        convert_checkpoint(str(tmp_path / "source"), tmp_path / "store")
    with pytest.raises(UsageError, match=r"`head`: expected one of .* found 'q7'"):
        convert_checkpoint(str(tmp_path / "source"), tmp_path / "other", head="q7")


def test_the_bytes_do_not_depend_on_how_the_rows_are_cut(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = folder_bytes(convert_checkpoint(str(checkpoint), tmp_path / "whole"))
    monkeypatch.setattr(places, "SLICE_WEIGHTS", 1)
    cut = folder_bytes(convert_checkpoint(str(checkpoint), tmp_path / "cut"))
    assert {name: cut[name] for name in cut if name != "edgemoe.json"} == {
        name: whole[name] for name in whole if name != "edgemoe.json"
    }


def test_the_manifest_tells_size_and_error_of_each_class(checkpoint: Path, tmp_path: Path) -> None:
    store = Store.open(convert_checkpoint(str(checkpoint), tmp_path / "store"))
    statistics = store.manifest.quantisation
    expected = expected_weights(checkpoint)
    assert sum(entry["parameters"] for entry in statistics.values()) == sum(w.size for w in expected.values())
    assert statistics["experts"]["formats"] == ["q4"]
    assert statistics["embedding"]["formats"] == ["q8"]
    embedding = expected["embedding"]
    error = quantisation_error(embedding, quantise(embedding, FORMATS["q8"]))
    assert statistics["embedding"]["relative_error"] == pytest.approx(error, rel=1e-3)
    assert statistics["router"]["relative_error"] == 0
    assert store.manifest.provenance["source"] == "checkpoint"


def test_the_tokenizer_and_the_config_come_along(tmp_path: Path) -> None:
    side_files = {"tokenizer.json": b"{}", "chat_template.jinja": b"{{ x }}", "README.md": b"not this"}
    write_checkpoint(tmp_path / "source", SMALL_MIXTRAL, side_files=side_files)
    path = convert_checkpoint(str(tmp_path / "source"), tmp_path / "store")
    assert (path / "tokenizer.json").read_bytes() == b"{}"
    assert (path / "chat_template.jinja").read_bytes() == b"{{ x }}"
    assert json.loads((path / "config.json").read_text()) == SMALL_MIXTRAL
    assert not (path / "README.md").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("generation_config.json", b'{"do_sample": true, "top_p": 7}', "top_p: expected above 0, up to 1"),
        ("generation_config.json", b'{"temperature": NaN}', "it is not valid JSON"),
        ("generation_config.json", b"\xff\xfe{\x00}\x00", "it is not valid JSON"),
        ("generation_config.json", b"{", "it is not valid JSON"),
        ("generation_config.json", b"[]", "expected a JSON object, found list"),
        ("generation_config.json", b'{"eos_token_id": "</s>"}', "eos_token_id: expected a token id"),
        ("generation_config.json", b" " * (1 << 24) + b" {}", "expected at most 16.8 MB"),
        ("config.json", json.dumps({**SMALL_MIXTRAL, "eos_token_id": "</s>"}).encode(), "eos_token_id: expected"),
    ],
)
def test_settings_that_a_store_could_not_generate_with_are_told_before_any_weight_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, message: str
) -> None:
    write_checkpoint(tmp_path / "source", SMALL_MIXTRAL, side_files={name: content})
    monkeypatch.setattr(pipeline, "Transfer", None)  # a conversion that had begun would fail here
    with pytest.raises(SourceError, match=rf"^{name} of the checkpoint: {message}"):
        convert_checkpoint(str(tmp_path / "source"), tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_side_files_that_are_too_large_are_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "source", SMALL_MIXTRAL, side_files={"tokenizer.json": b"{}" * 600})
    monkeypatch.setattr(side_files, "SIDE_FILE_LIMIT_BYTES", 1000)
    seen: list[Progress] = []
    with pytest.raises(SourceError, match=r"tokenizer\.json: expected at most"):
        convert_checkpoint(str(tmp_path / "source"), tmp_path / "store", progress=seen.append)
    assert seen == []


def test_dtypes_that_are_not_read_are_refused_before_the_work(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", SMALL_MIXTRAL)
    path = tmp_path / "source" / "model.safetensors"
    data = path.read_bytes()
    name = b'"model.norm.weight":{"dtype":"BF16"'
    assert data.count(name) == 1
    path.write_bytes(data.replace(name, name.replace(b"BF16", b"I16 ")).replace(b'"I16 "', b'"I16" '))
    with pytest.raises(SourceError, match=r"model\.norm\.weight: expected weights of F64, F32, F16, BF16, found I16"):
        convert_checkpoint(str(tmp_path / "source"), tmp_path / "store")
    assert not (tmp_path / "store.partial").exists()


def test_progress_grows_to_the_whole(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemoe.conversion.progress.REPORT_INTERVAL_S", 0.0)
    seen: list[Progress] = []
    convert_checkpoint(str(checkpoint), tmp_path / "store", progress=seen.append)
    assert [p.done_bytes for p in seen] == sorted(p.done_bytes for p in seen)
    assert seen[-1].done_bytes == seen[-1].total_bytes
    assert [p.shard for p in seen] == sorted(p.shard for p in seen)


def test_a_finished_store_of_the_same_conversion_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    store = convert_checkpoint(str(checkpoint), tmp_path / "store")
    before = {path.name: path.stat().st_mtime_ns for path in store.iterdir()}
    assert convert_checkpoint(str(checkpoint), tmp_path / "store") == store
    assert {path.name: path.stat().st_mtime_ns for path in store.iterdir()} == before
    assert not (tmp_path / "store.partial").exists()


def test_a_finished_store_of_another_conversion_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    before = folder_bytes(convert_checkpoint(str(checkpoint), tmp_path / "store"))
    with pytest.raises(UsageError, match=r"of another conversion \(experts by default, not q8\)"):
        convert_checkpoint(str(checkpoint), tmp_path / "store", experts="q8", force=True)
    assert folder_bytes(tmp_path / "store") == before
    assert not (tmp_path / "store.partial").exists()


def test_a_store_of_other_weights_in_the_same_shapes_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    convert_checkpoint(str(checkpoint), tmp_path / "store")
    write_checkpoint(checkpoint, SMALL_MIXTRAL, shards=3, seed=9)
    with pytest.raises(UsageError, match=r"of another conversion \(the checkpoint has changed\)"):
        convert_checkpoint(str(checkpoint), tmp_path / "store")


def test_a_destination_that_is_something_else_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    for name in ("full", "file"):
        with pytest.raises(UsageError, match="exists, and is not a store"):
            convert_checkpoint(str(checkpoint), tmp_path / name)
        assert not (tmp_path / f"{name}.partial").exists()
    (tmp_path / "empty").mkdir()
    assert Store.open(convert_checkpoint(str(checkpoint), tmp_path / "empty")).record_bytes


def test_unknown_formats_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`experts`: expected one of q4, q4m, .*bf16, .*n4, .*keep, found 'q7'"):
        convert_checkpoint(str(checkpoint), tmp_path / "store", experts="q7")


@pytest.mark.parametrize("destination", ["", "/", "a/..", "a\0b"])
def test_a_destination_without_a_name_is_refused(checkpoint: Path, destination: str) -> None:
    with pytest.raises(UsageError, match="expected a folder to make"):
        convert_checkpoint(str(checkpoint), destination)


@pytest.mark.parametrize("name", ["x" * 300, "file/store"])
def test_a_destination_that_cannot_be_made_is_told(checkpoint: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StoreError, match="cannot be written"):
        convert_checkpoint(str(checkpoint), tmp_path / name)


def test_a_source_that_cannot_be_read_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        convert_checkpoint(str(tmp_path / "absent"), tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def interrupt(checkpoint: Path, destination: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Begin a conversion that ends after its first shard."""
    with monkeypatch.context() as patch:
        patch.setattr("edgemoe.conversion.folder.FolderSource.release", _stop)
        with pytest.raises(KeyboardInterrupt):
            convert_checkpoint(str(checkpoint), destination, **options)


def _stop(self: object, shard: str) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_conversion_goes_on_and_does_nothing_twice(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(checkpoint, tmp_path / "store", monkeypatch)
    assert not (tmp_path / "store").exists()
    encoded = []
    real = encoding.encode
    monkeypatch.setattr("edgemoe.conversion.transfer.encode", lambda *a: encoded.append(a[2]) or real(*a))
    resumed = folder_bytes(convert_checkpoint(str(checkpoint), tmp_path / "store"))
    assert encoded
    assert not {label for label in encoded if label.startswith("model-00001")}
    assert resumed == folder_bytes(convert_checkpoint(str(checkpoint), tmp_path / "undisturbed"))


@pytest.mark.parametrize("change", ["options", "shards", "weights", "version"])
def test_an_unfinished_conversion_of_another_kind_is_refused_but_with_force(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    interrupt(checkpoint, tmp_path / "store", monkeypatch)
    options: dict[str, Any] = {}
    if change == "options":
        options["experts"] = "q8"
    elif change in ("shards", "weights"):
        shutil.rmtree(checkpoint)
        write_checkpoint(checkpoint, SMALL_MIXTRAL, shards=2 if change == "shards" else 3, seed=4)
    else:
        monkeypatch.setattr(pipeline, "edgemoe_version", lambda: "99.0")
    with pytest.raises(UsageError, match="holds an unfinished conversion of another kind") as caught:
        convert_checkpoint(str(checkpoint), tmp_path / "store", **options)
    assert "`force`" in caught.value.hint
    forced = folder_bytes(convert_checkpoint(str(checkpoint), tmp_path / "store", force=True, **options))
    assert forced == folder_bytes(convert_checkpoint(str(checkpoint), tmp_path / "other", **options))


def test_a_folder_in_the_way_of_unfinished_work_is_not_touched(checkpoint: Path, tmp_path: Path) -> None:
    mine = tmp_path / "store.partial" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UsageError, match=r"expected an unfinished conversion there, found thesis\.txt"):
        convert_checkpoint(str(checkpoint), tmp_path / "store", force=True)
    assert mine.read_text() == "mine"


def test_two_conversions_into_one_place_do_not_meet(checkpoint: Path, tmp_path: Path) -> None:
    running = Journal.lock(tmp_path / "store.partial")
    with running, pytest.raises(UsageError, match="another conversion into this place is running"):
        convert_checkpoint(str(checkpoint), tmp_path / "store")
    assert convert_checkpoint(str(checkpoint), tmp_path / "store").is_dir()


def test_what_a_kill_after_the_renaming_leaves_is_cleared(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(checkpoint, tmp_path / "store", monkeypatch)
    shutil.copytree(tmp_path / "store.partial", tmp_path / "left")
    convert_checkpoint(str(checkpoint), tmp_path / "store")
    shutil.copytree(tmp_path / "left", tmp_path / "store.partial")
    convert_checkpoint(str(checkpoint), tmp_path / "store")
    assert not (tmp_path / "store.partial").exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.block_sparse_moe.experts.2.w2.weight"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, bad: float, name: str) -> None:
    write_checkpoint(tmp_path / "source", SMALL_MIXTRAL, dtype="F32")
    path = tmp_path / "source" / "model.safetensors"
    header_bytes = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    start, _ = json.loads(path.read_bytes()[8:header_bytes])[name]["data_offsets"]
    with path.open("r+b") as file:
        file.seek(header_bytes + start + 4 * 17)
        file.write(np.float32(bad).tobytes())
    with pytest.raises(SourceError, match=name.replace(".", r"\.")):
        convert_checkpoint(str(tmp_path / "source"), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_disk_without_room_is_told_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StoreError, match=r"the store needs .* MB more, and 0\.0 MB are free"):
        convert_checkpoint(str(checkpoint), tmp_path / "store")
    monkeypatch.undo()
    assert convert_checkpoint(str(checkpoint), tmp_path / "store").is_dir()


@pytest.mark.parametrize(("number", "message"), [(errno.ENOSPC, "the disk is full"), (errno.EIO, "cannot be written")])
@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_disk_that_fails_midway_keeps_what_was_done(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str, call: str
) -> None:
    expected = folder_bytes(convert_checkpoint(str(checkpoint), tmp_path / "undisturbed"))
    real, calls = getattr(os, call), []

    def fail(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) > 5:
            raise OSError(number, os.strerror(number))
        return real(*arguments)

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StoreError, match=message) as caught:
        convert_checkpoint(str(checkpoint), tmp_path / "store")
    assert "the same command goes on from there" in caught.value.hint
    assert not (tmp_path / "store").exists()
    monkeypatch.undo()
    assert folder_bytes(convert_checkpoint(str(checkpoint), tmp_path / "store")) == expected


def _convert(source: QuantisedSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Store:
    monkeypatch.setattr(pipeline, "open_source", lambda *a, **k: source)
    return Store.open(convert_checkpoint("quantised", tmp_path / "store", **options))


def _assert_weights(store: Store, source: QuantisedSource) -> None:
    found = store_weights(store)
    places = resolve(source.config, {name: info.shape for name, info in source.tensors().items()})
    for name, place in places.items():
        value = source.blocks[place.tensor]
        wanted = dequantise(value) if isinstance(value, Blocks) else value
        assert np.array_equal(found[name], wanted[place.row_start : place.row_stop]), name


@pytest.mark.parametrize(("dtype", "fmt"), [("Q4_0", "q4"), ("Q4_1", "q4m"), ("Q8_0", "q8"), ("MXFP4", "m4")])
def test_quantised_blocks_carry_over_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, fmt: str
) -> None:
    source = QuantisedSource(lambda name: dtype)
    store = _convert(source, tmp_path, monkeypatch)
    _assert_weights(store, source)
    statistics = store.manifest.quantisation
    for kind in ("experts", "attention", "embedding", "head"):
        assert statistics[kind]["formats"] == [fmt]
        assert statistics[kind]["relative_error"] == 0
    assert statistics["router"]["formats"] == ["f32"]


@every_case(("first", "second", "formats"), [("Q4_0", "Q4_1", ("q4", "q4m")), ("MXFP4", "Q4_0", ("m4", "q4"))])
def test_gate_and_up_of_two_dtypes_carry_over_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str, formats: tuple[str, str]
) -> None:
    source = QuantisedSource(lambda name: second if ".w3." in name else first)
    store = _convert(source, tmp_path, monkeypatch)
    _assert_weights(store, source)
    layout = store.layouts_of_layers[0][0].matrices
    assert (layout.gate_format.name, layout.up_format.name, layout.down_format.name) == (*formats, formats[0])
    assert [section.name for section in store.manifest.layouts[0].sections] == ["gate", "up", "down"]


@every_case(("dtype", "fmt"), [("BF16", "bf16"), ("F16", "f16"), ("F32", "f32"), ("F64", "f32")])
def test_floats_are_kept_in_their_own_format(tmp_path: Path, dtype: str, fmt: str) -> None:
    write_checkpoint(tmp_path / "model", SMALL_MIXTRAL, dtype=dtype)
    store = Store.open(convert_checkpoint(str(tmp_path / "model"), tmp_path / "store", experts="keep", dense="keep"))
    statistics = store.manifest.quantisation
    for kind in ("experts", "attention", "embedding"):
        assert statistics[kind]["formats"] == [fmt]
        assert statistics[kind]["relative_error"] == 0 or dtype == "F64"
    weights, tensors = store_weights(store), read_tensors(tmp_path / "model")
    name = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    np.testing.assert_array_equal(weights["layers.1.experts.2.down"], tensors[name].astype(np.float32))
    with open_engine(store, EngineOptions(threads=1)) as engine:
        assert np.isfinite(engine.forward([1, 2, 3])).all()


def test_experts_of_one_layer_keep_their_own_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes = ["Q4_0", "Q8_0", "Q4_1", "Q4_0"]
    source = QuantisedSource(lambda name: dtypes[int(name.split(".")[5])] if ".experts." in name else "Q8_0")
    store = _convert(source, tmp_path, monkeypatch)
    _assert_weights(store, source)
    formats = [store.manifest.layouts[record.layout].matrices.up_format.name for record in store.manifest.records]
    assert formats == ["q4", "q8", "q4m", "q4"] * 2
    assert store.manifest.quantisation["experts"]["formats"] == ["q4", "q4m", "q8"]
    assert store.manifest.quantisation["experts"]["relative_error"] == 0
    assert verify_store(store) == []
    assert len({store.record(0, expert).length for expert in range(4)}) == 2


def test_an_option_is_obeyed_for_quantised_sources_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = QuantisedSource(lambda name: "Q8_0")
    statistics = _convert(source, tmp_path, monkeypatch, experts="q4", dense="f16").manifest.quantisation
    assert statistics["experts"]["formats"] == ["q4"]
    assert 0.05 < statistics["experts"]["relative_error"] < 0.12
    assert statistics["attention"]["formats"] == ["f16"]


def test_scales_that_are_not_finite_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = QuantisedSource(lambda name: "Q4_0")
    name = "model.layers.0.block_sparse_moe.experts.3.w1.weight"
    source.blocks[name].scales[7, 1] = np.inf
    with pytest.raises(SourceError, match=r"experts\.3\.w1\.weight: expected finite numbers, found inf"):
        _convert(source, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("scale", "match"), [(255, r"scales that are numbers, found NaN \(the e8m0 byte 255\)"), (254, "found -?inf")]
)
@pytest.mark.parametrize("experts", [None, "m4", "q8"])
def test_m4_weights_that_are_no_float32_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: int, match: str, experts: str | None
) -> None:
    source = QuantisedSource(lambda name: "MXFP4")
    blocks = source.blocks["model.layers.0.block_sparse_moe.experts.3.w1.weight"]
    blocks.scales[7, 1] = scale
    blocks.values[7, 40] = 7
    with pytest.raises(SourceError, match=rf"experts\.3\.w1\.weight: expected .*{match}"):
        _convert(source, tmp_path, monkeypatch, experts=experts)


@pytest.mark.parametrize("experts", ["f32", "f16", "q8"])
def test_m4_is_exact_in_every_wider_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experts: str) -> None:
    source = QuantisedSource(lambda name: "MXFP4")
    blocks = source.blocks["model.layers.1.block_sparse_moe.experts.0.w1.weight"]
    blocks.values[5, 32:64] = 0
    blocks.scales[5, 1] = 0  # as converters write groups of zeros: no float16, as a scale
    store = _convert(source, tmp_path, monkeypatch, experts=experts)
    _assert_weights(store, source)
    assert store.manifest.quantisation["experts"]["formats"] == [experts]
    assert store.manifest.quantisation["experts"]["relative_error"] == 0


def test_m4_with_a_scale_beyond_float16_is_rounded_to_q8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = QuantisedSource(lambda name: "MXFP4")
    source.blocks["model.layers.1.block_sparse_moe.experts.0.w1.weight"].scales[5, 1] = 127 - 40
    store = _convert(source, tmp_path, monkeypatch, experts="q8")
    assert 0 < store.manifest.quantisation["experts"]["relative_error"] < 0.01


@pytest.mark.parametrize("name", ["~/models/tiny", "~nobody-of-this-name/tiny", "~"])
def test_no_folder_called_tilde_is_made_where_the_home_is_not_known(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Shells and Python leave a `~` as it is where they know no home (the manual of os.path.expanduser)."""
    without_home(monkeypatch)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UsageError, match=r"expected a folder to make, found no home folder that ~\S* stands for"
    ) as error:
        convert_checkpoint(str(checkpoint), name)
    assert f"./{name}" in (error.value.hint or "")
    assert not list(tmp_path.glob("~*"))
