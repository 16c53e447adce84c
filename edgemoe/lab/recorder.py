"""Records the routers' choices in a trace, token by token.

Letters: `T` tokens computed together, `K` experts used for each token, `E` experts of a layer.

Invariant: recording reads the buffers that a step has filled and changes nothing. Where the trace can no longer be
written, recording ends and the engine goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemoe.engine.batch import Rows
from edgemoe.engine.decoder import LayerRouting
from edgemoe.engine.phase import DECODE, PROMPT
from edgemoe.errors import TraceError, UsageError
from edgemoe.lab.run_rows import RunRows, RunTokens
from edgemoe.lab.trace import Trace, TraceShape, TraceWriter
from edgemoe.model.spec import ModelSpec
from edgemoe.store.reader import Store

if TYPE_CHECKING:
    from edgemoe.engine.engine import Engine


class RoutingRecorder:
    """Hands the routing of each step to a writer. Make one with `recording`."""

    one_sequence = True
    drafts = False

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
        self._rows = RunRows(writer.shape, routing, drops_cold)
        self._first_turn: int | None = None
        self._last_turn = 0
        self._uses = self._resident_uses = 0
        self._used = np.zeros((len(routing), writer.shape.experts), np.bool_)

    def step(self, run: Sequence[Rows]) -> None:
        """Record the routing of the run that has just ended."""
        if self.failure is not None:
            return
        turn = run[0].piece.sequence.turn
        if self._first_turn is None:
            self._first_turn = turn.number
        try:
            for rows in self._rows.read(RunTokens.of(run, self._first_turn)):
                self._write(rows)
        except TraceError as error:
            self.failure = error
            self._failed(error)
        else:
            self.tokens[turn.phase] += sum(rows.count for rows in run)
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
            "distinct_experts": [int(used[layer]) for layer, _ in self._rows.routing],
            "experts": shape.experts,
            "experts_used": shape.experts_used,
        }

    def _write(self, rows: Trace) -> None:
        if (rows.expert < 0).any():  # choices of no expert, which ask for nothing
            rows = rows.select(rows.expert >= 0)
        self._uses += len(rows)
        self._used[rows.layer, rows.expert] = True
        self._resident_uses += int(np.count_nonzero(rows.residency))
        self.writer.write(rows)


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
