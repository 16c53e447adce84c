"""Records the routers' choices in a trace, token by token.

Letters: `T` tokens computed together, `K` experts used for each token, `E` experts of a layer.

Invariant: recording reads the buffers that a step has filled and changes nothing. Where the trace can no longer be
written, recording ends and the engine goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgemoe.engine.decoder import LayerRouting
from edgemoe.engine.phase import DECODE, PROMPT, Turn
from edgemoe.errors import TraceError, UsageError
from edgemoe.lab.trace import Trace, TraceShape, TraceWriter
from edgemoe.model.spec import ModelSpec
from edgemoe.store.reader import Store

if TYPE_CHECKING:
    from edgemoe.engine.engine import Engine


class RoutingRecorder:
    """Hands the routing of each step to a writer. Make one with `recording`."""

    def __init__(
        self,
        writer: TraceWriter,
        routing: Sequence[LayerRouting | None],
        failed: Callable[[TraceError], None] = lambda error: None,
        drops_cold: bool = False,
    ) -> None:
        """`failed` is called, once, with the error when the trace can no longer be written.

        `drops_cold`: experts that are not in RAM and have zero weight have been dropped, and count no bytes.
        """
        self.writer = writer
        self.tokens = {PROMPT: 0, DECODE: 0}
        """Tokens recorded so far, by phase."""
        self.failure: TraceError | None = None
        self._failed = failed
        self._drops_cold = drops_cold
        self._routing = [(layer, one) for layer, one in enumerate(routing) if one is not None]
        self._first_turn: int | None = None
        self._last_turn = 0
        self._uses = self._resident_uses = 0
        self._used = np.zeros((len(routing), writer.shape.experts), np.bool_)
        sizes = [len(one.experts[0]) for _, one in self._routing]
        self._layers = np.repeat([layer for layer, _ in self._routing], sizes).astype(np.int32)
        self._slots = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
        self._bytes = np.array(writer.shape.expert_bytes, np.int64)[self._layers]

    def step(self, turn: Turn, tokens: int) -> None:
        """Record the routing of the step that has just ended; `turn.step` is the number of its first token."""
        if self.failure is not None:
            return
        if self._first_turn is None:
            self._first_turn = turn.number
        try:
            if tokens == 1:
                self._write(turn, self._one_token())
            else:  # a layer at a time: there may be a hundred thousand rows in all
                for layer, routing in self._routing:
                    self._write(turn, self._several_tokens(layer, routing, tokens))
        except TraceError as error:
            self.failure = error
            self._failed(error)
        else:
            self.tokens[turn.phase] += tokens
            self._last_turn = turn.number

    def close(self) -> None:
        """Write the buffered rows. Closing twice is harmless."""
        try:
            self.writer.close()
        except TraceError as error:
            self.failure = error
            self._failed(error)

    def summary(self) -> dict[str, Any]:
        """A summary of the recording as plain JSON; `distinct_experts` is per layer with routed experts."""
        shape, tokens = self.writer.shape, sum(self.tokens.values())
        used = np.count_nonzero(self._used, axis=1)
        return {
            "path": str(self.writer.path),
            "file_bytes": self.writer.file_bytes,
            "tokens": tokens,
            "prompt_tokens": self.tokens[PROMPT],
            "decode_tokens": self.tokens[DECODE],
            "turns": self._last_turn - (self._first_turn or 0) + 1 if tokens else 0,
            "uses": self._uses,
            "resident_uses": self._resident_uses,
            "distinct_experts": [int(used[layer]) for layer, _ in self._routing],
            "experts": shape.experts,
            "experts_used": shape.experts_used,
        }

    def _one_token(self) -> _Rows:
        experts = np.concatenate([one.experts[0] for _, one in self._routing])
        weights = np.concatenate([one.weights[0] for _, one in self._routing])
        residency = np.concatenate([one.residency[one.experts[0]] for _, one in self._routing])
        steps = np.zeros(len(experts), np.int32)
        read = ~residency & (weights != 0) if self._drops_cold else ~residency
        return _Rows(steps, self._layers, self._slots, experts, weights, residency, self._bytes * read)

    def _several_tokens(self, layer: int, routing: LayerRouting, tokens: int) -> _Rows:
        used = routing.experts.shape[1]
        experts = routing.experts[:tokens].reshape(-1)
        weights = routing.weights[:tokens].reshape(-1)
        residency = routing.residency[experts]
        read = ~residency
        if self._drops_cold:  # an expert with a weight for some token was read
            read &= np.isin(experts, experts[weights != 0])
        sizes = np.zeros(len(experts), np.int64)
        first_of_each = np.unique(experts, return_index=True)[1]
        sizes[first_of_each] = self.writer.shape.expert_bytes[layer] * read[first_of_each]
        return _Rows(
            np.repeat(np.arange(tokens, dtype=np.int32), used),
            np.full(len(experts), layer, np.int32),
            np.tile(np.arange(used, dtype=np.int32), tokens),
            experts,
            weights,
            residency,
            sizes,
        )

    def _write(self, turn: Turn, rows: _Rows) -> None:
        assert self._first_turn is not None
        if (rows.experts < 0).any():  # choices of no expert, which ask for nothing
            rows = rows.where(rows.experts >= 0)
        self._uses += len(rows.steps)
        self._used[rows.layers, rows.experts] = True
        self._resident_uses += int(np.count_nonzero(rows.residency))
        self.writer.write(
            Trace(
                self.writer.shape,
                turn=np.full(len(rows.steps), turn.number - self._first_turn, np.int32),
                phase=np.full(len(rows.steps), turn.phase, np.uint8),
                step=rows.steps + np.int32(turn.step),
                layer=rows.layers,
                slot=rows.slots,
                expert=rows.experts.copy(),
                weight=rows.weights.copy(),
                residency=rows.residency,
                expert_bytes=rows.sizes,
            )
        )


@dataclass(frozen=True)
class _Rows:
    steps: npt.NDArray[np.int32]
    layers: npt.NDArray[np.int32]
    slots: npt.NDArray[np.int32]
    experts: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    residency: npt.NDArray[np.bool_]
    sizes: npt.NDArray[np.int64]

    def where(self, chosen: npt.NDArray[np.bool_]) -> _Rows:
        """Some of the rows."""
        return _Rows(*(getattr(self, column.name)[chosen] for column in fields(self)))


@contextmanager
def recording(
    engine: Engine,
    path: Path | str,
    failed: Callable[[TraceError], None] = lambda error: None,
    model: str | None = None,
) -> Iterator[RoutingRecorder]:
    """Context manager that writes the engine's routing to a file.

    `model` is the model's name in the trace; by default that of its folder.

    Raises TraceError where the file cannot be made. If it can no longer be written later, `failed` is called instead,
    once. Raises UsageError for a model without routed experts, and for a file's name in .csv.
    """
    writer = TraceWriter(path, trace_shape(engine.store, engine.spec, model))
    recorder = RoutingRecorder(writer, engine.routing, failed, engine.lossy.drop_cold > 0)
    engine.recorder = recorder
    try:
        yield recorder
    finally:
        engine.recorder = None
        recorder.close()


def trace_shape(store: Store, spec: ModelSpec, model: str | None = None) -> TraceShape:
    """The shape of a model, for the header of its trace. Raises UsageError for one without routed experts."""
    if not spec.routed_of_tokens:
        raise UsageError("this model has no routed experts.", "There is no routing to record.")
    dense = [0] * len(spec.layers)
    for tensor in store.manifest.dense:
        room, _, rest = tensor.name.partition(".")
        if room == "layers":
            dense[int(rest.partition(".")[0])] += tensor.bytes
    return TraceShape(
        model or store.path.resolve().name,
        spec.family,
        len(spec.layers),
        spec.most_experts,
        spec.most_top_k,
        # A trace is of written tokens, which go through no layer of an encoder.
        tuple(
            store.manifest.records.mean_bytes(layer) if layer in spec.routed_of_tokens else 0
            for layer in range(len(spec.layers))
        ),
        tuple(dense),
    )
