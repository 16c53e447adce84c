"""Damaged headers and configs of every kind of source: each ends in one clear error, or opens as what it says.

What is opened is looked at by its sizes alone, so that a mutant takes a millisecond or two: `gguf/test_mutants.py` and
`quantised/test_mutants.py` hold fewer of them to their numbers. FUZZED says how many there are in all; of 100,000, on
two processors:

    FUZZED=100000 python -m pytest tests/conversion/test_fuzzed_headers.py -m slow -n 2 --dist worksteal
"""

from __future__ import annotations

import contextlib
import os
import resource
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe.conversion.encoding import encode
from edgemoe.conversion.formats import KEEP, FormatChoice
from edgemoe.conversion.gguf.file import read_gguf
from edgemoe.conversion.gguf_store import GgufStore
from edgemoe.conversion.opening import open_source
from edgemoe.conversion.plan import Plan, plan_conversion
from edgemoe.conversion.source import read_slice
from edgemoe.model.description import store_spec
from tests.conversion.gguf.test_mutants import CONFIG, TOKENIZER
from tests.conversion.gguf.test_source import CONFIGS
from tests.conversion.quantised.schemes import CASES
from tests.support.checkpoints import SMALL_MIXTRAL, read_tensors, write_checkpoint
from tests.support.gguf_files import write_gguf
from tests.support.mutants import Tally, mutants, overwrite
from tests.support.quantised_checkpoints import write_quantised_checkpoint

FUZZED = int(os.environ.get("FUZZED", "16000"))
SLOWEST_S = 5.0
MEMORY_BYTES = 400 << 20
KEPT = FormatChoice(experts=KEEP, dense=KEEP)

GGUF_MODELS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "qwen3_moe": (
        CONFIG,
        {"down_exps": "MXFP4", "_exps": "Q4_0", "attn_q.w": "Q8_0", "attn_k.w": "Q4_1", "attn_v": "F16", ".": "BF16"},
    ),
    "qwen3_moe in mixes": (
        CONFIG | {"hidden_size": 256},
        {
            "gate_exps": "IQ2_XS",
            "up_exps": "Q4_K",
            "down_exps": "Q5_1",
            "attn_q.w": "IQ3_S",
            "attn_k.w": "TQ1_0",
            ".": "F32",
        },
    ),
    **{
        name: (CONFIGS[name] | {"vocab_size": 4}, {"_exps": "Q4_0", ".": "F32"})
        for name in ("gpt_oss", "deepseek_v3", "qwen3_5_moe", "minimax_m2", "hunyuan_v1_moe", "lfm2_moe")
    },
}
"""Small files of families whose metadata differ, and of many types; their headers, of which every byte matters, are the
first kilobytes."""

QUANTISED = [name for name in CASES if "128" not in name and "64" not in name]
"""Schemes whose groups fit rows of 32 and of 64."""

PARTS = 2
"""Tests for each GGUF model, which processors share."""


class Limits:
    """The time that each mutant takes, and the memory that all take."""

    def __init__(self) -> None:
        self.before, self.slowest = peak_bytes(), (0.0, "")

    def timed(self, what: str, run: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        try:
            return run()
        finally:
            self.slowest = max(self.slowest, (time.perf_counter() - begun, what))

    def check(self) -> None:
        assert self.slowest[0] < SLOWEST_S, self.slowest
        assert peak_bytes() - self.before < MEMORY_BYTES


def fuzz(
    whole: bytes, count: int, seed: int, put: Callable[[bytes], Any], opened: Callable[[], Any], names: Sequence[str]
) -> None:
    """Open `count` mutants of some bytes, which `put` puts in their place; an error has one of the names in it."""
    tally, limits = Tally(), Limits()
    for what, data in mutants(whole, count, seed):
        put(data)
        tally.count(what, lambda what=what: limits.timed(what, opened), lambda result: True, names)
    tally.require_no_fault(count)
    if count >= 200:
        assert tally.refused > 0
        assert tally.same > 0
    limits.check()


def some(share: float, tests: int) -> int:
    """The mutants of one of some tests, which have a share of all."""
    return max(8, round(FUZZED * share / tests))


# ---- GGUF ----------------------------------------------------------------------------------------------------------


def write_gguf_model(folder: Path, name: str) -> Path:
    config, kinds = GGUF_MODELS[name]
    write_checkpoint(folder / "checkpoint", config, dtype="F32")
    tensors = read_tensors(folder / "checkpoint")
    return write_gguf(folder / "m.gguf", config, tensors, kinds=kinds, tokenizer=TOKENIZER)


def open_gguf(path: Path) -> None:
    """Open a file as it is, and see that its numbers fit together: every part of a record lies in the file."""
    store = GgufStore.open_file(path)
    store_spec(store)
    size, records = path.stat().st_size, store.manifest.records
    if not len(records):
        return
    places = records.places
    assert places is not None
    ends = [
        places.offset[places.first[row] : places.first[row + 1]] + store.manifest.layouts[layout].parts["bytes"]
        for row, layout in enumerate(records.layout)
    ]
    assert places.offset.min() >= 0
    assert np.concatenate(ends).max() <= size


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", GGUF_MODELS)
def test_headers_of_gguf_files(name: str, part: int, tmp_path: Path) -> None:
    path = write_gguf_model(tmp_path, name)
    whole = path.read_bytes()
    end = min(tensor.offset for tensor in read_gguf(path).tensors.values())
    header, weights = whole[:end], whole[end:]
    most = [one for one in GGUF_MODELS if one.startswith("qwen3_moe")]
    count = some(0.4, len(most) * PARTS) if name in most else some(0.2, (len(GGUF_MODELS) - len(most)) * PARTS)
    fuzz(header, count, part, lambda data: overwrite(path, data + weights), lambda: open_gguf(path), ["m.gguf"])


# ---- checkpoints ---------------------------------------------------------------------------------------------------


def write_quantised_model(folder: Path, name: str) -> None:
    case = CASES[name]
    config = {**SMALL_MIXTRAL, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 8, "num_hidden_layers": 1}
    config |= {"num_local_experts": 2, "num_experts_per_tok": 1, case.key: case.settings}
    write_quantised_checkpoint(folder, config, case.writer, lambda name: ".experts." in name, case.dtypes)


def plan_checkpoint(folder: Path) -> Plan:
    """Plan the conversion of a folder, all of whose parts have sizes that its file has numbers for."""
    with contextlib.closing(open_source(str(folder))) as source:
        plan = plan_conversion(source, KEPT, {})
    size = (folder / "model.safetensors").stat().st_size
    assert all(part.bytes <= 64 * size for part in plan.parts.values())
    return plan


def encode_checkpoint(folder: Path) -> None:
    """Convert the matrices of one expert."""
    with contextlib.closing(open_source(str(folder))) as source:
        for piece in plan_conversion(source, KEPT, {}).pieces:
            if piece.name.startswith("layers.0.experts.1."):
                rows = read_slice(source, piece.source, 0, piece.place.rows)
                encode(rows, piece.place.format, f"model.safetensors: {piece.source.tensor}")


@pytest.mark.slow
@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_checkpoints(name: str, tmp_path: Path) -> None:
    """Their configs, the headers of their weights, and their weights."""
    write_quantised_model(tmp_path / "model", name)
    config, file = tmp_path / "model" / "config.json", tmp_path / "model" / "model.safetensors"
    whole = file.read_bytes()
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    header, weights = whole[:end], whole[end:]
    names, folder = (
        ("config.json", "safetensors", "model.", "layers.", "experts.", "lm_head", ".weight"),
        tmp_path / "model",
    )
    text, count = config.read_bytes(), some(0.18, len(QUANTISED))
    fuzz(text, count, 1, lambda data: overwrite(config, data), lambda: plan_checkpoint(folder), names)
    overwrite(config, text)
    fuzz(header, count, 2, lambda data: overwrite(file, data + weights), lambda: plan_checkpoint(folder), names)
    count = some(0.04, len(QUANTISED))
    fuzz(weights, count, 3, lambda data: overwrite(file, header + data), lambda: encode_checkpoint(folder), names)


def peak_bytes() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
