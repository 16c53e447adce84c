"""Weights whose reads are told as progress, for a run through all layers of a model."""

from __future__ import annotations

from edgemoe.conversion.calibration.weights import Bytes, DenseValue, Weights
from edgemoe.conversion.progress import Callback, ProgressMeter
from edgemoe.store.reader import Store


class WatchedWeights:
    """The weights of a model, layer by layer; experts that no token chose count as read at the end of their layer."""

    def __init__(self, weights: Weights, told: Callback | None) -> None:
        manifest = weights.store.manifest
        self._weights = weights
        self._dense = {tensor.name: tensor.bytes for tensor in manifest.dense}
        records = manifest.records
        self._sizes = [int(records.length[records.rows(layer)].sum()) for layer in range(records.layers)]
        for name, size in self._dense.items():
            part, _, rest = name.partition(".")
            if part == "layers":
                self._sizes[int(rest.partition(".")[0])] += size
        self._meter = ProgressMeter(told, sum(self._sizes), 0, comparing=True)
        self._doing, self._left = "", 0

    @property
    def store(self) -> Store:
        return self._weights.store

    def begin(self, layer: int) -> None:
        """Begin with a layer, by its number."""
        self.end()
        self._doing, self._left = f"layer {layer + 1} of {len(self._sizes)}", self._sizes[layer]

    def end(self) -> None:
        """Count what is left of a layer."""
        self._count(self._left)

    def dense(self, name: str) -> DenseValue:
        found = self._weights.dense(name)
        self._count(self._dense[name])
        return found

    def load_record(self, layer: int, expert: int, slot: Bytes) -> None:
        self._weights.load_record(layer, expert, slot)
        records = self.store.manifest.records
        self._count(int(records.length[records.rows(layer)][expert]))

    def _count(self, size: int) -> None:
        counted = min(size, self._left)
        self._left -= counted
        if counted:
            self._meter.advance(self._doing, counted)
