"""Measures what a calibrated store has lost: its distributions over text that is held out, against the checkpoint's.

The tokens that are held out go through the store with those that calibrate. Then they go through the checkpoint's own
weights, layer by layer too, and of both streams the logits are compared, a few rows at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgemoe.conversion.calibration.layers import Floats, LayerRun
from edgemoe.conversion.calibration.settings import Windows
from edgemoe.conversion.calibration.watched_weights import WatchedWeights
from edgemoe.conversion.calibration.weights import Weights
from edgemoe.conversion.progress import Callback
from edgemoe.kernels.backend import Backend
from edgemoe.lab.divergence import Divergence, Estimate, ReferenceRow, Scores
from edgemoe.model.build import Graph, build_graph
from edgemoe.model.description import build_options, store_spec

BLOCK_TOKENS = 128
"""Neighbouring positions that count as one for intervals: those of a window are more alike than others."""


@dataclass(frozen=True)
class Loss:
    """The loss of a store on held-out text."""

    divergence: Divergence
    positions: int
    perplexity: Estimate
    exact_perplexity: Estimate
    """The checkpoint's."""

    def described(self) -> str:
        """Return it as a sentence."""
        found = self.divergence
        return (
            f"On {self.positions} tokens of the text that calibrated nothing, the store is {_nats(found.nats)} nats"
            f" (KL divergence) from its checkpoint, the likeliest token is the same at {_percent(found.same_top)}, and"
            f" the perplexity is {self.perplexity.mean:.2f}, that of the checkpoint {self.exact_perplexity.mean:.2f}."
        )


def _nats(estimate: Estimate) -> str:
    return f"{estimate.mean:.4f}" + _interval(estimate, "{:.4f}")


def _percent(estimate: Estimate) -> str:
    return f"{estimate.mean:.1%}" + _interval(estimate, "{:.1%}")


def _interval(estimate: Estimate, form: str) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f" ({form.format(estimate.low)} to {form.format(estimate.high)})"


class Reference:
    """The streams of held-out tokens after all layers of a model, from which its logits follow."""

    def __init__(self, weights: Weights, windows: Windows, backend: Backend, progress: Callback | None = None) -> None:
        """Run the model's layers. Raises SourceError, OSError, and what running a model raises."""
        store = weights.store
        graph = build_graph(store_spec(store), build_options(store))
        watched = WatchedWeights(weights, progress)
        self.run = LayerRun(graph, watched, windows, backend)
        for section in self.run.sections():
            if section in graph.layers:
                watched.begin(graph.layers.index(section))
            for step in self.run.steps(section):
                self.run.run(step)
        watched.end()
        self.stream = self.run.residual(windows.ids.size)


def loss_of(
    graph: Graph, weights: Weights, stream: Floats, reference: Reference, windows: Windows, backend: Backend
) -> Loss:
    """The loss of a model, by the streams that held-out windows have after its layers.

    Raises SourceError, OSError, and what running a model raises.
    """
    count, length = windows.ids.shape
    first = max(windows.head - 1, 0)  # the first token that has one before it
    following = np.roll(windows.ids, -1, axis=1)
    inside = np.broadcast_to((np.arange(length) >= first) & (np.arange(length) < length - 1), (count, length))
    scores = Scores(graph.spec.vocab_size, int(inside.sum()))
    run = LayerRun(graph, weights, windows, backend)
    row = 0
    both = run.logits(stream, backend), reference.run.logits(reference.stream, backend)
    for mine, exact in zip(*both, strict=True):
        for logits, wanted in zip(mine, exact, strict=True):
            window, place = divmod(row, length)
            row += 1
            if inside[window, place]:
                if place == first or place % BLOCK_TOKENS == 0:
                    scores.begin_block()
                scores.add(logits, int(following[window, place]), ReferenceRow(wanted))
    found, loss, exact_loss = scores.divergence, scores.loss, scores.reference_loss
    assert found is not None
    assert loss is not None
    assert exact_loss is not None
    return Loss(found, scores.positions, loss.exponential(), exact_loss.exponential())
