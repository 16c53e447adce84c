"""Error feedback: results of a matrix are nearer than without, whatever its inputs; and the same by any search."""

from __future__ import annotations

import numpy as np
import pytest

from edgemoe.errors import EdgemoeError
from edgemoe.kernels import trellis_search
from edgemoe.kernels.blocks import dequantise, pack, unpack
from edgemoe.kernels.formats import FORMATS
from edgemoe.kernels.trellis import TRELLISES
from edgemoe.kernels.trellis_tables import NORMAL_DEVIATIONS, NORMAL_TABLES
from edgemoe.quant.feedback import Feedback, quantise_with_feedback
from edgemoe.quant.quantise import Weighing, quantise
from tests.support.matrices import quantisation_error

every_trellis = pytest.mark.parametrize("name", TRELLISES)


def drawn(rows: int, columns: int) -> np.ndarray:
    return (np.random.default_rng(rows).standard_normal((rows, columns)) / 50).astype(np.float32)


def correlated(columns: int) -> np.ndarray:
    """Second moments of inputs that lie near a fourth of their dimensions, some columns larger than others."""
    random = np.random.default_rng(columns)
    basis = random.standard_normal((columns, columns)) * np.exp(-np.arange(columns) * 4 / columns)
    basis *= np.exp(random.standard_normal((columns, 1)) / 2)
    return basis @ basis.T


def error(values: np.ndarray, moments: np.ndarray, name: str, weighing: Weighing) -> float:
    """The relative error of a matrix's results, root mean square."""
    difference = dequantise(quantise(values, FORMATS[name], weighing)).astype(np.float64) - values
    return float(np.sqrt(((difference @ moments) * difference).sum() / ((values @ moments) * values).sum()))


@every_trellis
def test_results_are_nearer_than_by_importance_alone(name: str) -> None:
    values, moments = drawn(16, 256), correlated(256)
    importance = np.diagonal(moments).astype(np.float32)
    fed_back = error(values, moments, name, Feedback.of(moments, TRELLISES[name], 0.01))
    assert fed_back < 0.85 * error(values, moments, name, importance)


@every_trellis
def test_inputs_that_are_independent_cost_nothing(name: str) -> None:
    """Searches that end with each block find paths that are hardly worse than those of whole rows."""
    values = drawn(16, 512)
    feedback = Feedback.of(np.eye(512), TRELLISES[name], 0)
    fed_back = quantisation_error(values, quantise(values, FORMATS[name], feedback))
    assert fed_back < 1.06 * quantisation_error(values, quantise(values, FORMATS[name]))


@every_trellis
def test_the_codes_are_those_that_numpy_finds(name: str) -> None:
    values, feedback = drawn(3, 200), Feedback.of(correlated(200), TRELLISES[name], 0.01)
    arguments = (values, NORMAL_TABLES[name], NORMAL_DEVIATIONS[name], feedback)
    native, plain = quantise_with_feedback(*arguments), quantise_with_feedback(*arguments, trellis_search)
    assert np.array_equal(native.codes, plain.codes)
    assert native.scales.tobytes() == plain.scales.tobytes()
    assert native.factors is plain.factors is None or np.array_equal(native.factors, plain.factors)


@pytest.mark.parametrize("name", ["n2", "n15", "n075"])
@pytest.mark.parametrize("columns", [1, 33, 257])
def test_any_number_of_columns_is_kept(name: str, columns: int) -> None:
    values = drawn(5, columns)
    blocks = quantise(values, FORMATS[name], Feedback.of(correlated(columns), TRELLISES[name], 0.1))
    kept = unpack(pack(blocks), FORMATS[name], 5, columns)
    assert np.array_equal(dequantise(kept), dequantise(blocks))
    assert quantisation_error(values, blocks) < 1.1


def test_moments_that_are_singular() -> None:
    """They are of one input, of columns that are never used, or of no input at all."""
    values, one = drawn(8, 256), np.random.default_rng(1).standard_normal(256)
    unused = correlated(256)
    unused[100:140] = unused[:, 100:140] = 0
    for moments in (np.outer(one, one), unused, np.zeros((256, 256))):
        for damping in (0, 0.1):
            blocks = quantise(values, FORMATS["n2"], Feedback.of(moments, TRELLISES["n2"], damping))
            assert quantisation_error(values, blocks) < 1.5, damping
    plain = quantisation_error(values, quantise(values, FORMATS["n2"]))
    assert quantisation_error(values, blocks) < 1.05 * plain


def test_rows_of_zeros_stay_so() -> None:
    values = drawn(18, 320)
    values[[0, 5, 17]] = 0
    for name in ("n3", "n1"):
        found = dequantise(quantise(values, FORMATS[name], Feedback.of(correlated(320), TRELLISES[name], 0.01)))
        assert (found[[0, 5, 17]] == 0).all()


@pytest.mark.parametrize("name", ["n3", "n15", "n1"])
def test_weights_of_one_sign_and_one_far_out(name: str) -> None:
    """No row's results are further off than if all of it were zeros."""
    values, moments = drawn(8, 256), correlated(256)
    values[:4] = np.abs(values[:4])
    values[4:6, 77] = 1
    values[6] = 0.02
    found = dequantise(quantise(values, FORMATS[name], Feedback.of(moments, TRELLISES[name], 0.1)))
    left = found.astype(np.float64) - values
    assert (((left @ moments) * left).sum(axis=1) < ((values @ moments) * values).sum(axis=1)).all()


@pytest.mark.parametrize("wrong", [np.full((64, 64), np.nan), np.ones((64, 63))])
def test_moments_that_are_none_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(EdgemoeError, match="second moments"):
        Feedback.of(wrong, TRELLISES["n2"], 0.01)
