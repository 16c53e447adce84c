"""One step of the model over a run of tokens: one program, whether all experts are in RAM or not.

Where they are not, the program's own operations ask the expert cache for what is missing (`Fetch`, `Experts`), so it
goes through all layers in one call. A second program also guesses each next layer's routing and reads ahead
(`Prefetch`); it runs while that pays. Experts in the memory of a device (`Backend.tier`) are used while that pays, too.
Prompts have a program of their own where cache-aware routing is on, which does not apply to them.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgemoe.engine.decoder import Decoder, LayerRouting
from edgemoe.engine.ledger import Programs
from edgemoe.engine.phase import DECODE, PROMPT
from edgemoe.experts.cache import Cache
from edgemoe.experts.prefetch import PrefetchTrial, record_in_turn
from edgemoe.kernels import expert_operations as ex
from edgemoe.kernels import operations as op
from edgemoe.kernels.backend import Pause
from edgemoe.kernels.paging import CacheStatistics
from edgemoe.model.graph import GUESSED_ROWS, Stage

if TYPE_CHECKING:
    from edgemoe.experts.device_trial import DeviceTrial

ON_DISK, BEING_READ, IN_RAM = 0, 1, 2


class Stepper:
    """Runs the tokens in the workspace through all layers."""

    def __init__(self, decoder: Decoder, programs: Programs, cache: Cache | None = None, prefetch: str = "off") -> None:
        """`cache` is None where all experts are in RAM; `prefetch` is one of `PREFETCH_MODES`."""
        self.statistics = CacheStatistics() if cache is None else cache.statistics
        self._cache = cache
        self._trials = [PrefetchTrial(prefetch) for _ in range(GUESSED_ROWS)]
        """By the number of rows less one: the more rows, the more is missed, and the longer a run takes."""
        self._device_trials: dict[int, DeviceTrial] = {}
        self._programs = programs
        self._tables = decoder.slot_tables()
        self._routed_per_token = _routed(decoder.routing[decoder.encoder_layers :])
        self._routed_per_input = _routed(decoder.routing[: decoder.encoder_layers])
        without: set[Stage] = {"guess"} if cache is not None else {"fetch", "guess"}
        operations, encoder = decoder.step(without), decoder.encode(without)
        self._encoder = programs.make(encoder) if encoder else None
        self._program = self._for_prompts = programs.make(operations)
        for_prompts = [_without_bonus(operation) for operation in operations]
        if for_prompts != operations:
            self._for_prompts = programs.make(for_prompts, like=operations)
        self._most_guessed = 0 if prefetch == "off" else GUESSED_ROWS
        self._make_guessing = functools.cache(
            lambda: programs.make(decoder.step(()))
        )  # many answers end before a trial

    @property
    def notes_residency(self) -> bool:
        """Whether `LayerRouting.residency` is kept."""
        return self._cache is not None and self._cache.notes_residency

    @notes_residency.setter
    def notes_residency(self, on: bool) -> None:
        if self._cache is not None:
            self._cache.notes_residency = on

    def step(self, tokens: int, phase: int, pause: Pause | None = None) -> None:
        """Run all layers for `tokens` tokens of this phase; the residual stream holds the result.

        `pause`, if given, is called between operations of a prompt (`Program.run`).
        """
        if phase != PROMPT:
            pause = None
        if self._cache is None:
            self.statistics.hits += tokens * self._routed_per_token
        else:
            self._cache.phase = phase
        if phase != DECODE:
            program = self._for_prompts if phase == PROMPT else self._program
            program.run(tokens, pause)
            return
        program, trials = self._program, []
        if self._cache is not None and tokens <= self._most_guessed:
            trials.append(self._trials[tokens - 1])
            program = self._make_guessing() if trials[0].open else program
        tier = self._programs.tier
        if tier is not None and tokens <= tier.most_rows:
            from edgemoe.experts.device_trial import DeviceTrial  # no start without a device waits for it

            of_device = self._device_trials.setdefault(tokens, DeviceTrial())
            of_device.set(tier)
            trials += of_device.trials()
        began_ns = time.perf_counter_ns()
        program.run(tokens)
        record_in_turn(trials, time.perf_counter_ns() - began_ns)

    def encode(self, tokens: int) -> None:
        """Run the encoder on an input of `tokens` tokens."""
        assert self._encoder is not None
        if self._cache is None:
            self.statistics.hits += tokens * self._routed_per_input
        else:
            self._cache.phase = PROMPT
        self._encoder.run(tokens)

    def expert_places(self) -> npt.NDArray[np.uint8]:
        """Where each expert is, `(L, E)`; may be called from any thread, also while a step is being run.

        An expert whose read has ended counts as being read until somebody has asked for it: `resident_experts` knows.
        """
        if self._cache is None:
            return np.where(self.resident_experts(), IN_RAM, ON_DISK).astype(np.uint8)
        slots = self._cache.residency.copy()
        places = np.where(self._cache.tickets[slots] >= 0, BEING_READ, IN_RAM).astype(np.uint8)
        places[slots < 0] = ON_DISK
        return places

    def resident_experts(self) -> npt.NDArray[np.bool_]:
        """Which experts are in RAM now, `(L, E)`."""
        if self._cache is not None:
            return self._cache.all_loaded()
        counts = np.array([0 if table is None else len(table) for table in self._tables])
        resident: npt.NDArray[np.bool_] = np.arange(counts.max(initial=0)) < counts[:, None]
        return resident


def _routed(routing: Sequence[LayerRouting | None]) -> int:
    """How many routed experts a token uses in these layers."""
    return sum(one.experts.shape[1] for one in routing if one is not None)


def _without_bonus(operation: op.Operation) -> op.Operation:
    """The operation as prompts run it: routing without the bonus of experts in RAM."""
    if isinstance(operation, ex.Route) and operation.slots is not None:
        return dataclasses.replace(operation, slots=None, bonus=0.0)
    return operation
