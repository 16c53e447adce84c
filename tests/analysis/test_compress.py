"""Stores with fewer experts: what stays is the same bit for bit, and they compute what such a model computes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgemoe.analysis.choices import Choice
from edgemoe.analysis.compress import check_store, router_groups, write_compressed
from edgemoe.analysis.merging import check_widths
from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.errors import EdgemoeError, UsageError
from edgemoe.kernels.formats import FORMATS
from edgemoe.store.layouts import packed_layout
from edgemoe.store.reader import Store
from edgemoe.store.verification import verify_store
from tests.support.checkpoints import read_tensors, write_checkpoint

KEPT = {0: Choice.of([1, 3]), 1: Choice.of([0, 2, 3])}
EVEN = {0: Choice.of([1, 3]), 1: Choice.of([0, 2])}
MERGED = {layer: Choice(((0, 2), (1,), (3,)), ((0.75, 0.25), (1.0,), (1.0,))) for layer in (0, 1)}


def logits(store: Path) -> np.ndarray:
    with open_engine(store, EngineOptions()) as engine:
        return engine.forward(np.arange(1, 41) % 50, all_logits=True)


def without_experts(folder: Path, to: Path, choices: Mapping[int, Choice]) -> Path:
    """A checkpoint whose experts are pruned or merged by hand."""
    tensors = read_tensors(folder)
    found = {name: own for name, own in tensors.items() if "block_sparse_moe" not in name}
    for layer, choice in choices.items():
        stem = f"model.layers.{layer}.block_sparse_moe"

        def mean(name: str, own: tuple[int, ...], of: tuple[float, ...], stem: str = stem) -> np.ndarray:
            rows = [tensors[f"{stem}.experts.{expert}.{name}.weight"].astype(np.float64) for expert in own]
            return np.average(rows, axis=0, weights=of).astype(np.float32)

        pairs = list(zip(choice.members, choice.weights, strict=True))
        for number, (own, of) in enumerate(pairs):
            for name in ("w1", "w2", "w3"):
                found[f"{stem}.experts.{number}.{name}.weight"] = mean(name, own, of)
        router = tensors[f"{stem}.gate.weight"].astype(np.float64)
        rows = [np.average(router[list(own)], axis=0, weights=of) for own, of in pairs]
        found[f"{stem}.gate.weight"] = np.array(rows).astype(np.float32)
    to.mkdir()
    config = json.loads((folder / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | {"num_local_experts": len(choices[0].members)}))
    save_file(found, to / "model.safetensors")
    return to


@pytest.mark.parametrize("choices", [EVEN, MERGED], ids=["pruned", "merged"])
def test_a_store_is_that_of_the_model_with_these_experts(
    mixtral: Path, exact: Store, tmp_path: Path, choices: dict[int, Choice]
) -> None:
    made = Store.open(write_compressed(exact, tmp_path / "made", choices, "by hand"))
    assert verify_store(made) == []
    source = without_experts(mixtral, tmp_path / "source", choices)
    expected = Store.open(convert_checkpoint(str(source), tmp_path / "expected", experts="f32", dense="f32"))
    assert made.model == expected.model
    names = [(tensor.name, tensor.sha256) for tensor in expected.manifest.dense]
    assert [(tensor.name, tensor.sha256) for tensor in made.manifest.dense] == names
    assert np.array_equal(made.manifest.records.sha256, expected.manifest.records.sha256)
    assert np.array_equal(logits(made.path), logits(expected.path))
    config = json.loads((made.path / "config.json").read_text())
    assert config["num_local_experts"] == len(choices[0].members)
    assert made.manifest.provenance["compressed"] == "by hand"
    own, other = (store.manifest.quantisation["experts"]["parameters"] for store in (made, exact))
    assert own == other * len(choices[0].members) // 4


@pytest.mark.slow
@pytest.mark.parametrize("experts", ["q4", "n2,down=n3", "n1+n3", "sub1", "q4,down=q8"])
def test_records_of_every_kind_stay_bit_for_bit(mixtral: Path, tmp_path: Path, experts: str) -> None:
    store = Store.open(convert_checkpoint(str(mixtral), tmp_path / "store", experts=experts, dense="q8"))
    made = Store.open(write_compressed(store, tmp_path / "made", KEPT, "by hand"))
    assert verify_store(made) == []
    for layer, choice in KEPT.items():
        for number, (expert,) in enumerate(choice.members):
            before, after = store.record(layer, expert), made.record(layer, number)
            assert before.crc32c == after.crc32c
            assert before.length == after.length
    changed = {tensor.name for tensor in store.manifest.dense if "router" in tensor.name or ".bases." in tensor.name}
    unchanged = {tensor.name: tensor.sha256 for tensor in store.manifest.dense if tensor.name not in changed}
    assert unchanged == {tensor.name: tensor.sha256 for tensor in made.manifest.dense if tensor.name not in changed}
    assert np.isfinite(logits(made.path)).all()
    # layers of unlike numbers of experts are no config's
    assert (made.path / "config.json").read_bytes() == (store.path / "config.json").read_bytes()


@pytest.mark.slow
def test_all_members_alike_are_the_model_itself(mixtral: Path, tmp_path: Path) -> None:
    """Any two of four experts that are one, or means of them, compute the same."""
    source = tmp_path / "source"
    write_checkpoint(source, json.loads((mixtral / "config.json").read_text()))
    tensors = dict(read_tensors(source))
    for name in list(tensors):
        if ".experts." in name:
            head, _, tail = name.partition(".experts.")
            tensors[name] = tensors[f"{head}.experts.0.{tail.partition('.')[2]}"]
    for file in source.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, source / "model.safetensors")
    store = Store.open(convert_checkpoint(str(source), tmp_path / "store", experts="f32", dense="f32"))
    half = Choice(((0, 1), (2, 3)), ((0.5, 0.5),) * 2)
    for number, choice in enumerate((Choice.of([0, 3]), half)):
        made = write_compressed(store, tmp_path / f"made-{number}", {0: choice, 1: choice}, "by hand")
        assert np.allclose(logits(made), logits(store.path), atol=1e-5)


def test_what_fails_leaves_nothing(exact: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        write_compressed(exact, tmp_path / "there", EVEN, "by hand")
    with pytest.raises(UsageError, match="expected a folder to make, in one that exists"):
        write_compressed(exact, tmp_path / "none" / "made", EVEN, "by hand")
    place = exact.record(1, 2)
    monkeypatch.setattr(Store, "record", lambda self, layer, expert: replace(place, crc32c=1))
    with pytest.raises(EdgemoeError, match="differs from what was written"):
        write_compressed(exact, tmp_path / "made", EVEN, "by hand")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_experts_of_unlike_widths_are_not_merged(exact: Store) -> None:
    assert router_groups(check_store(exact)) == {0: 1, 1: 1}
    layouts = [packed_layout(64, width, FORMATS["q4"], FORMATS["q4"]) for width in (64, 72)]
    with pytest.raises(UsageError, match="experts of one width in layer 3, found widths of 64 and 72"):
        check_widths(layouts, 3)
    check_widths(layouts[:1], 3)


def test_the_experts_of_a_router_of_levels_stay_as_many(tmp_path: Path) -> None:
    """The sizes of its levels say how many there are."""
    golden = Path(__file__).parent.parent / "golden" / "carrier_levels"
    store = Store.open(convert_checkpoint(str(golden), tmp_path / "levels", experts="q4", dense="q8"))
    with pytest.raises(UsageError, match="expected a router of one level, found several"):
        check_store(store)
