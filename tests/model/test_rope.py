"""Rotary tables: what each rule of scaling does to the frequencies. (Golden tables: tests/architectures.)"""

from __future__ import annotations

import numpy as np
import pytest

from edgemoe.model.rope import RopeSpec, rope_tables


def plain(width: int) -> RopeSpec:
    return RopeSpec(10_000.0, width)


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512.0,
}
YARN = {
    "factor": 8.0,
    "original_max_position_embeddings": 512.0,
    "attention_factor": 1.25,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": 1.0,
}


def test_the_definition():
    cosine, sine = rope_tables(plain(4), 100)
    angles = np.arange(100)[:, None] * np.array([1.0, 0.01])
    np.testing.assert_allclose(cosine, np.cos(angles), atol=1e-5)
    np.testing.assert_allclose(sine, np.sin(angles), atol=1e-5)
    assert cosine.dtype == sine.dtype == np.float32
    assert cosine.flags.c_contiguous


def test_rows_do_not_depend_on_how_many_there_are():
    long = rope_tables(plain(8), 9000)
    for tokens in (1, 4096, 4097):
        for few, many in zip(rope_tables(plain(8), tokens), long, strict=True):
            np.testing.assert_array_equal(few, many[:tokens])


def test_linear_stretches_positions():
    stretched = rope_tables(RopeSpec(10_000.0, 16, "linear", {"factor": 4.0}), 401)
    for slow, fast in zip(stretched, rope_tables(plain(16), 101), strict=True):
        np.testing.assert_array_equal(slow[::4], fast)  # a quarter is exact


@pytest.mark.parametrize(
    ("spec", "gain"),
    [(RopeSpec(10_000.0, 64, "llama3", LLAMA3), 1.0), (RopeSpec(10_000.0, 64, "yarn", YARN), 1.25)],
    ids=["llama3", "yarn"],
)
def test_fast_pairs_are_kept_and_slow_ones_stretched(spec, gain):
    cosine, sine = rope_tables(spec, 65)
    plain_cosine, plain_sine = rope_tables(plain(64), 65)
    np.testing.assert_array_equal(cosine[:, 0], plain_cosine[:, 0] * np.float32(gain))
    np.testing.assert_array_equal(sine[:, 0], plain_sine[:, 0] * np.float32(gain))
    np.testing.assert_allclose(sine[64, -1], plain_sine[8, -1] * gain, rtol=1e-6)
    # Pairs between the two lie between them.
    angles = np.arctan2(sine[1], cosine[1])
    plain_angles = np.arctan2(plain_sine[1], plain_cosine[1])
    assert (angles <= plain_angles * 1.000001).all()
    assert (angles >= plain_angles / 8 * 0.999999).all()
    assert ((angles < plain_angles * 0.99) & (angles > plain_angles / 7.9)).any()
