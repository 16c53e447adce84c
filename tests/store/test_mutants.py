"""Damaged stores: each ends in one clear error, or in the very bits of the store as it was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import edgemoe
from edgemoe.conversion.pipeline import convert_checkpoint
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint
from tests.support.letters_tokenizer import write_letters_tokenizer
from tests.support.mutants import Tally, mutants, overwrite

SIDE_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
FILES = ("edgemoe.json", "records.safetensors", "resident.safetensors", "experts-00000.safetensors", *SIDE_FILES)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutants")
    write_checkpoint(folder / "checkpoint", SMALL_MIXTRAL)
    write_letters_tokenizer(folder / "checkpoint")
    sampling = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "eos_token_id": [3, 95]}
    (folder / "checkpoint" / "generation_config.json").write_text(json.dumps(sampling))
    return convert_checkpoint(str(folder / "checkpoint"), folder / "store")


def use(store: Path) -> tuple[Any, ...]:
    """All that a store decides: logits to the bit, ids of a text, the template, how to sample and where to end."""
    with edgemoe.load(store, threads=1, context_length=64, warm_start=False) as model:
        ids = model.encode("The quick brown fox.")
        return (
            model.logits(ids).tobytes(),
            ids,
            model.template.source,
            model.template.special_tokens,
            model.default_sampling,
            model.tokenizer.stop_ids,
        )


def tally(store: Path, counts: dict[str, int], seed: int) -> Tally:
    expected = use(store)
    found = Tally()
    for name, count in counts.items():
        path = store / name
        whole = path.read_bytes()
        try:
            for what, data in mutants(whole, count, seed):
                overwrite(path, data)
                found.count(f"{name}, {what}", lambda: use(store), lambda result: result == expected)
        finally:
            overwrite(path, whole)
    assert use(store) == expected
    return found


def test_some_damaged_stores_end_in_an_error_or_in_the_same_bits(store: Path) -> None:
    counts = dict.fromkeys(FILES, 4) | {"edgemoe.json": 40, "experts-00000.safetensors": 8}
    found = tally(store, counts, seed=1)
    found.require_no_fault(sum(counts.values()))
    assert found.refused > 0.85 * sum(counts.values())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_damaged_stores_end_in_an_error_or_in_the_same_bits(store: Path) -> None:
    """28,000 of them, in two minutes of a processor's time; those that are not refused change nothing that is read."""
    counts = dict.fromkeys(SIDE_FILES, 1000) | {
        "edgemoe.json": 12_000,
        "records.safetensors": 4000,
        "resident.safetensors": 4000,
        "experts-00000.safetensors": 4000,
    }
    found = tally(store, counts, seed=2)
    found.require_no_fault(28_000)
    assert found.refused > 0.85 * 28_000
