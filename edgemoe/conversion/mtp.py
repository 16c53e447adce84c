"""A checkpoint's MTP head, shown as a checkpoint of its own (`architectures/mtp.py`)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgemoe.architectures import model_spec, mtp, possible_shapes
from edgemoe.conversion.over import SourceOver
from edgemoe.conversion.source import Source, TensorInfo, take_columns
from edgemoe.errors import SourceError
from edgemoe.kernels.blocks import Blocks
from edgemoe.kernels.file_rows import Rows
from edgemoe.model.build import build_graph


class MtpSource(SourceOver):
    """The head of a source."""

    def __init__(self, source: Source) -> None:
        """Raises SourceError for a checkpoint without a head, or with one that edgemoe does not run."""
        super().__init__(source)
        spec, infos = model_spec(source.config), source.tensors()
        self._names, both = mtp.head_names(spec, infos)
        if both is None:
            raise SourceError(
                f"{source.name}: expected an MTP head, found none among its {len(infos)} tensors.",
                "Convert a checkpoint that has one; many are published without. Or leave `mtp` out.",
            )
        if spec.streams or spec.encoder or spec.norm != "rms" or spec.head_bias:
            raise _not_run(source, "a model with several residual streams, an encoder or biases")
        self._names |= dict.fromkeys(mtp.HALVES, both)
        self._tensors = {name: infos[own] for name, own in self._names.items()}
        matrix = infos[both]
        if len(matrix.shape) != 2 or matrix.shape[1] != 2 * spec.hidden_size:
            expected = (spec.hidden_size, 2 * spec.hidden_size)
            raise SourceError(f"{both}: expected the shape {expected}, found {matrix.shape}.", "Download it again.")
        for name in mtp.HALVES:
            shape = (matrix.shape[0], spec.hidden_size)
            self._tensors[name] = TensorInfo(shape, matrix.dtype, matrix.shard)
        self.config = mtp.config_of(source.config, self._layer_like_it(source, len(spec.layers)))
        self.name, self.fingerprint = f"{source.name} (MTP head)", f"{source.fingerprint} mtp"
        graph = build_graph(model_spec(self.config))
        if graph.fixed_state or any(value.window for value in graph.state):
            raise _not_run(source, "one that does not see the whole context")

    def _layer_like_it(self, source: Source, layers: int) -> int:
        """The last layer of the model that has the tensors of the head's block. Raises SourceError without one."""
        for layer in reversed(range(layers)):
            possible = possible_shapes(mtp.config_of(source.config, layer))
            if all(possible.get(name) == info.shape for name, info in self._tensors.items()):
                return layer
        raise _not_run(source, "one whose block is like no layer of the model")

    def read_rows(self, tensor: str, index: int | None, row_start: int, row_stop: int) -> Rows:
        rows = self._source.read_rows(self._names[tensor], index, row_start, row_stop)
        if tensor not in mtp.HALVES:
            return rows
        width = self._tensors[tensor].shape[1]
        first = mtp.HALVES[tensor] * width
        if isinstance(rows, Blocks):
            return take_columns(rows, np.arange(first, first + width))
        return np.ascontiguousarray(rows[:, first : first + width])

    def read_columns(
        self, tensor: str, index: int | None, start: int, stop: int, height: int = 0
    ) -> npt.NDArray[np.float32]:
        return self._source.read_columns(self._names[tensor], index, start, stop, height)


def _not_run(source: Source, what: str) -> SourceError:
    return SourceError(
        f"{source.name}: its MTP head is of a kind that edgemoe does not run: {what}.",
        "Convert the model without it, and choose another draft model.",
    )
