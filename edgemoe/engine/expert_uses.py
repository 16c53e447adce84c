"""Counts how often the routers chose each expert."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edgemoe.kernels.operations import Integers

_KEPT_ROWS = 64


class ExpertUses:
    """The number of tokens for which each expert was chosen.

    A token that is decoded alone costs one copy: its choices in all layers are kept, and counted when many are kept or
    somebody asks. Between two tokens the weights drive everything of Python's out of the processor's caches, so that a
    loop over layers would show in tokens per second.
    """

    def __init__(
        self,
        choices: Integers,
        by_layer: Mapping[int, Integers],
        shape: tuple[int, int],
        of_inputs: Mapping[int, Integers],
    ) -> None:
        """`by_layer`: the choices of a run in each routed layer, `(T, K)`; `choices`: the memory in which these arrays
        lie side by side, in this order. `shape`: layers, and the experts of the layer that has most. `of_inputs`: the
        choices of an encoder's run in each of its routed layers.
        """
        self._of_inputs = of_inputs
        self._choices = choices
        self._by_layer = by_layer
        self._counts = np.zeros(shape, np.int64)
        first_row: list[int] = []
        layer_starts: list[int] = []
        array_start = 0
        for layer, array in by_layer.items():
            first_row += range(array_start, array_start + array.shape[1])
            layer_starts += [layer * shape[1]] * array.shape[1]
            array_start += array.size
        self._first_row = np.array(first_row, np.int64)
        self._layer_starts = np.array(layer_starts, np.int64)
        self._kept = np.zeros((_KEPT_ROWS, len(first_row)), np.int32)
        self._kept_rows = 0

    def add(self, tokens: int) -> None:
        """Count the choices of the run of `tokens` tokens that has just ended."""
        if tokens == 1:
            self._choices.take(self._first_row, out=self._kept[self._kept_rows], mode="wrap")  # "raise" copies twice
            self._kept_rows += 1
            if self._kept_rows == _KEPT_ROWS:
                self._count_kept()
            return
        self._count(self._by_layer, tokens)

    def add_input(self, tokens: int) -> None:
        """Count the choices of an encoder's run of `tokens` tokens that has just ended."""
        self._count(self._of_inputs, tokens)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """All uses so far, `(L, E)`."""
        self._count_kept()
        return self._counts

    def _count(self, by_layer: Mapping[int, Integers], tokens: int) -> None:
        for layer, array in by_layer.items():
            chosen = array[:tokens]
            used = np.bincount(chosen[chosen >= 0])  # a choice may be of no expert
            self._counts[layer, : len(used)] += used

    def _count_kept(self) -> None:
        kept = self._kept[: self._kept_rows]
        experts = (kept + self._layer_starts)[kept >= 0]
        self._counts += np.bincount(experts, minlength=self._counts.size).reshape(self._counts.shape)
        self._kept_rows = 0
