"""Measures what each format costs in each layer's experts, on a sample of their rows.

With a text, which goes through the checkpoint's own weights, an error is that of the results of experts: of the tokens
that choose them, weighted by their shares, and relative to the residual stream that the results join. Rounding gate
and up counts by what it changes behind down. Without a text it is that of the weights, in the first, the middle and the
last layer, as a checkpoint's files may have to be downloaded first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np

from edgemoe.conversion.bits import NAMES, Errors, Key
from edgemoe.conversion.calibration.layers import MOST_BYTES, Floats, LayerRun, layer_of, windows_of, within
from edgemoe.conversion.calibration.matrices import hidden
from edgemoe.conversion.calibration.settings import Calibration, Windows
from edgemoe.conversion.calibration.weights import SourceWeights
from edgemoe.conversion.source import Source
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels.blocks import dequantise
from edgemoe.kernels.formats import FORMATS
from edgemoe.kernels.select import select_backend
from edgemoe.model.build import Graph, build_graph
from edgemoe.model.description import build_options, store_spec
from edgemoe.model.graph import Section
from edgemoe.quant.quantise import quantise

MEASURED_TOKENS = 1024
SAMPLED_EXPERTS = 3
"""Experts of a layer that are sampled: those that most tokens chose."""
SAMPLED_ROWS = 64
"""Rows of each of their matrices."""
MOST_TOKENS = 128
"""The tokens of each of them."""

DOWN_WEIGHT, END_WEIGHT = 2.0, 2.0
"""The weights of errors of down, and of the first and the last layer, where no text says what they are worth."""


def measured_errors(source: Source, calibration: Calibration | None, side_files: Mapping[str, bytes]) -> Errors:
    """The errors of formats, by the text if there is one that the model can be run through.

    Raises UsageError for a text that is short, SourceError, OSError, and what running a model raises.
    """
    weights = SourceWeights(source)
    graph = build_graph(store_spec(weights.store), build_options(weights.store))
    if calibration is None or graph.has_rows_on_disk:
        return errors_of_weights(weights)
    some = replace(calibration, tokens=min(calibration.tokens, MEASURED_TOKENS), held_out=0)
    windows = windows_of(some, side_files, graph)
    return errors_by_text(weights, graph, within(MOST_BYTES, graph, windows))


def errors_by_text(weights: SourceWeights, graph: Graph, windows: Windows) -> Errors:
    """The errors of formats by what a text makes of them. Raises SourceError, OSError, and what running raises."""
    found: dict[Key, dict[str, float]] = {}
    with closing(select_backend()) as backend:
        run = LayerRun(graph, weights, windows, backend)
        for section in run.sections():
            stream = float(np.square(run.residual(run.tokens), dtype=np.float64).sum(axis=1).mean())
            for step in run.steps(section):
                if isinstance(step.operation, ex.Experts):
                    found |= _of_layer(weights, run, section, step.operation, stream)
                run.run(step)
    return found


def errors_of_weights(weights: SourceWeights) -> Errors:
    """The errors of formats by the weights alone. Raises SourceError."""
    members = weights.experts()
    layers = list(members)
    ends, middle = (layers[0], layers[-1]), layers[len(layers) // 2]
    found: dict[Key, dict[str, float]] = {}
    for layer in {*ends, middle}:
        some = [weights.matrices(layer, number) for number in members[layer][:SAMPLED_EXPERTS]]
        for part, share in (("", 1.0), ("down", DOWN_WEIGHT)):
            rows = [own for one in some for own in (one[-1:] if part else one[:-1])]
            cost = sum(own.size for own in rows) * share * (END_WEIGHT if layer in ends else 1.0)
            found[layer, part] = {name: cost * _relative([_sampled(own)[0] for own in rows], name) for name in NAMES}
    return {(layer, part): found.get((layer, part), found[middle, part]) for layer in layers for part in ("", "down")}


def _relative(matrices: list[Floats], name: str) -> float:
    errors = sum(float(np.square(own - _rounded(own, name, None)).sum()) for own in matrices)
    return errors / max(sum(float(np.square(own).sum()) for own in matrices), 1e-30)


def _of_layer(
    weights: SourceWeights, run: LayerRun, section: Section, operation: ex.Experts, stream: float
) -> Iterator[tuple[Key, dict[str, float]]]:
    """Yield the errors of a layer's gate and up, and of its down, for each token of it."""
    assert section.routing is not None
    layer = layer_of(operation)
    inputs, chosen = run.array(operation.input), run.array(operation.experts)
    shares = run.array(section.routing.weights)
    numbers, counts = np.unique(chosen[chosen >= 0], return_counts=True)
    first: dict[str, float] = dict.fromkeys(NAMES, 0.0)
    last: dict[str, float] = dict.fromkeys(NAMES, 0.0)
    tokens = 0
    for number in numbers[np.argsort(-counts, kind="stable")][:SAMPLED_EXPERTS].tolist():
        rows, ranks = np.nonzero(chosen == number)
        rows, ranks = rows[:MOST_TOKENS], ranks[:MOST_TOKENS]
        tokens += len(rows)
        share = shares[rows, ranks][:, None]
        own = weights.matrices(layer, number)
        biases = weights.biases(layer, number)
        for total, errors in zip((first, last), _of_expert(inputs[rows], share, own, biases, operation), strict=True):
            for name in NAMES:
                total[name] += errors[name]
    scale = chosen.shape[1] / max(tokens, 1) / max(stream, 1e-30)
    yield (layer, ""), {name: error * scale for name, error in first.items()}
    yield (layer, "down"), {name: error * scale for name, error in last.items()}


def _of_expert(
    inputs: Floats, share: Floats, own: list[Floats], biases: list[Floats | None], operation: Any
) -> tuple[dict[str, float], ...]:
    """The squared errors of the weighted results of an expert, by formats: of those of gate and up, and of down."""
    *first, down = own
    values = hidden(inputs, first, biases, operation)
    samples, places = zip(*map(_sampled, first), strict=True)
    few = [None if bias is None else bias[places[0]] for bias in biases]
    exact = hidden(inputs, samples, few, operation)
    behind, factor = down[:, places[0]], down.shape[1] / len(places[0])
    rows, _ = _sampled(down)
    importance = [np.square(given * share).mean(axis=0) for given in (inputs, values)]
    found: tuple[dict[str, float], ...] = ({}, {})
    for name in NAMES:
        rounded = [_rounded(sample, name, importance[0]) for sample in samples]
        change = (hidden(inputs, rounded, few, operation) - exact) @ behind.T
        found[0][name] = factor * float(np.square(change * share, dtype=np.float64).sum())
        change = values @ (_rounded(rows, name, importance[1]) - rows).T
        found[1][name] = len(down) / len(rows) * float(np.square(change * share, dtype=np.float64).sum())
    return found


def _sampled(matrix: Floats) -> tuple[Floats, Any]:
    """Some rows of a matrix, evenly, and their numbers."""
    places = np.linspace(0, len(matrix) - 1, min(SAMPLED_ROWS, len(matrix))).astype(int)
    return np.ascontiguousarray(matrix[places]), places


def _rounded(values: Floats, name: str, importance: Floats | None) -> Floats:
    return dequantise(quantise(values, FORMATS[name], importance))
