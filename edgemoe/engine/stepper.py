"""One step of the model over a run of tokens: all at once where experts are resident, layer by layer where not."""

from __future__ import annotations

import contextlib
import itertools
import time
from typing import Protocol

import numpy as np

from edgemoe.engine.decoder import Decoder, LayerRouting
from edgemoe.engine.ledger import Programs
from edgemoe.engine.lossy_routing import LossyRouting
from edgemoe.errors import ReadError
from edgemoe.experts.cache import Cache
from edgemoe.experts.policy import passes_through
from edgemoe.experts.prediction import PredictionSwitch
from edgemoe.kernels.operations import Program
from edgemoe.kernels.paging import CacheStatistics


class Stepper(Protocol):
    """Runs the tokens in the workspace through all layers."""

    statistics: CacheStatistics
    notes_residency: bool
    """Whether `LayerRouting.residency` is kept."""

    def step(self, tokens: int) -> None:
        """Run all layers for the first `tokens` rows of the workspace; the residual stream holds the result."""

    def is_loaded(self, layer: int, expert: int) -> bool:
        """Whether an expert is in RAM."""


class ResidentStepper:
    """All experts in RAM: one program for the whole token, and no bookkeeping."""

    def __init__(self, decoder: Decoder, programs: Programs, statistics: CacheStatistics) -> None:
        self.statistics = statistics
        self.notes_residency = False
        self._program = programs.make(decoder.whole())
        self._routed_per_token = sum(routing.experts.shape[1] for routing in decoder.routing if routing is not None)

    def step(self, tokens: int) -> None:
        self._program.run(tokens)
        self.statistics.hits += tokens * self._routed_per_token

    def is_loaded(self, layer: int, expert: int) -> bool:
        return True


class StreamingStepper:
    """Some experts in RAM: each layer's routing is looked up in the cache before its experts run.

    A token is one program up to the first routing, and then one from each routing to the next: the layer's experts,
    in the order in which their reads end, and all operations up to the next layer's routing. Reads of missing experts
    begin before such a program, which computes the experts in RAM while those reads are under way.
    """

    def __init__(
        self,
        decoder: Decoder,
        programs: Programs,
        cache: Cache,
        switch: PredictionSwitch,
        lossy: LossyRouting | None = None,
    ) -> None:
        self.statistics = cache.statistics
        self.notes_residency = False
        self._lossy = lossy
        self._cache = cache
        self._switch = switch
        self._routing = {number: routing for number, routing in enumerate(decoder.routing) if routing is not None}
        self._next_routing = dict(itertools.pairwise(self._routing))
        self._some_experts: dict[int, Program] = {}
        self._predict: dict[int, Program] = {}
        self._from_routing: dict[int, Program] = {}
        operations, since = list(decoder.begin), None
        for number, layer in enumerate(decoder.layers):
            operations += layer.attend
            if layer.experts:
                self._cut(programs.make(operations), since)
                operations, since = [], number
                self._some_experts[number] = programs.make(layer.experts)
                if layer.predict and switch.mode != "off":
                    self._predict[number] = programs.make(layer.predict)
            operations += layer.beside + layer.experts + layer.combine
        self._cut(programs.make(operations), since)

    def _cut(self, program: Program, since: int | None) -> None:
        if since is None:
            self._to_first_routing = program
        else:
            self._from_routing[since] = program

    def step(self, tokens: int) -> None:
        began_ns = time.perf_counter_ns()
        reads_ahead = tokens == 1 and self._switch.open
        if self._lossy is not None:
            self._lossy.before_routing(next(iter(self._routing), None), tokens)
        self._to_first_routing.run(tokens)
        for number, routing in self._routing.items():
            self._run_from(number, routing, tokens, reads_ahead)
        if tokens == 1:
            self._switch.record(time.perf_counter_ns() - began_ns)

    def is_loaded(self, layer: int, expert: int) -> bool:
        return self._cache.loaded(layer, expert)

    def _run_from(self, number: int, routing: LayerRouting, tokens: int, reads_ahead: bool) -> None:
        """Run the experts of a layer, and all operations up to the next routing."""
        wanted = routing.experts[0].tolist() if tokens == 1 else np.unique(routing.experts[:tokens]).tolist()
        if self.notes_residency:
            routing.residency[wanted] = [self.is_loaded(number, expert) for expert in wanted]
        if self._lossy is not None:
            wanted = self._lossy.without_cold(number, routing, tokens, wanted)
            if not wanted:  # all of them were dropped
                routing.slots.fill(-1)
                self._lossy.before_routing(self._next_routing.get(number), tokens)
                self._from_routing[number].run(tokens)
                return
        # always closed, so that an interrupted run leaves no expert pinned
        in_passing = passes_through(tokens, len(wanted), len(self._routing), self._cache.slots)
        with contextlib.closing(self._cache.stream(number, wanted, in_passing)) as waves:
            left = len(wanted)
            for wave in waves:
                left -= len(wave)
                routing.slots.fill(-1)
                for expert, slot in wave.items():
                    routing.slots[expert] = slot
                if reads_ahead:
                    self._read_ahead(number)
                    reads_ahead = False
                program = self._some_experts[number] if left else self._from_routing[number]
                if self._lossy is not None and not left:
                    self._lossy.before_routing(self._next_routing.get(number), tokens)
                try:
                    program.run(tokens)
                except ReadError as error:
                    raise self._cache.failure(wave, error) from error

    def _read_ahead(self, number: int) -> None:
        """Guess the next layer's routing, and begin to read the experts that it names."""
        predict = self._predict.get(number)
        if predict is not None:
            predict.run(1)
            self._cache.predict(number + 1, self._routing[number + 1].predicted[0].tolist())
