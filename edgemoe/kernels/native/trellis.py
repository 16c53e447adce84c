"""The search for codes of trellis formats by the native library."""

from __future__ import annotations

import ctypes

import numpy as np

from edgemoe.kernels.native.library import available_isas, load_library
from edgemoe.kernels.native.structures import TrellisFedStruct, TrellisStruct
from edgemoe.kernels.panel_sizes import GROUP_COLUMNS
from edgemoe.kernels.trellis import CHAINS, Bytes
from edgemoe.kernels.trellis_search import FedColumns, Floats, Levels


class NativeTrellisSearch:
    """The search with the kernels of one instruction set, by default the best available. Raises KernelError."""

    def __init__(self, isa: str | None = None) -> None:
        self._library = load_library()
        self._kernels = self._library.em_kernels_for((isa or available_isas()[0]).encode())

    def search(self, levels: Levels, weights: Floats, inverses: Floats, gains: Floats, importance: Floats) -> Bytes:
        """Find the codes that `trellis_search.search` finds. Releases the GIL."""
        trellis = levels.trellis
        rows, columns = weights.shape
        assert columns == trellis.padded(columns), columns
        assert inverses.shape == gains.shape == (rows, columns // GROUP_COLUMNS), inverses.shape
        assert importance.shape == (columns,), importance.shape
        arrays = [np.ascontiguousarray(array, np.float32) for array in (weights, inverses, gains, importance)]
        kept, struct = _struct(levels)
        codes = np.empty((rows, columns // trellis.step_weights), np.uint8)
        scratch = np.empty(self._library.em_trellis_scratch_bytes(ctypes.byref(struct), columns), np.uint8)
        status = self._library.em_trellis_search(
            self._kernels,
            ctypes.byref(struct),
            *(array.ctypes.data for array in arrays),
            rows,
            columns,
            codes.ctypes.data,
            scratch.ctypes.data,
        )
        assert status == 0, status
        del kept
        return codes

    def feed_back(self, levels: Levels, fed: FedColumns, states: Bytes) -> tuple[Bytes, Floats]:
        """Find the codes and the rests that `trellis_search.feed_back` finds. Releases the GIL."""
        trellis = levels.trellis
        rows, columns = fed.targets.shape
        count = len(fed.rates)
        assert columns == trellis.padded(columns), columns
        assert fed.inverses.shape == fed.gains.shape == fed.steps.shape == (rows, columns // GROUP_COLUMNS), columns
        assert fed.importance.shape == (columns,), columns
        assert fed.rates.shape == (count, columns), fed.rates.shape
        assert fed.factors.shape == (count // trellis.unit_columns, *[trellis.unit_columns] * 2), fed.factors.shape
        assert states.shape == (rows, CHAINS), states.shape
        assert states.flags.c_contiguous
        tables, struct = _struct(levels)
        arrays = [
            np.ascontiguousarray(array, np.float32)
            for array in (fed.inverses, fed.gains, fed.steps, fed.importance, fed.factors)
        ]
        for array in (fed.targets, fed.rates):  # parts of larger ones, which are not copied
            assert array.dtype == np.float32, array.dtype
            assert array.strides[1] == array.itemsize, array.strides
        fed_struct = TrellisFedStruct(
            fed.targets.ctypes.data,
            *(array.ctypes.data for array in arrays),
            fed.rates.ctypes.data,
            *(array.strides[0] // array.itemsize for array in (fed.targets, fed.rates)),
            rows,
            columns,
            count,
            fed.ahead,
        )
        codes, rests = np.empty((rows, count // trellis.step_weights), np.uint8), np.empty((rows, count), np.float32)
        what = ctypes.byref(struct), ctypes.byref(fed_struct)
        scratch = np.empty(self._library.em_trellis_feedback_scratch_bytes(*what), np.uint8)
        outputs = (array.ctypes.data for array in (states, codes, rests, scratch))
        status = self._library.em_trellis_feed_back(self._kernels, *what, *outputs)
        assert status == 0, status
        del tables
        return codes, rests


def _struct(levels: Levels) -> tuple[tuple[Floats, Bytes], TrellisStruct]:
    """The struct of a matrix's levels, and the arrays that it points into."""
    trellis = levels.trellis
    assert levels.numbers.shape == (1 << trellis.window_bits, trellis.step_weights), levels.numbers.shape
    assert levels.levels.shape[1] > levels.numbers.max(), levels.levels.shape
    kept = np.ascontiguousarray(levels.levels, np.float32), np.ascontiguousarray(levels.numbers)
    parameters = (trellis.step_bits, trellis.step_weights, trellis.lag, kept[0].shape[1])
    return kept, TrellisStruct(*parameters, *(array.ctypes.data for array in kept), levels.dearest)
