"""CRC-32C: the published examples, a bitwise reference, and the same from every implementation."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemoe.errors import KernelError
from edgemoe.io import checksum
from edgemoe.io.checksum import as_written, combined_crc32c, crc32c
from edgemoe.kernels.jit.checksum import jit_crc32c
from edgemoe.kernels.native.checksum import NativeChecksum
from edgemoe.kernels.native.library import available_isas
from tests.support.examples import examples

Implementation = Callable[[np.ndarray, int], int]

try:
    IMPLEMENTATIONS: dict[str, Implementation] = {isa: NativeChecksum(isa).crc32c for isa in available_isas()}
except KernelError:
    IMPLEMENTATIONS = {}
IMPLEMENTATIONS["jit"] = jit_crc32c

# RFC 3720, appendix B.4, where the bytes of each checksum are given in order of the wire
EXAMPLES = [
    (b"", 0),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (b"123456789", 0xE3069283),
]


@functools.cache
def bitwise_prefixes(data: bytes) -> list[int]:
    """The CRC-32C of each beginning of a message, the empty one first, by the definition: one bit at a time."""
    register, found = 0xFFFFFFFF, [0]
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
        found.append(register ^ 0xFFFFFFFF)
    return found


def bitwise(data: bytes) -> int:
    return bitwise_prefixes(data)[-1]


@pytest.fixture(params=sorted(IMPLEMENTATIONS))
def implementation(request: pytest.FixtureRequest) -> Implementation:
    return IMPLEMENTATIONS[request.param]


@pytest.mark.parametrize(("message", "expected"), EXAMPLES)
def test_published_examples(implementation: Implementation, message: bytes, expected: int) -> None:
    assert implementation(np.frombuffer(message, np.uint8), 0) == expected
    assert bitwise(message) == expected


def test_every_length_and_alignment_near_the_lanes(implementation: Implementation) -> None:
    data = np.random.default_rng(0).integers(0, 256, 3 * 8192 + 9 + 7, np.uint8)
    # on both sides of three lanes of 1, 2, 4 and 8 KiB, and of a few bytes
    lengths = [*range(20), *(3 * lane + more for lane in (1024, 2048, 4096, 8192) for more in (-1, 0, 1, 8, 9))]
    for offset in (0, 1, 7):
        expected = bitwise_prefixes(data[offset:].tobytes())
        for length in lengths:
            assert implementation(data[offset : offset + length], 0) == expected[length], (length, offset)


@settings(max_examples=examples(60), deadline=None)
@given(st.binary(max_size=3000), st.binary(max_size=3000))
def test_parts_give_the_whole(first: bytes, second: bytes) -> None:
    whole = bitwise(first + second)
    parts = [(len(first), crc32c(first)), (0, 0), (len(second), crc32c(second))]
    assert combined_crc32c(parts) == (whole if len(IMPLEMENTATIONS) > 1 else None)
    assert combined_crc32c([*parts, (5, None)]) is None
    for name, implementation in IMPLEMENTATIONS.items():
        before = implementation(np.frombuffer(first, np.uint8), 0)
        assert implementation(np.frombuffer(second, np.uint8), before) == whole, name
        if name != "jit":
            apart = implementation(np.frombuffer(second, np.uint8), 0)
            assert NativeChecksum(name).combine(before, apart, len(second)) == whole


def test_all_agree_on_megabytes() -> None:
    data = np.random.default_rng(1).integers(0, 256, (9 << 20) + 13, np.uint8)
    found = {implementation(data, 0x1234ABCD) for implementation in IMPLEMENTATIONS.values()}
    assert len(found) == 1
    for name in IMPLEMENTATIONS:
        if name != "jit":
            native = NativeChecksum(name)
            cut = 5 << 20
            parts = native.crc32c(data[:cut], 0x1234ABCD), native.crc32c(data[cut:])
            assert {native.combine(*parts, data.size - cut)} == found


@settings(max_examples=examples(60), deadline=None)
@given(st.integers(0, 8 * 5000 - 32), st.integers(1, (1 << 32) - 1))
def test_any_change_within_32_bits_shows(at_bit: int, change: int) -> None:
    data = np.zeros(5000, np.uint8)
    before = crc32c(data)
    for bit in range(32):
        if change >> bit & 1:
            data[(at_bit + bit) // 8] ^= 1 << (at_bit + bit) % 8
    assert crc32c(data) != before
    assert as_written(data, crc32c(data))
    assert as_written(data, None)
    assert not as_written(data, before)


def test_without_the_native_library(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemoe.kernels.native import checksum as native

    def missing() -> None:
        raise KernelError("The native library is not there.")

    monkeypatch.setattr(native, "load_library", missing)
    for cached in (checksum._native, checksum._implementation):
        cached.cache_clear()
    try:
        assert checksum._implementation() is jit_crc32c
        assert crc32c(b"123456789") == 0xE3069283
        assert combined_crc32c([(9, 0xE3069283)]) is None
    finally:
        monkeypatch.undo()
        for cached in (checksum._native, checksum._implementation):
            cached.cache_clear()
