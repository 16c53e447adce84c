"""The pass that calibrates: a text goes through the model once, layer by layer, and what it meets is quantised.

A matrix is quantised when its inputs are known, and the operations after it run with the quantised weights: so it makes
up for the errors of those before it. An expert is weighed by the tokens that its router sends it, each by the square of
its share; where they are few, by the layer's other tokens too.

An interrupted pass begins again at the first layer, since its state is the text on its way through the model. Layers
that are written already are only run, which takes a small part of the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

from edgemoe.conversion.calibration.layers import MOST_BYTES, LayerRun, layer_of, within
from edgemoe.conversion.calibration.matrices import Matrices, Slices, groups_of, hidden
from edgemoe.conversion.calibration.measuring import Loss, Reference, loss_of
from edgemoe.conversion.calibration.settings import Windows
from edgemoe.conversion.calibration.weights import StoreWeights, Weights
from edgemoe.conversion.plan import Piece
from edgemoe.conversion.progress import Callback
from edgemoe.conversion.transfer import Transfer
from edgemoe.errors import UsageError
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels.select import select_backend
from edgemoe.model.build import Graph
from edgemoe.model.graph import Section, Step
from edgemoe.quant.moments import Doubles, Floats, blended, second_moments
from edgemoe.store.reader import Store

THREADS = 2
WIDE_COLUMNS = 4096
"""With more columns than this, experts are calibrated one after another: their second moments are large."""
PRIOR_TOKENS = 256
"""How many tokens of its own weigh as much as what an expert takes from its layer's tokens."""
SAMPLE_TOKENS = 256
"""How many tokens of a layer go through each of its experts, to say what hidden values it has."""
_ROWS_AT_ONCE = 2048


class CalibrationPass:
    """The pass over one conversion's matrices in formats with a trellis, or in sub1."""

    def __init__(self, matrices: Matrices, graph: Graph, windows: Windows) -> None:
        """Raises UsageError for a model that cannot be calibrated, and for formats that take no calibration."""
        if graph.has_rows_on_disk:
            raise UsageError(
                "`calibrate`: expected a model without tables of rows on disk, whose text goes through it layer by"
                " layer.",
                "Convert it without calibration.",
            )
        self._graph = graph
        self._windows = within(MOST_BYTES, graph, windows)
        self._matrices = matrices
        self._stream: Floats | None = None
        if not self._matrices.pieces:
            raise UsageError(
                "`calibrate`: expected weights in a format with a trellis or in sub1, which alone take it; found none.",
                "Name one, such as `experts=n3`.",
            )

    @property
    def numbers(self) -> frozenset[int]:
        """The numbers of the pieces that the pass writes."""
        return frozenset(piece.number for piece in self._matrices.pieces.values())

    def notices(self) -> list[str]:
        """A sentence where the text is short."""
        return self._windows.notices()

    @property
    def measures(self) -> bool:
        """Whether there are tokens that calibrate nothing, by which the loss can be measured."""
        return self._windows.held > 0

    def run(self, store: Store, transfer: Transfer, done: Collection[int]) -> None:
        """Quantise what is not `done`, in a store of which all else is written.

        Raises SourceError, OSError, and what running a model raises.
        """
        missing = {name for name, piece in self._matrices.pieces.items() if piece.number not in done}
        if not missing and not self.measures:
            return
        transfer.begin_apart()
        layers = self._graph.layers
        last = len(layers) - 1 if self.measures else max(int(name.split(".")[1]) for name in missing)
        with closing(select_backend()) as backend, ThreadPoolExecutor(THREADS, "edgemoe-calibrate") as pool:
            run = LayerRun(self._graph, StoreWeights(store), self._windows, backend)
            for section in run.sections():
                doing = "end of the encoder"
                if section in layers:
                    doing = f"layer {layers.index(section) + 1} of {last + 1}"
                layer = _Layer(self._matrices, missing, run, transfer, pool, doing)
                for step in run.steps(section):
                    if isinstance(step.operation, ex.Experts):
                        layer.experts(section, step.operation)
                    else:
                        layer.dense(step)
                    run.run(step)
                transfer.checkpoint()
                if section is layers[last]:
                    break
            self._stream = run.residual(self._windows.held * self._windows.ids.shape[1])

    def loss(self, store: Store, exact: Weights | Reference, progress: Callback | None = None) -> Loss:
        """The loss of the store against other weights of the model, or against a run with such; after `run`.

        A run with other weights tells its progress. Raises as `run`.
        """
        assert self._stream is not None
        held = self._windows.held_out()
        with closing(select_backend()) as backend:
            reference = exact if isinstance(exact, Reference) else Reference(exact, held, backend, progress)
            return loss_of(self._graph, StoreWeights(store), self._stream, reference, held, backend)


class _ExpertInputs(NamedTuple):
    """The tokens by which an expert is weighed."""

    own: Floats
    """Inputs of the tokens that chose it."""
    weights: Floats
    """The weight of each of them, one on average."""
    sample: Floats
    """Inputs of some of the layer's tokens."""
    prior: Doubles
    """The second moments of all of them."""


class _Layer:
    """The matrices of one layer that are to be quantised."""

    def __init__(
        self,
        matrices: Matrices,
        missing: Collection[str],
        run: LayerRun,
        transfer: Transfer,
        pool: ThreadPoolExecutor,
        doing: str,
    ) -> None:
        self._matrices, self._missing, self._run = matrices, missing, run
        self._transfer, self._pool, self._doing = transfer, pool, doing

    def dense(self, step: Step) -> None:
        """Quantise the dense matrices that an operation is about to use, if one of them is missing."""
        groups = groups_of(step)
        if not any(name in self._missing for names in groups for name in names):
            return
        operation: Any = step.operation
        inputs = self._run.array(operation.input)[self._run.counted]
        first = self._put(groups[0], second_moments(inputs) / len(inputs))
        if len(groups) > 1:
            biases = self._matrices.biases(groups[0])
            total: Any = 0.0
            for start in range(0, len(inputs), _ROWS_AT_ONCE):
                total += second_moments(hidden(inputs[start : start + _ROWS_AT_ONCE], first, biases, operation))
            self._put(groups[1], total / len(inputs))

    def _put(self, names: Sequence[str], moments: Doubles) -> list[Floats]:
        """Quantise and write matrices of one input; returns the weights that they then have."""
        found = []
        for name, (slices, weights) in zip(names, self._matrices.quantised(names, moments), strict=True):
            found.append(weights)
            if slices:
                self._transfer.put(self._doing, self._matrices.pieces[name], slices)
        return found

    def experts(self, section: Section, operation: ex.Experts) -> None:
        """Quantise the experts that are missing, each by the tokens that chose it."""
        assert section.routing is not None
        total, layer = self._run.array(section.routing.slots).shape[0], layer_of(operation)
        names = [self._matrices.expert(layer, number) for number in range(total)]
        missing = [number for number in range(total) if any(name in self._missing for name in names[number])]
        if not missing:
            return
        counted = np.flatnonzero(self._run.counted)
        inputs = self._run.array(operation.input)[counted]
        chosen = self._run.array(operation.experts)[counted]
        shares = self._run.array(section.routing.weights)[counted]
        prior = second_moments(inputs) / len(inputs)
        sample = inputs[:: max(1, len(inputs) // SAMPLE_TOKENS)][:SAMPLE_TOKENS]
        waiting: deque[Future[list[tuple[Piece, Slices]]]] = deque()
        most = THREADS if inputs.shape[1] <= WIDE_COLUMNS else 1
        for number in missing:
            rows, ranks = np.nonzero(chosen == number)
            weights = np.square(shares[rows, ranks])
            mean = float(weights.mean()) if len(rows) else 0.0
            weights = weights / np.float32(mean) if mean > 0 else np.ones_like(weights)
            own = _ExpertInputs(inputs[rows], weights, sample, prior)
            waiting.append(self._pool.submit(self._expert, names[number], own, operation))
            if len(waiting) > most:
                self._put_expert(waiting.popleft())
        while waiting:
            self._put_expert(waiting.popleft())

    def _expert(self, names: Sequence[str], inputs: _ExpertInputs, operation: ex.Experts) -> list[tuple[Piece, Slices]]:
        """Quantise the matrices of one expert."""
        matrices, results = self._matrices, []
        moments = blended(second_moments(inputs.own, inputs.weights), len(inputs.own), inputs.prior, PRIOR_TOKENS)
        first = matrices.quantised(names[:-1], moments)
        biases = matrices.biases(names[:-1])
        own, sample = (
            hidden(rows, [weights for _, weights in first], biases, operation) for rows in (inputs.own, inputs.sample)
        )
        prior = second_moments(sample) / len(sample)
        moments = blended(second_moments(own, inputs.weights), len(own), prior, PRIOR_TOKENS)
        last = matrices.quantised(names[-1:], moments, first)
        for name, (slices, _) in zip(names, [*first, *last], strict=True):
            if slices:
                results.append((matrices.pieces[name], slices))
        return results

    def _put_expert(self, work: Future[list[tuple[Piece, Slices]]]) -> None:
        for piece, slices in work.result():
            self._transfer.put(self._doing, piece, slices)
