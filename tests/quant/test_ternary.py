"""Ternary weights by feedback of errors: within the room, nearer than by rounding, whatever the moments are."""

from __future__ import annotations

import numpy as np
import pytest

from edgemoe.errors import EdgemoeError
from edgemoe.kernels.sub1 import joined_bytes, weights_of
from edgemoe.quant.sub1 import LEVEL_BYTES, panel_lengths, quantise
from edgemoe.quant.ternary import ColumnFeedback, fit, least_bytes
from tests.quant.test_feedback import correlated, drawn

VALUES = drawn(48, 200)
ROOM = joined_bytes(panel_lengths(quantise(VALUES)[0], LEVEL_BYTES))


def error(trits: np.ndarray, levels: np.ndarray, moments: np.ndarray) -> float:
    """The relative error of results, root mean square."""
    left = weights_of(trits, levels).astype(np.float64) - VALUES
    return float(np.sqrt(((left @ moments) * left).sum() / ((VALUES @ moments) * VALUES).sum()))


def test_in_the_bytes_of_rounding_results_are_nearer() -> None:
    moments = correlated(200)
    rounded = error(*quantise(VALUES), moments)
    for fitted, share in ((False, 0.8), (True, 0.8)):
        ((trits, levels),) = fit([VALUES], ColumnFeedback.of(moments, 0.1), ROOM, fitted)
        assert joined_bytes(panel_lengths(trits, LEVEL_BYTES)) <= ROOM
        assert error(trits, levels, moments) < share * rounded


def test_without_feedback_or_rate_it_is_rounding_to_the_row_s_grid() -> None:
    ((trits, levels),) = fit([VALUES], ColumnFeedback.of(np.eye(200), 0.0), ROOM, False)
    expected = quantise(VALUES)
    assert (trits != expected[0]).mean() < 0.002  # levels are rounded first
    assert np.array_equal(levels, expected[1].astype(np.float16))


def test_more_room_means_less_error() -> None:
    moments = correlated(200)
    feedback, errors = ColumnFeedback.of(moments, 0.1), []
    for share in (0.7, 0.85, 1.0, 1.3):
        ((trits, levels),) = fit([VALUES], feedback, int(share * ROOM), True)
        assert 0.9 * share * ROOM < joined_bytes(panel_lengths(trits, LEVEL_BYTES)) <= share * ROOM
        errors.append(error(trits, levels, moments))
    assert errors == sorted(errors, reverse=True)


def test_moments_that_are_singular() -> None:
    one = np.random.default_rng(1).standard_normal(200)
    for moments in (np.outer(one, one), np.diag(np.arange(200.0) % 2), np.zeros((200, 200))):
        for damping in (0.0, 0.1):
            ((trits, levels),) = fit([VALUES], ColumnFeedback.of(moments, damping), ROOM, True)
            assert np.square(weights_of(trits, levels) - VALUES).sum() < 3 * np.square(VALUES).sum()


def odd_rows(columns: int) -> np.ndarray:
    """Rows of zeros, of one sign, with a weight far out, of equal weights, and with one weight alone."""
    values = drawn(48, columns)
    values[0] = 0
    values[1] = np.abs(values[1])
    values[2] = -np.abs(values[2])
    values[3, 77] = 3
    values[4] = 0.02
    values[5] = 0
    values[5, 3] = -0.5
    return values


def test_rows_of_zeros_of_one_sign_and_with_one_weight_far_out() -> None:
    """Each is nearer than one of zeros, and what has no weights of a sign has no level for it."""
    values = odd_rows(200)
    ((trits, levels),) = fit([values], ColumnFeedback.of(correlated(200), 0.1), 2 * ROOM, True)
    assert not trits[0].any()
    assert levels[1, 0] == levels[2, 1] == levels[4, 0] == levels[5, 1] == 0
    left = weights_of(trits, levels) - values
    assert (np.square(left[[1, 2, 3, 4]]).sum(axis=1) < np.square(values[[1, 2, 3, 4]]).sum(axis=1)).all()
    for row in (3, 4, 5):
        assert np.abs(left[row]).max() < 0.2


def test_matrices_without_weights_and_rooms_without_space() -> None:
    feedback = ColumnFeedback.of(correlated(200), 0.1)
    for fitted in (False, True):
        for trits, levels in fit([np.zeros((20, 200), np.float32)] * 2, feedback, least_bytes(4, 200), fitted):
            assert not trits.any()
            assert not levels.any()
    with pytest.raises(EdgemoeError, match="expected room for"):
        fit([VALUES], feedback, least_bytes(3, 200) - 1, True)
    ((trits, _),) = fit([VALUES], feedback, least_bytes(3, 200), True)
    assert not trits.any()


@pytest.mark.parametrize("wrong", [np.full((64, 64), np.nan), np.ones((64, 63))])
def test_moments_that_are_none_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(EdgemoeError, match="second moments"):
        ColumnFeedback.of(wrong, 0.1)
