import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgemoe.errors import StoreError
from edgemoe.model.description import store_spec
from edgemoe.store.reader import Store
from tests.support.every_case import every_case
from tests.support.stores import edit_manifest, small_store

MODEL, LAYER = ("model",), ("model", "layers", 0)
ATTENTION, MOE = (*LAYER, "blocks", 0, "body"), (*LAYER, "blocks", 1, "body")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return small_store(tmp_path_factory.mktemp("description"))


def altered(store: Store, folder: Path, place: Sequence[str | int], value: object) -> Store:
    """A copy of a store with one value of its manifest changed."""
    shutil.copytree(store.path, folder / "store")

    def change(table: Any) -> None:
        for key in place[:-1]:
            table = table[key]
        table[place[-1]] = value

    edit_manifest(folder / "store", change)
    return Store.open(folder / "store")


def test_what_was_written_is_understood(store: Store) -> None:
    assert store_spec(store).to_json() == store.model


@every_case("value", [None, "x", True, -1, 0, 1.5, 2**40, [], {}])
@every_case(
    "place",
    [
        (*MODEL, "vocab_size"),
        (*MODEL, "max_positions"),
        (*ATTENTION, "head_dim"),
        (*MOE, "top_k"),
    ],
)
def test_counts_must_be_counts(store: Store, tmp_path: Path, place: tuple[str | int, ...], value: object) -> None:
    with pytest.raises(StoreError, match="description of the model"):
        store_spec(altered(store, tmp_path, place, value))


@every_case(
    ("place", "value", "message"),
    [
        ((*MODEL, "norm_epsilon"), {}, r"model\.norm_epsilon is"),
        ((*ATTENTION, "rope", "theta"), 0.5, "theta 0.5"),
        ((*ATTENTION, "rope", "scaling"), "yarn", "yarn of theta"),
        ((*ATTENTION, "rope", "parameters"), {"factor": 2.0}, "with factor"),
        ((*MODEL, "tied_embeddings"), 1, r"tied_embeddings is '1'"),
        ((*MODEL, "surprise"), 1, "surprise"),
        ((*ATTENTION, "qk_norm"), "both", "qk_norm is"),
        ((*ATTENTION, "kv_heads"), 3, "3 key heads"),
        ((*MOE, "kind"), [], r"body\.kind is"),
        ((*MOE, "top_k"), 5, "router: experts: expected at most 4 per token, found 5"),
        ((*MOE, "shared"), {"gate": True}, r"shared\.intermediate_size is missing"),
    ],
)
def test_values_that_cannot_be_run_are_named(
    store: Store, tmp_path: Path, place: tuple[str | int, ...], value: object, message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        store_spec(altered(store, tmp_path, place, value))


@every_case(
    ("place", "value", "message"),
    [
        ((*MODEL, "vocab_size"), 100, r"embedding: expected \(100, 64\), found \(101, 64\)"),
        ((*MODEL, "hidden_size"), 32, r"expected experts of .* \(4, 32, 72\), found \(4, 64, 72\)"),
        ((*MODEL, "tied_embeddings"), True, "'head' is not a tensor"),
        ((*ATTENTION, "qk_norm"), "head", r"layers\.0\.query_norm is missing"),
        ((*ATTENTION, "heads"), 2, r"layers\.0\.query: expected \(32, 64\)"),
        ((*MOE, "num_experts"), 2**30, r"expected experts of .* \(1073741824, 64, 72\), found \(4, 64, 72\)"),
        ((*MOE, "shared"), {"intermediate_size": 8}, r"layers\.0\.shared\.gate_up is missing"),
        (MOE, {"kind": "gated_ffn", "intermediate_size": 72}, r"layer 0: expected .* none, found \(4, 64, 72\)"),
        (("experts", "counts"), [8, 0], r"layer 0: expected .* \(4, 64, 72\), found \(8, 64, 72\)"),
        (("experts", "counts"), [0, 8], r"layer 0: expected .* \(4, 64, 72\), found none"),
        (("resident", "tensors", 0, "name"), "x", "embedding is missing"),
    ],
)
def test_sizes_must_be_those_of_the_tensors(
    store: Store, tmp_path: Path, place: tuple[str | int, ...], value: object, message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        store_spec(altered(store, tmp_path, place, value))
