"""Generates random weights of a named shape as a checkpoint, for benchmarks that need only a model's arithmetic.

Every row of every tensor follows from the seed by itself (a counter-based generator), so rows can be had in any
order, and an interrupted conversion goes on to the same bytes.

Tokens must be routed as differently as those of a trained model, or a benchmark measures one set of experts:

- Weights have a mean of exactly zero by construction: with any other, a part of every hidden state is the same for
  all tokens.
- A token enters with the variance 1, and all that the layers add to it has about that much: the matrices that write
  into the residual stream are divided by the root of their number (as in GPT-2). Attention averages over tokens, so
  what it adds is alike for all of them; unchecked, 48 layers leave half of the experts without any token.
- Any other matrix has the variance 1 / columns, and hands on what it is given at about its size. Norms are 1,
  biases and sinks 0.

To measure decoding, give such a model tokens: what it generates may go in circles, and where the head is the
embedding it repeats one token, since nothing answers a token's own row better than itself.

For q8, q4, q4m or m4 the blocks themselves are drawn at random, so no quantisation search or rounding takes place.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.architectures import checkpoint_shapes, model_spec, resolve
from edgemoe.conversion.formats import DEFAULT_DENSE, DEFAULT_EXPERTS, FormatChoice, choose_formats
from edgemoe.conversion.pipeline import convert_source
from edgemoe.conversion.progress import Callback
from edgemoe.conversion.shapes import SHAPES
from edgemoe.conversion.source import TensorInfo
from edgemoe.errors import UsageError
from edgemoe.kernels.blocks import Blocks
from edgemoe.kernels.file_rows import Rows
from edgemoe.kernels.formats import E2M1_DOUBLED, E8M0_ONE, FORMATS, Format, group_count
from edgemoe.kernels.row_types import BLOCK_FORMATS
from edgemoe.model.spec import ModelSpec

GENERATOR = 1
"""Counts up when the same seed begins to give other weights."""

_COUNTER_BYTES = 32
"""Bytes that the generator gives for each step of its counter."""

_DTYPES = {name: dtype for dtype, name in BLOCK_FORMATS.items()}


def synthesise(
    shape: str,
    destination: str | os.PathLike[str],
    *,
    layers: int | None = None,
    seed: int = 0,
    experts: str | None = None,
    dense: str | None = None,
    head: str | None = None,
    force: bool = False,
    progress: Callback | None = None,
) -> Path:
    """A store of random weights in the shape of that name (`SHAPES`) at `destination`; returns its path.

    `layers` keeps only the first that many of the shape's layers, for machines that have no room for all. `experts`,
    `dense` and `head` name formats, by default q4, q8 and that of `dense`. Interruptions, a full disk, `force` and what
    stands at the destination are treated as by `convert_checkpoint`. Raises UsageError or StoreError.
    """
    choice = FormatChoice(experts or DEFAULT_EXPERTS, dense or DEFAULT_DENSE, head)
    choice.check(keep=False)
    source = SyntheticSource(shape, seed, choice, layers)
    return convert_source(lambda downloads: source, destination, choice=choice, force=force, progress=progress)


class SyntheticSource:
    """A checkpoint of random weights (see `Source`). Raises UsageError for an unknown shape or too many `layers`."""

    def __init__(self, shape: str, seed: int, choice: FormatChoice, layers: int | None = None) -> None:
        if shape not in SHAPES:
            raise UsageError(f"{shape!r}: unknown shape; expected one of {', '.join(SHAPES)}.")
        self.config: Mapping[str, Any] = SHAPES[shape] if layers is None else _first_layers(shape, layers)
        part = shape if layers is None else f"the first {layers} layers of {shape}"
        self.name = f"random weights of {part}, seed {seed}"
        identity = [GENERATOR, seed, *vars(choice).values(), dict(self.config)]
        self.fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self._seed = seed
        spec = model_spec(self.config)
        shapes = checkpoint_shapes(self.config)
        formats = choose_formats(spec.tensors(), dict.fromkeys(spec.tensors(), "F32"), choice)
        self._tensors: dict[str, TensorInfo] = {}
        self._deviations: dict[str, float] = {}
        for name, place in resolve(self.config, shapes).items():
            layer = name.split(".")[1] if name.startswith("layers.") else None
            shard = f"layer {layer}" if layer else "embedding and head"
            chosen = formats[name]
            dtype = _DTYPES.get(chosen.name, "F32") if chosen else "F32"
            self._tensors[place.tensor] = TensorInfo(shapes[place.tensor], dtype, shard)
            self._deviations[place.tensor] = _deviation(spec, name, shapes[place.tensor][-1])

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    def shards(self) -> Sequence[str]:
        return list(dict.fromkeys(info.shard for info in self._tensors.values()))

    def read_rows(self, tensor: str, index: int | None, row_start: int, row_stop: int) -> Rows:
        info = self._tensors[tensor]
        if len(info.shape) == 1:
            return np.full(row_stop - row_start, 0.0 if tensor.endswith(("bias", "sinks")) else 1.0, np.float32)
        if len(info.shape) > 2 and index is None:  # the taps of convolutions, say, whose elements are rows
            return _draw_floats(f"{self._seed} {tensor}", slice(row_start, row_stop), 1, self._deviations[tensor])[:, 0]
        rows, columns = slice(row_start, row_stop), info.shape[-1]
        key = f"{self._seed} {tensor} {index}"
        deviation = self._deviations[tensor]
        if info.dtype not in BLOCK_FORMATS:
            return _draw_floats(key, rows, columns, deviation)
        return _draw_blocks(key, rows, columns, deviation, FORMATS[BLOCK_FORMATS[info.dtype]])

    def read_columns(
        self, tensor: str, index: int | None, start: int, stop: int, height: int = 0
    ) -> npt.NDArray[np.float32]:
        raise AssertionError("random matrices are never transposed")

    def release(self, shard: str) -> None:
        """Nothing to delete."""

    def side_files(self) -> Mapping[str, bytes | Path]:
        return {}

    def unlisted(self) -> Mapping[str, str]:
        return {}

    def notices(self) -> Sequence[str]:
        return ()

    def close(self) -> None:
        """Nothing is open."""


def _first_layers(shape: str, layers: int) -> dict[str, Any]:
    """The shape's config with only its first layers: what it lists for each layer ends there too."""
    config = dict(SHAPES[shape])
    if "num_hidden_layers" not in config:
        raise UsageError(
            f"`layers={layers}`: {shape} has an encoder and a decoder, whose layers are not cut.", "Leave it out."
        )
    total = config["num_hidden_layers"]
    if not 1 <= layers <= total:
        raise UsageError(f"`layers={layers}`: expected 1 to {total}, the layers of {shape}.")
    for key, value in config.items():
        listed = isinstance(value, (list, tuple)) or key.endswith("pattern")  # a letter for each layer
        if listed and len(value) == total:
            config[key] = value[:layers]
    return config | {"num_hidden_layers": layers}


_INTO_THE_STREAM = (
    *(".output", ".cross_output", ".conv_out", ".delta_out", ".lightning_out", ".mamba_out", ".latent_out"),
    *(".table_value", ".table_taps", ".down"),
)
"""Ends of the names of the matrices whose rows are added to the residual stream."""


def _deviation(spec: ModelSpec, name: str, columns: int) -> float:
    """The standard deviation of a matrix's weights; see the module's docstring."""
    if name == "embedding":
        return 1 / spec.embedding_scale
    if spec.encoder and name.endswith("query"):  # its scores have no scale of their own (T5)
        head_dim = spec.layers[int(name.split(".")[1])].sizes()["head_dim"]
        return 1 / math.sqrt(columns * head_dim)
    if name.endswith(_INTO_THE_STREAM):
        return 1 / (spec.residual_scale * math.sqrt(2 * len(spec.layers) * columns))
    return 1 / math.sqrt(columns)


def _draw_bytes(key: str, rows: slice, row_bytes: int) -> npt.NDArray[np.uint8]:
    """Random bytes `(rows, row_bytes)`, the same for a row whichever rows are drawn with it.

    Source: Philox 4x64, Salmon et al. 2011, as NumPy has it.
    """
    steps = -(-row_bytes // _COUNTER_BYTES)
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
    generator = np.random.Philox(key=number, counter=rows.start * steps)
    count = rows.stop - rows.start
    words = generator.random_raw(count * steps * (_COUNTER_BYTES // 8))
    drawn: npt.NDArray[np.uint8] = np.asarray(words).view(np.uint8).reshape(count, steps * _COUNTER_BYTES)
    return drawn[:, :row_bytes]


def _draw_floats(key: str, rows: slice, columns: int, deviation: float) -> npt.NDArray[np.float32]:
    """Evenly distributed weights of that standard deviation: each of 65536 values, half of them below zero."""
    drawn = np.ascontiguousarray(_draw_bytes(key, rows, 2 * columns)).view(np.uint16)
    step = np.float32(deviation * math.sqrt(12) / 65536)
    return (drawn.astype(np.float32) - np.float32(32767.5)) * step


def _draw_blocks(key: str, rows: slice, columns: int, deviation: float, fmt: Format) -> Blocks:
    """Blocks of weights of that standard deviation: normal within a group, with scales that differ from group to group.

    Scales are whole numbers of at most seven bits times a power of two, so that q4m's minimum of -7.5 scales, which
    makes its mean zero, is a float16 exactly. m4's are one of two neighbouring powers of two, in such shares that the
    mean of their squares is right.
    """
    table, level_deviation = _levels(fmt.name)
    stored = _draw_bytes(key + " values", rows, columns).tobytes().translate(table)
    values = np.frombuffer(stored, np.int8 if fmt.name == "q8" else np.uint8).reshape(-1, columns)
    drawn_scales = _draw_bytes(key + " scales", rows, group_count(columns))
    if fmt.name == "m4":
        exponent = math.floor(math.log2(deviation / level_deviation))
        share = ((deviation / level_deviation) ** 2 / 4.0**exponent - 1) / 3  # of the larger
        return Blocks(fmt, values, (exponent + E8M0_ONE + (drawn_scales < 256 * share)).astype(np.uint8))
    mantissa, exponent = math.frexp(deviation / level_deviation)
    middle = round(mantissa * 64)  # 32 to 64
    spread = (drawn_scales & 31).astype(np.float32) - 16
    scales = np.ldexp(middle + spread, exponent - 6).astype(np.float16)
    minimums = scales * np.float16(-7.5) if fmt.has_minimums else None
    return Blocks(fmt, values, scales, minimums)


@functools.cache
def _levels(format_name: str) -> tuple[bytes, float]:
    """The stored integer that each byte stands for, and the standard deviation of a weight whose scale is 1.

    Bytes are equal parts of a normal distribution, from its lowest to its highest; the two of the same distance from
    the middle stand for weights of opposite sign.
    """
    normal = statistics.NormalDist()
    quantiles = np.array([normal.inv_cdf((byte + 0.5) / 256) for byte in range(256)])
    quantiles /= quantiles[-1]
    if format_name == "q4m":
        nibbles = np.floor(8 + 7.5 * quantiles)
        return nibbles.astype(np.uint8).tobytes(), float(np.std(nibbles))
    if format_name == "m4":
        numbers = E2M1_DOUBLED / 2
        codes = np.abs(6 * quantiles[:, None] - numbers).argmin(axis=1)
        return codes.astype(np.uint8).tobytes(), float(np.std(numbers[codes]))
    whole = np.rint(quantiles * (127 if format_name == "q8" else 7))
    stored = whole.astype(np.int8) if format_name == "q8" else (whole + 8).astype(np.uint8)
    return stored.tobytes(), float(np.std(whole))
