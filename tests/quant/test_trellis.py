"""Quantising to trellis formats: as good as was found possible, whatever the weights, and the same for any company."""

from __future__ import annotations

import numpy as np
import pytest

from edgemoe.errors import EdgemoeError
from edgemoe.kernels import trellis_search
from edgemoe.kernels.blocks import dequantise, pack, unpack
from edgemoe.kernels.formats import FORMATS
from edgemoe.kernels.trellis import TRELLISES
from edgemoe.kernels.trellis_tables import NORMAL_DEVIATIONS, NORMAL_TABLES
from edgemoe.quant.quantise import quantise
from edgemoe.quant.trellis import quantise_rows
from tests.support.matrices import quantisation_error

every_trellis = pytest.mark.parametrize("name", TRELLISES)

ERRORS = {
    "n4": (0.076, 0.084, 0.083),
    "n3": (0.149, 0.160, 0.160),
    "n2": (0.277, 0.297, 0.294),
    "n15": (0.392, 0.419, 0.416),
    "n1": (0.538, 0.573, 0.571),
    "n075": (0.642, 0.674, 0.670),
}
"""Relative errors of prototypes, on weights distributed normally, as Laplace's, and as Student's with 5 degrees."""


def drawn(kind: str, rows: int, columns: int) -> np.ndarray:
    random = np.random.default_rng(rows)
    shape = (rows, columns)
    values = {
        "normal": lambda: random.standard_normal(shape),
        "laplace": lambda: random.laplace(size=shape),
        "t5": lambda: random.standard_t(5, shape),
    }[kind]()
    return (values / 50).astype(np.float32)


def test_errors_are_those_of_the_prototype() -> None:
    values = drawn("normal", 64, 512)
    assert quantisation_error(values, quantise(values, FORMATS["n2"])) < 1.01 * ERRORS["n2"][0]


@pytest.mark.slow
@every_trellis
def test_errors_of_all_formats_are_those_of_the_prototypes(name: str) -> None:
    for kind, expected in zip(("normal", "laplace", "t5"), ERRORS[name], strict=True):
        values = drawn(kind, 512, 2048)
        assert quantisation_error(values, quantise(values, FORMATS[name])) < 1.01 * expected, kind


@every_trellis
def test_rows_do_not_depend_on_their_company(name: str) -> None:
    values = drawn("t5", 21, 300)
    together = dequantise(quantise(values, FORMATS[name]))
    assert np.array_equal(dequantise(quantise(values[3:20], FORMATS[name])), together[3:20])
    assert np.array_equal(dequantise(quantise(values[20:], FORMATS[name])), together[20:])


@every_trellis
def test_the_codes_are_those_that_numpy_finds(name: str) -> None:
    values, importance = drawn("normal", 3, 200), np.arange(200, dtype=np.float32)
    arguments = (values, TRELLISES[name], NORMAL_TABLES[name], NORMAL_DEVIATIONS[name], importance)
    native, plain = quantise_rows(*arguments), quantise_rows(*arguments, search=trellis_search.search)
    assert np.array_equal(native.codes, plain.codes)
    assert native.scales.tobytes() == plain.scales.tobytes()
    assert native.factors is plain.factors is None or np.array_equal(native.factors, plain.factors)


@every_trellis
def test_importance_weights_the_path(name: str) -> None:
    values = drawn("normal", 32, 512)
    importance = np.exp(2 * np.random.default_rng(2).standard_normal(512)).astype(np.float32)
    errors = [
        float((importance * (dequantise(quantise(values, FORMATS[name], own)) - values) ** 2).sum())
        for own in (importance, None)
    ]
    assert errors[0] < 0.8 * errors[1]


def test_equal_importance_changes_nothing() -> None:
    values = drawn("normal", 8, 256)
    plain = pack(quantise(values, FORMATS["n3"]))
    for number in (0, 1, 8):
        assert np.array_equal(pack(quantise(values, FORMATS["n3"], np.full(256, number, np.float32))), plain)


def test_columns_of_no_importance_may_become_anything() -> None:
    values = drawn("normal", 16, 256)
    importance = np.ones(256, np.float32)
    some = np.arange(256) // 4 % 2 == 0  # every other step of a chain
    importance[some] = 0
    errors = [
        np.square(dequantise(quantise(values, FORMATS["n2"], own)) - values)[:, ~some].sum()
        for own in (importance, None)
    ]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("wrong", [np.full(64, np.nan), np.full(64, -1.0), np.ones(63)])
def test_an_importance_that_is_none_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(EdgemoeError, match="importance"):
        quantise(drawn("normal", 2, 64), FORMATS["n2"], wrong.astype(np.float32))


@every_trellis
def test_rows_of_zeros_stay_so(name: str) -> None:
    values = drawn("normal", 18, 320)
    values[[0, 5, 17]] = 0
    found = dequantise(quantise(values, FORMATS[name]))
    assert (found[[0, 5, 17]] == 0).all()
    assert quantisation_error(values, quantise(values, FORMATS[name])) < 0.75


@pytest.mark.parametrize("name", ["n2", "n15", "n075"])
@pytest.mark.parametrize("columns", [1, 33, 129, 257])
def test_any_number_of_columns_is_kept(name: str, columns: int) -> None:
    values = drawn("normal", 17, columns)
    blocks = quantise(values, FORMATS[name])
    kept = unpack(pack(blocks), FORMATS[name], 17, columns)
    assert np.array_equal(dequantise(kept), dequantise(blocks))
    assert quantisation_error(values, blocks) < 0.9


@every_trellis
def test_weights_of_one_sign_and_one_far_out(name: str) -> None:
    """No row is further off than if all of it were zeros."""
    values = drawn("normal", 8, 512)
    values[:4] = np.abs(values[:4])
    values[4:6, 77] = 3
    values[6] = 0.02
    values[7, 5:] = 0
    found = dequantise(quantise(values, FORMATS[name])).astype(np.float64)
    assert ((found - values) ** 2).sum(axis=1).max() < np.square(values, dtype=np.float64).sum(axis=1).max()
    assert (((found - values) ** 2).sum(axis=1) < np.square(values, dtype=np.float64).sum(axis=1)).all()


@pytest.mark.parametrize("name", ["n3", "n1"])
@pytest.mark.parametrize("size", [1e-45, 1e-30, 1e-8, 3e-7, 1e-5, 1e4])
def test_weights_of_any_size(name: str, size: float) -> None:
    """Scales of tiny weights are denormal float16 numbers, or zero."""
    values = (drawn("normal", 16, 256) * 50 * size).astype(np.float32)
    found = dequantise(quantise(values, FORMATS[name]))
    assert np.isfinite(found).all()
    limit = {1e-5: 1.1, 1e4: 1.0}.get(size)
    if limit is None:
        assert np.square(found - values, dtype=np.float64).sum() <= np.square(values, dtype=np.float64).sum()
    else:
        usual = quantisation_error(values / size, quantise((values / size).astype(np.float32), FORMATS[name]))
        assert quantisation_error(values, quantise(values, FORMATS[name])) <= limit * usual + 1e-3


def test_weights_that_are_too_large_or_not_numbers_are_refused() -> None:
    values = drawn("normal", 4, 64)
    values[2, 3] = np.nan
    with pytest.raises(EdgemoeError, match="row 2, column 3 is nan"):
        quantise(values, FORMATS["n2"])
    values[2, 3] = 1
    with pytest.raises(EdgemoeError, match="n2 stores their scales in float16"):
        quantise(values * np.float32(1e10), FORMATS["n2"])
