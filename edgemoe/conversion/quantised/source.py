"""A checkpoint whose quantised matrices are shown as one tensor each, whatever the tensors behind them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.architectures import expert_sources, has_norms_from_one, possible_shapes
from edgemoe.conversion.over import SourceOver
from edgemoe.conversion.quantised.bitsandbytes import BITSANDBYTES
from edgemoe.conversion.quantised.form import Parts, Quantised, parts_of
from edgemoe.conversion.quantised.raw import DAMAGED, UNQUANTISED, Raw
from edgemoe.conversion.quantised.schemes import Scheme, scheme_of
from edgemoe.conversion.safetensors_rows import BytesSource
from edgemoe.conversion.source import FLOAT_DTYPES, Source, TensorInfo
from edgemoe.errors import SourceError
from edgemoe.kernels.file_rows import Rows

_ACTIVATIONS = re.compile(
    r".+\.(input_scale|input_global_scale|activation_scale|input_scale_ub|[kvq]_scale|output_scale)"
)
"""Scales by which other programs round activations, keys and values while they run."""
_BESIDE = re.compile(r".+\.weight_shape")
_STACK = re.compile(r"(?:.+\.)?layers\.(\d{1,6})\..+\.(?:switch_mlp|experts)\.(gate|up|down)_proj\.(weight|bias)")
"""The experts of a layer in one tensor, as MLX keeps them."""


def with_blocks(source: BytesSource) -> Source:
    """The same checkpoint with its quantised matrices joined; the source itself if it has none. Raises SourceError."""
    scheme = scheme_of(source.config)
    found = _all_parts(scheme, source.config, source.tensors())
    if scheme.declared and not found:
        form = scheme.forms[0]
        raise SourceError(
            f"config.json: {scheme.declared}: expected tensors of {form.program}, such as those whose names end in"
            f" {form.codes or '.weight'} and {next(iter(form.needed))}; found none.",
            "If the weights are not quantised, remove the key from the config.json of a copy of the checkpoint.",
        )
    if scheme.of_mlx and has_norms_from_one(source.config):
        raise SourceError(
            f"config.json: {scheme.declared}: expected a family whose norms MLX writes as they are, found"
            f" {source.config['model_type']}, whose norms are distances from 1, to which MLX adds 1.",
            UNQUANTISED,
        )
    return QuantisedSource(source, scheme, found) if found else source


def shown_dtypes(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """The tensors that a source shows of those with these names, each with its dtype if it is quantised, else "".

    Raises SourceError.
    """
    scheme, infos = scheme_of(config), {name: TensorInfo((), "", "") for name in names}
    found = _all_parts(scheme, config, infos)
    hidden = {parts.stem + end for parts in found.values() for end in parts}
    shown = {}
    for name in infos:
        if name in found:
            parts = found[name]
            shown[parts.stem + parts.form.shown] = parts.form.dtype(parts.stem, scheme.settings)
        elif name not in hidden and not _unneeded(scheme, name):
            shown[name] = ""
    for stack, experts in _stacks(scheme, config, shown).items():
        shown |= dict.fromkeys(experts, shown.pop(stack))
    return shown


def _unneeded(scheme: Scheme, name: str) -> bool:
    return bool(scheme.declared and (_ACTIVATIONS.fullmatch(name) or _BESIDE.fullmatch(name)))


def _all_parts(scheme: Scheme, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> dict[str, Parts]:
    """The parts of each quantised matrix, by the name of its codes."""
    shapes = possible_shapes(config) if scheme.forms == (BITSANDBYTES,) else {}
    found = ((name, parts_of(scheme.forms, name, tensors, scheme.settings, shapes)) for name in tensors)
    return {name: parts for name, parts in found if parts}


def _stacks(scheme: Scheme, config: Mapping[str, Any], names: Iterable[str]) -> dict[str, list[str]]:
    """The stacks of experts among these tensors, with the name that the family has for each expert's own tensor."""
    found = [match for name in names if (match := _STACK.fullmatch(name))] if scheme.of_mlx else []
    if not found:
        return {}
    sources = expert_sources(config)
    stacks = {}
    for match in found:
        layer, part = match[1], match[2] + ("_bias" if match[3] == "bias" else "")
        if own := sources.get((int(layer), part)):
            stacks[match[0]] = own
    return stacks


class QuantisedSource(SourceOver):
    """A `Source` over one of safetensors files."""

    def __init__(self, source: BytesSource, scheme: Scheme, found: Mapping[str, Parts]) -> None:
        super().__init__(source)
        self._raw = Raw(source)
        self._matrices: dict[str, Quantised] = {}
        self._experts: dict[str, tuple[str, int]] = {}
        infos = source.tensors()
        hidden = {parts.stem + end for parts in found.values() for end in parts}
        self._rounded: list[str] = []
        for name, info in infos.items():
            if name in found:
                self._show(found[name], infos)
            elif scheme.declared and _ACTIVATIONS.fullmatch(name):
                self._rounded.append(name)
            elif name not in hidden and not _unneeded(scheme, name):
                self._tensors[name] = info
        for stack, experts in _stacks(scheme, source.config, self._tensors).items():
            self._unstack(stack, experts)

    def _show(self, parts: Parts, infos: Mapping[str, TensorInfo]) -> None:
        codes, name = parts.stem + parts.form.codes, parts.stem + parts.form.shown
        if name != codes and name in infos:
            raise SourceError(f"{codes}: expected this or {name}, found both.", DAMAGED)
        matrix = self._matrices[name] = parts.form.open(parts)
        self._tensors[name] = TensorInfo(matrix.shape, matrix.dtype, self._last_shard(parts.infos.values()))

    def _unstack(self, stack: str, experts: Sequence[str]) -> None:
        info = self._tensors.pop(stack)
        if len(info.shape) < 2 or info.shape[0] != len(experts):
            raise SourceError(
                f"{info.shard}: {stack}: expected {len(experts)} experts from config.json, found {info.shape}.",
                DAMAGED,
            )
        self._experts |= {name: (stack, number) for number, name in enumerate(experts)}
        own = TensorInfo(info.shape[1:], info.dtype, info.shard)
        self._tensors |= dict.fromkeys(experts, own)

    def read_rows(self, tensor: str, index: int | None, row_start: int, row_stop: int) -> Rows:
        tensor, index = self._experts.get(tensor, (tensor, index))
        matrix = self._matrices.get(tensor)
        if matrix is None:
            return self._source.read_rows(tensor, index, row_start, row_stop)
        before = (index or 0) * matrix.shape[-2]
        return matrix.read(self._raw, before + row_start, before + row_stop)

    def read_columns(
        self, tensor: str, index: int | None, start: int, stop: int, height: int = 0
    ) -> npt.NDArray[np.float32]:
        assert tensor not in self._matrices  # the plan takes no quantised matrix that is transposed
        return self._source.read_columns(tensor, index, start, stop, height)

    def notices(self) -> Sequence[str]:
        notices = list(self._source.notices())
        if self._rounded:
            notices.append(
                f"{len(self._rounded)} tensors, such as {self._rounded[0]}, are left out: other programs round"
                " activations by these scales, and edgemoe by those that it finds in the activations themselves."
            )
        if floats := sum(matrix.dtype in FLOAT_DTYPES for matrix in self._matrices.values()):
            notices.append(
                f"{floats} matrices of 4 bits (bitsandbytes) are converted as the float32 numbers that they stand for:"
                " no format has their table, and any but f32 rounds them a second time."
            )
        return notices
