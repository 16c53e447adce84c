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

For formats of blocks these themselves are drawn at random (`random_blocks.py`), so no quantisation search or rounding
takes place. Weights for sub1 are ternary, so that rounding changes none. A mix gives the formats of llama.cpp's
quantised files (`mixes.py`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.architectures import checkpoint_shapes, model_spec, resolve
from edgemoe.architectures.qwen3_5_moe import IN_TURN
from edgemoe.conversion.formats import (
    BY_DEFAULT,
    DEFAULT_DENSE,
    DEFAULT_EXPERTS,
    FormatChoice,
    block_format,
    choose_formats,
    expert_of,
)
from edgemoe.conversion.mixes import check_mix, mix_formats
from edgemoe.conversion.pipeline import Examination, convert_source
from edgemoe.conversion.progress import Callback, NoticeCallback
from edgemoe.conversion.random_blocks import draw_blocks, draw_bytes, draw_planes, draw_ternary
from edgemoe.conversion.shapes import SHAPES
from edgemoe.conversion.side_files import CONFIG_NAME
from edgemoe.conversion.source import TensorInfo
from edgemoe.conversion.switch_shapes import first_layers
from edgemoe.conversion.tokenizers.files import TOKENIZER_NAME
from edgemoe.errors import UsageError
from edgemoe.kernels.file_rows import Rows
from edgemoe.kernels.formats import FORMATS, SUB1, Format
from edgemoe.kernels.row_types import BLOCK_FORMATS, TYPE_NAMES
from edgemoe.kernels.trellis import TRELLISES
from edgemoe.model.spec import ModelSpec
from edgemoe.quant.quantise import TARGETS
from edgemoe.store.neurons import is_neurons
from edgemoe.store.side_files import SIDE_FILES

GENERATOR = 1
"""Counts up when the same seed begins to give other weights."""

_DRAWN = tuple(dict.fromkeys((*TARGETS, *TRELLISES, *TYPE_NAMES)))
"""The formats that weights are drawn in."""


def synthesise(
    shape: str,
    destination: str | os.PathLike[str],
    *,
    layers: int | None = None,
    seed: int = 0,
    experts: str | None = None,
    dense: str | None = None,
    head: str | None = None,
    mix: str | None = None,
    tokenizer: Path | None = None,
    force: bool = False,
    progress: Callback | None = None,
    notice: NoticeCallback | None = None,
    examine: Examination | None = None,
) -> Path:
    """A store of random weights in the shape of that name (`SHAPES`) at `destination`; returns its path.

    `layers` keeps only the first that many of the shape's layers, for machines that have no room for all. `experts`,
    `dense` and `head` name formats, by default q4, q8 and that of `dense`; `mix` names all of them (`MIXES`).
    `tokenizer` is the folder of a model whose tokenizer, chat template and settings the store gets, so that it takes
    and gives text; `notice` and `examine` are as in `convert_checkpoint`.
    Interruptions, a full disk, `force` and what stands at the destination are treated as by `convert_checkpoint`.
    Raises UsageError or StoreError.
    """
    if mix is not None:
        check_mix(mix, experts, dense, head)
        choice = BY_DEFAULT
    else:
        choice = FormatChoice(experts or DEFAULT_EXPERTS, dense or DEFAULT_DENSE, head)
        choice.check(_DRAWN)
        if experts is not None and "," in experts:
            raise UsageError(f"`experts`: expected one format for random weights, found {experts!r}.", "Name a `mix`.")
    source = SyntheticSource(shape, seed, choice, layers, mix, tokenizer)
    encoded = (*TARGETS, SUB1.name)
    kept = [name if name in encoded else None for name in vars(choice).values()]  # blocks are kept
    choice = replace(FormatChoice(*kept), experts=choice.experts if choice.base else kept[0])
    return convert_source(
        lambda downloads: source,
        destination,
        choice=choice,
        force=force,
        progress=progress,
        notice=notice,
        examine=examine,
    )


class SyntheticSource:
    """A checkpoint of random weights (see `Source`). Raises UsageError for an unknown shape or too many `layers`."""

    def __init__(
        self,
        shape: str,
        seed: int,
        choice: FormatChoice,
        layers: int | None = None,
        mix: str | None = None,
        tokenizer: Path | None = None,
    ) -> None:
        if shape not in SHAPES:
            raise UsageError(f"{shape!r}: unknown shape; expected one of {', '.join(SHAPES)}.")
        self.config: Mapping[str, Any] = SHAPES[shape] if layers is None else _first_layers(shape, layers)
        if mix is not None and self.config["model_type"] in _IN_TURN_IN_FILES:
            self.config = {**self.config, IN_TURN: True}
        part = shape if layers is None else f"the first {layers} layers of {shape}"
        self.name = f"random weights of {part}, seed {seed}"
        identity = [GENERATOR, seed, *vars(choice).values(), dict(self.config), *([mix] if mix else [])]
        self._side_files = {} if tokenizer is None else _side_files(tokenizer)
        if self._side_files:
            identity.append({name: hashlib.sha256(content).hexdigest() for name, content in self._side_files.items()})
        self.fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self._seed = seed
        spec = model_spec(self.config)
        shapes = checkpoint_shapes(self.config)
        formats = choose_formats(spec.tensors(), dict.fromkeys(spec.tensors(), "F32"), choice)
        if mix is not None:
            formats = mix_formats(mix, spec, formats)
        self._tensors: dict[str, TensorInfo] = {}
        self._deviations: dict[str, float] = {}
        self._ternary: set[str] = set()
        self._bases: dict[str, Format] = {}
        for name, place in resolve(self.config, shapes).items():
            layer = name.split(".")[1] if name.startswith("layers.") else None
            shard = f"layer {layer}" if layer else "embedding and head"
            chosen = formats[name]
            dtype = "F32"
            in_blocks = chosen and (chosen.trellis or chosen.name in BLOCK_FORMATS.values())
            if chosen and in_blocks and not place.row_width:  # whose elements are drawn one by one
                dtype = TYPE_NAMES.get(chosen.name, chosen.name)
            self._tensors[place.tensor] = TensorInfo(shapes[place.tensor], dtype, shard)
            if choice.base and chosen and expert_of(name):
                dtype = chosen.name if chosen.trellis else TYPE_NAMES.get(chosen.name, chosen.name)
                self._tensors[place.tensor] = TensorInfo(shapes[place.tensor], dtype, shard)
                self._bases[place.tensor] = choice.base
            if chosen == SUB1:
                self._ternary.add(place.tensor)
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
        if tensor in self._ternary:
            return draw_ternary(key, rows, columns, deviation)
        drawn = block_format(info.dtype)
        if drawn is None:
            return _draw_floats(key, rows, columns, deviation)
        if tensor in self._bases:
            return draw_planes(key, rows, columns, deviation, self._bases[tensor], FORMATS[drawn])
        return draw_blocks(key, rows, columns, deviation, FORMATS[drawn])

    def read_columns(
        self, tensor: str, index: int | None, start: int, stop: int, height: int = 0
    ) -> npt.NDArray[np.float32]:
        raise AssertionError("random matrices are never transposed")

    def release(self, shard: str) -> None:
        """Nothing to delete."""

    def side_files(self) -> Mapping[str, bytes | Path]:
        return self._side_files

    def unlisted(self) -> Mapping[str, str]:
        return {}

    def notices(self) -> Sequence[str]:
        return ()

    def close(self) -> None:
        """Nothing is open."""


def _side_files(folder: Path) -> dict[str, bytes]:
    """The files by which a model reads and writes text; config.json describes its weights. Raises UsageError."""
    names = [name for name in SIDE_FILES if name != CONFIG_NAME and (folder / name).is_file()]
    if TOKENIZER_NAME not in names:
        raise UsageError(f"`tokenizer`: expected a model with a {TOKENIZER_NAME}, found none in {folder}.")
    return {name: (folder / name).read_bytes() for name in names}


def _first_layers(shape: str, layers: int) -> dict[str, Any]:
    """The shape's config with only its first layers: what it lists for each layer ends there too."""
    config = dict(SHAPES[shape])
    if "num_hidden_layers" not in config:
        cut = first_layers(config, layers)
        if cut is None:
            step = config["num_layers"] // config.get("num_sparse_encoder_layers", config["num_layers"])
            raise UsageError(
                f"`layers={layers}`: expected {step} to {config['num_layers']}, a multiple of {step}, of each side of"
                f" {shape}."
            )
        return cut
    total = config["num_hidden_layers"]
    if not 1 <= layers <= total:
        raise UsageError(f"`layers={layers}`: expected 1 to {total}, the layers of {shape}.")
    for key, value in config.items():
        listed = isinstance(value, (list, tuple)) or key.endswith("pattern")  # a letter for each layer
        if listed and len(value) == total:
            config[key] = value[:layers]
    return config | {"num_hidden_layers": layers}


_IN_TURN_IN_FILES = ("qwen3_5_moe_text", "qwen4_exp_text")
"""Models whose heads of values llama.cpp's files, which mixes stand for, have in turn."""
_INTO_THE_STREAM = (
    *(".output", ".cross_output", ".conv_out", ".delta_out", ".lightning_out", ".mamba_out", ".latent_out"),
    *(".table_value", ".table_taps", ".down", ".output_factor", ".tree_leaf_out", ".tree_node_out"),
)
"""Ends of the names of the matrices whose rows are added to the residual stream."""


def _deviation(spec: ModelSpec, name: str, columns: int) -> float:
    """The standard deviation of a matrix's weights; see the module's docstring."""
    if name == "embedding":
        return 1 / spec.embedding_scale
    if spec.encoder and name.endswith("query"):  # its scores have no scale of their own (T5)
        head_dim = spec.layers[int(name.split(".")[1])].sizes["head_dim"]
        return 1 / math.sqrt(columns * head_dim)
    if is_neurons(name):  # a head's weights of experts sum to 1
        written = spec.residual_scale * math.sqrt(2 * len(spec.layers))
        return 1 / (math.sqrt(columns) if name.endswith(".down") else written)
    if name.endswith("_bias"):
        return 0.0
    if name.endswith((".tree_nodes", ".tree_leaf_in")):
        columns = spec.hidden_size
    elif name.endswith((".tree_leaf_out", ".tree_node_out")):
        columns = spec.layers[int(name.split(".")[1])].sizes["tree_neurons_read"]
    if name.endswith(_INTO_THE_STREAM):
        return 1 / (spec.residual_scale * math.sqrt(2 * len(spec.layers) * columns))
    return 1 / math.sqrt(columns)


def _draw_floats(key: str, rows: slice, columns: int, deviation: float) -> npt.NDArray[np.float32]:
    """Evenly distributed weights of that standard deviation: each of 65536 values, half of them below zero."""
    drawn = np.ascontiguousarray(draw_bytes(key, rows, 2 * columns)).view(np.uint16)
    step = np.float32(deviation * math.sqrt(12) / 65536)
    return (drawn.astype(np.float32) - np.float32(32767.5)) * step
