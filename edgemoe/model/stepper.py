"""One step of the model over a run of tokens: all at once where experts are resident, layer by layer where not."""

from __future__ import annotations

import contextlib
from typing import Protocol

import numpy as np

from edgemoe.experts.cache import CacheStatistics, ExpertCache
from edgemoe.model.decoder import Decoder, LayerRouting
from edgemoe.model.ledger import Programs


class Stepper(Protocol):
    """Takes the tokens in the workspace through all layers."""

    statistics: CacheStatistics

    def step(self, tokens: int, position: int) -> None:
        """Run all layers for `tokens` tokens from `position`; the residual stream holds the result."""

    def is_loaded(self, layer: int, expert: int) -> bool:
        """Whether an expert is in RAM."""


class ResidentStepper:
    """All experts in RAM: one program for the whole token, and no bookkeeping."""

    def __init__(self, decoder: Decoder, programs: Programs) -> None:
        self.statistics = CacheStatistics()
        self._program = programs.make(decoder.whole())
        self._routed_per_token = sum(routing.experts.shape[1] for routing in decoder.routing if routing is not None)

    def step(self, tokens: int, position: int) -> None:
        self._program.run(tokens, position)
        self.statistics.hits += tokens * self._routed_per_token

    def is_loaded(self, layer: int, expert: int) -> bool:
        return True


class StreamingStepper:
    """Some experts in RAM: each layer's routing is looked up in the cache before its experts run.

    While missing experts are read, the layer's shared expert, the guess at the next layer's routing and the
    experts that are there are computed.
    """

    def __init__(self, decoder: Decoder, programs: Programs, cache: ExpertCache, prediction: bool) -> None:
        self.statistics = cache.statistics
        self._cache = cache
        self._routing = decoder.routing
        before = decoder.embed
        self._attend, self._beside, self._predict, self._experts = [], [], [], []
        for layer in decoder.layers:
            self._attend.append(programs.make(before + layer.attend))
            self._beside.append(programs.make(layer.beside) if layer.beside else None)
            self._predict.append(programs.make(layer.predict) if layer.predict and prediction else None)
            self._experts.append(programs.make(layer.experts) if layer.experts else None)
            before = layer.combine
        self._last_combine = programs.make(before)

    def step(self, tokens: int, position: int) -> None:
        for number, routing in enumerate(self._routing):
            self._attend[number].run(tokens, position)
            if routing is not None:
                self._run_experts(number, routing, tokens, position)
            else:
                self._run_beside(number, tokens, position)
        self._last_combine.run(tokens, position)

    def is_loaded(self, layer: int, expert: int) -> bool:
        return self._cache.loaded((layer, expert))

    def _run_beside(self, number: int, tokens: int, position: int) -> None:
        beside = self._beside[number]
        if beside is not None:
            beside.run(tokens, position)

    def _run_experts(self, number: int, routing: LayerRouting, tokens: int, position: int) -> None:
        wanted = routing.experts[0].tolist() if tokens == 1 else np.unique(routing.experts[:tokens]).tolist()
        program = self._experts[number]
        assert program is not None
        # closed whatever happens, so that an interrupted run leaves no expert pinned
        with contextlib.closing(self._cache.stream(number, wanted)) as waves:
            wave = next(waves, None)  # begins the reads of what is missing
            self._run_beside(number, tokens, position)
            guess = self._guess_next_layer(number, position) if tokens == 1 else None
            while wave is not None:
                if guess is not None and self._cache.reader_is_idle():
                    self._cache.predict(number + 1, guess)
                    guess = None
                routing.slots.fill(-1)
                for expert, slot in wave.items():
                    routing.slots[expert] = slot
                program.run(tokens, position)
                wave = next(waves, None)
        if guess is not None:
            self._cache.predict(number + 1, guess)

    def _guess_next_layer(self, number: int, position: int) -> list[int] | None:
        predict = self._predict[number]
        if predict is None:
            return None
        predict.run(1, position)
        routing = self._routing[number + 1]
        assert routing is not None
        guess: list[int] = routing.predicted[0].tolist()
        return guess
