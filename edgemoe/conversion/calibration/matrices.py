"""The matrices that are calibrated, and the rules by which inputs become the weighing of a matrix's columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.conversion.calibration import ternary
from edgemoe.conversion.calibration.settings import Calibration
from edgemoe.conversion.encoding import Encoded, encode
from edgemoe.conversion.plan import Piece, Plan
from edgemoe.conversion.source import Source, read_slice
from edgemoe.errors import EdgemoeError, SourceError
from edgemoe.kernels import operations as op
from edgemoe.kernels.blocks import dequantise, unpack
from edgemoe.kernels.formats import Format
from edgemoe.kernels.reference.products import activate
from edgemoe.model.build import Graph
from edgemoe.model.graph import Step, Weight
from edgemoe.quant.feedback import Feedback
from edgemoe.quant.quantise import Weighing

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Slices = list[tuple[int, int, Encoded]]

DAMPING = {"n4": 0.01, "n3": 0.01}
LOW_RATE_DAMPING = 0.1
"""The share of the mean second moment that is added to each column's; by format, or below three bits."""


class Matrices:
    """The matrices of a conversion that are calibrated."""

    def __init__(self, source: Source, plan: Plan, graph: Graph, calibration: Calibration) -> None:
        self._source = source
        self._feedback = calibration.feedback
        self._sized = calibration.bits is not None
        self._parts = plan.parts
        self.all = {piece.name: piece for piece in plan.pieces if not piece.repeats}
        self.pieces = {name: self.all[name] for name in _known_inputs(self.all, graph) if self.takes(self.all[name])}
        """The pieces that are calibrated and whose inputs an operation of a layer names, by their names."""

    def takes(self, piece: Piece) -> bool:
        """Whether a piece is calibrated where its inputs are known."""
        return is_calibrated(piece)

    def expert(self, layer: int, number: int) -> list[str]:
        """The names of an expert's gate, if it has one, up and down."""
        names = (f"layers.{layer}.experts.{number}.{part}" for part in ("gate", "up", "down"))
        return [name for name in names if name in self.all]

    def biases(self, names: Sequence[str]) -> list[Floats | None]:
        """The biases of matrices; None for one without."""
        found = (self.all.get(f"{name}_bias") for name in names)
        return [None if piece is None else self.plain(piece).reshape(-1) for piece in found]

    def quantised(
        self, names: Sequence[str], moments: Doubles, first: Sequence[tuple[Slices, Floats]] = ()
    ) -> list[tuple[Slices, Floats]]:
        """Matrices encoded by their inputs' second moments, some rows at a time, and the weights that they then have.

        One that is not calibrated has no code, and its own weights. `first` is what was found for an expert's gate and
        up, if this is its down. Raises SourceError, naming it.
        """
        if any(name in self.pieces and self.pieces[name].place.varying for name in names):
            return self._ternary(names, moments, first)
        weighings: dict[Format, Weighing] = {}
        found: list[tuple[Slices, Floats]] = []
        for name in names:
            piece = self.pieces.get(name)
            if piece is None:
                found.append(([], self.plain(self.all[name])))
                continue
            fmt = piece.place.format
            assert fmt is not None
            if fmt not in weighings:
                weighings[fmt] = weighing_of(moments, fmt, self._feedback, piece.source.tensor)
            found.append(self._quantised(piece, fmt, weighings[fmt]))
        return found

    def _ternary(
        self, names: Sequence[str], moments: Doubles, first: Sequence[tuple[Slices, Floats]]
    ) -> list[tuple[Slices, Floats]]:
        """All matrices of one input of an expert, each in one slice."""
        pieces = [self.pieces[name] for name in names]
        what = pieces[0].source.tensor
        _check_moments(moments, what)
        size = self._parts[pieces[0].place.part].bytes
        if first:
            room = ternary.down_room(size, [encoded for slices, _ in first for _, _, encoded in slices])
        else:
            down = self.all[f"{names[0].rpartition('.')[0]}.down"]
            if self._sized:
                shapes = [(piece.place.rows, piece.place.columns) for piece in (*pieces, down)]
                room = ternary.first_room(size, shapes[:-1], shapes[-1])
            else:
                room = ternary.room_beside(size, down.source.tensor, self.plain(down))
        matrices = [(piece.source.tensor, self.plain(piece)) for piece in pieces]
        found = ternary.quantised(matrices, moments, room, self._sized, self._feedback)
        return [([(0, len(weights), encoded)], weights) for encoded, weights in found]

    def _quantised(self, piece: Piece, fmt: Format, weighing: Weighing) -> tuple[Slices, Floats]:
        place, what = piece.source, piece.source.tensor
        slices, parts = [], []
        for start, stop in piece.place.row_slices():
            rows = encode(read_slice(self._source, place, start, stop), fmt, what, weighing)
            slices.append((start, stop, rows))
            blocks = unpack(np.concatenate([rows.head, rows.data]), fmt, stop - start, piece.place.columns)
            parts.append(dequantise(blocks))
        return slices, np.concatenate(parts)

    def plain(self, piece: Piece) -> Floats:
        """The checkpoint's numbers of a whole matrix or vector. Raises SourceError."""
        rows = read_slice(self._source, piece.source, 0, piece.place.rows)
        return rows if isinstance(rows, np.ndarray) else dequantise(rows)


def is_calibrated(piece: Piece) -> bool:
    """Whether a piece is in a format that a text makes better: one with a trellis, or sub1."""
    fmt = piece.place.format
    return fmt is not None and (fmt.trellis is not None or fmt.varying)


def _known_inputs(pieces: Mapping[str, Piece], graph: Graph) -> Iterator[str]:
    """The names of matrices that FFNs and products of layers use."""
    names = {name for name, piece in pieces.items() if piece.kind == "experts"}
    for section in (*graph.layers, *([] if graph.encoder is None else [graph.encoder.end])):
        names |= {name for step in section.steps for group in groups_of(step) for name in group}
    return (name for name in pieces if name in names)


def groups_of(step: Step) -> list[list[str]]:
    """The names of the dense matrices that an operation uses: those of its input, then those of hidden values."""
    operation: Any = step.operation
    if isinstance(operation, op.Linear):
        return [[name for part in operation.parts for name in _names(part.matrix)]]
    if isinstance(operation, op.GatedFfn):
        first = operation.apart or operation
        fields = ("gate", "up") if operation.apart else ("gate_up",)
        return [[name for field in fields for name in _names(getattr(first, field))], list(_names(operation.down))]
    if isinstance(operation, op.PlainFfn):
        return [list(_names(operation.up)), list(_names(operation.down))]
    return []


def _names(weight: Any) -> Iterator[str]:
    """The names of the pieces of a stored matrix."""
    assert isinstance(weight, Weight)
    head, _, last = weight.name.rpartition(".")
    if last == "gate_up":
        yield from (f"{head}.gate", f"{head}.up")
    else:
        yield weight.name


def weighing_of(moments: Doubles, fmt: Format, feedback: bool, what: str) -> Weighing:
    """How errors in a matrix of a format are weighed, by its inputs' second moments. Raises SourceError, naming it."""
    assert fmt.trellis is not None
    _check_moments(moments, what)
    if not feedback:
        return np.ascontiguousarray(np.diagonal(moments), np.float32)
    try:
        return Feedback.of(moments, fmt.trellis, DAMPING.get(fmt.name, LOW_RATE_DAMPING))
    except EdgemoeError as problem:
        raise SourceError(f"{what}: {problem.message}", problem.hint) from None


def _check_moments(moments: Doubles, what: str) -> None:
    if not np.isfinite(moments).all():
        raise SourceError(
            f"{what}: expected finite inputs from the text for calibration, found others.",
            "Does the checkpoint compute numbers beyond float32? Convert it without calibration to see.",
        )


def hidden(inputs: Floats, first: Sequence[Floats], biases: Sequence[Floats | None], operation: Any) -> Floats:
    """The hidden values of an FFN, by gate and up, or by up alone."""
    products = [inputs @ weights.T for weights in first]
    products = [own if bias is None else own + bias for own, bias in zip(products, biases, strict=True)]
    up = products[-1] if len(products) > 1 else np.ones_like(products[0])
    return activate(products[0], up, operation.activation)
