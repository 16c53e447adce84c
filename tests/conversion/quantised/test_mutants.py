"""Altered tensors and settings of every scheme are shown as something, or refused as a SourceError: nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemoe.conversion.encoding import encode
from edgemoe.conversion.formats import block_format
from edgemoe.conversion.quantised.source import shown_dtypes, with_blocks
from edgemoe.errors import SourceError
from edgemoe.kernels.formats import FORMATS
from edgemoe.store.headers import ELEMENT_BYTES
from tests.conversion.quantised.schemes import CASES
from tests.support.bytes_source import BytesSource
from tests.support.checkpoints import SMALL_MIXTRAL
from tests.support.examples import examples

STEM = "model.layers.0.mlp.experts.1.up_proj"
ALL_DTYPES = sorted(ELEMENT_BYTES)
SCHEMES = sorted(CASES)
JSON = st.one_of(
    st.sampled_from([None, True, -1, 0, 3, 4.0, "int", [128, 128], [[]], {"bits": 4}]),
    st.integers(-2, 300),
    st.text(max_size=6),
)


@st.composite
def checkpoints(draw: st.DrawFn) -> BytesSource:
    """The tensors of one matrix of a scheme, one of which has another shape, dtype or bytes, and other settings."""
    case = CASES[draw(st.sampled_from(SCHEMES))]
    tensors, _ = case.writer((32, 128), np.random.default_rng(draw(st.integers(0, 3))))
    dtypes = {STEM + end: dtype for end, dtype in case.dtypes.items() if end in tensors}
    end = draw(st.sampled_from(sorted(tensors)))
    values: np.ndarray[Any, Any] = tensors[end]
    change = draw(st.sampled_from(["shape", "dtype", "bytes", "gone", "settings"]))
    chosen: Any = case.settings
    if change == "shape":
        shape = tuple(draw(st.lists(st.integers(0, 40), max_size=4)))
        values = np.zeros(shape, values.dtype)
    if change == "dtype":
        dtypes[STEM + end] = draw(st.sampled_from(ALL_DTYPES))
        values = np.zeros(values.shape, f"u{ELEMENT_BYTES[dtypes[STEM + end]]}")
    if change == "bytes":
        held = bytearray(values.tobytes())
        for place, byte in draw(st.lists(st.tuples(st.integers(0, len(held) - 1), st.integers(0, 255)), max_size=4)):
            held[place] = byte
        values = np.frombuffer(bytes(held), values.dtype).reshape(values.shape)
    if change == "settings":
        key = draw(st.sampled_from(sorted(case.settings)))
        chosen = {**case.settings, key: draw(JSON)}
    tensors = {**tensors, end: values}
    if change == "gone":
        del tensors[end]
    return BytesSource({STEM + e: v for e, v in tensors.items()}, {**SMALL_MIXTRAL, case.key: chosen}, dtypes)


def check(source: BytesSource) -> None:
    """Show and encode all of it, and know it by its names alone; a SourceError with a way out may come of either."""
    try:
        shown = with_blocks(source)
        for name, info in shown.tensors().items():
            fmt = block_format(info.dtype)
            if fmt is not None:
                rows = info.shape[-2]
                encode(shown.read_rows(name, 0 if len(info.shape) == 3 else None, 0, rows), FORMATS[fmt], name)
    except SourceError as problem:
        assert problem.message
        assert problem.hint
    try:
        shown_dtypes(source.config, source.tensors())
    except SourceError as problem:
        assert problem.message
        assert problem.hint


@settings(max_examples=examples(150), deadline=None)
@given(checkpoints())
def test_whatever_is_altered_is_refused_or_encoded(source: BytesSource) -> None:
    check(source)


@pytest.mark.slow
@settings(max_examples=examples(4_000), deadline=None)
@given(checkpoints())
def test_whatever_is_altered_is_refused_or_encoded_in_many_ways(source: BytesSource) -> None:
    check(source)
