"""A checkpoint of quantised blocks in memory, of any mixture of types."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgemoe.architectures import checkpoint_shapes
from edgemoe.conversion.source import TensorInfo
from edgemoe.kernels.blocks import Blocks
from edgemoe.kernels.file_rows import Rows
from edgemoe.kernels.formats import FORMATS
from edgemoe.quant.quantise import quantise
from tests.support.checkpoints import SMALL_MIXTRAL


class QuantisedSource:
    """A checkpoint whose matrices are quantised blocks, each of the dtype that `dtype_of` says."""

    name = "quantised"
    fingerprint = "0"

    def __init__(self, dtype_of: Callable[[str], str]) -> None:
        self.config: Mapping[str, Any] = dict(SMALL_MIXTRAL, intermediate_size=96)
        generator = np.random.default_rng(5)
        self.blocks: dict[str, Any] = {}
        self._infos = {}
        for name, shape in checkpoint_shapes(self.config).items():
            dtype = "F32" if len(shape) == 1 else dtype_of(name)
            values = generator.standard_normal(shape, np.float32)
            formats = {"Q4_0": "q4", "Q4_1": "q4m", "Q8_0": "q8", "MXFP4": "m4"}
            self.blocks[name] = quantise(values, FORMATS[formats[dtype]]) if dtype != "F32" else values
            self._infos[name] = TensorInfo(shape, dtype, "all")

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def shards(self) -> Sequence[str]:
        return ["all"]

    def read_rows(self, tensor: str, index: int | None, row_start: int, row_stop: int) -> Rows:
        value = self.blocks[tensor]
        cut = slice(row_start, row_stop)
        if not isinstance(value, Blocks):
            return value[cut]
        minimums = None if value.minimums is None else value.minimums[cut]
        return Blocks(value.format, value.values[cut], value.scales[cut], minimums)

    def release(self, shard: str) -> None:
        pass

    def side_files(self) -> Mapping[str, bytes | Path]:
        return {}

    def unlisted(self) -> Mapping[str, str]:
        return {}

    def notices(self) -> Sequence[str]:
        return ()

    def close(self) -> None:
        pass
