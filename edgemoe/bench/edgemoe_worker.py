"""edgemoe as a worker (see `protocol.py`): `python -m edgemoe.bench.edgemoe_worker`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgemoe.bench.protocol import serve
from edgemoe.bench.run import Run
from edgemoe.engine.engine import Engine
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.engine.phase import VERIFY
from edgemoe.lab.forced_routing import ForcedRouting
from edgemoe.lab.recorder import RoutingRecorder, recording
from edgemoe.lab.trace import read_trace
from edgemoe.process import major_faults, peak_rss_bytes
from edgemoe.session.default_model import model_name
from edgemoe.session.draft_model import DraftModel, ModelDrafts, open_beside
from edgemoe.session.stores import open_store


class EdgemoeWorker:
    """The engine without text: token ids in, logits out."""

    engine: Engine
    recorder: RoutingRecorder | None = None
    forced: ForcedRouting | None = None
    draft_model: DraftModel | None = None

    def __init__(self) -> None:
        self._recording = ExitStack()
        self._runs: list[dict[str, int]] = []

    def open(
        self,
        model: str,
        options: Mapping[str, Any],
        routing: str | None = None,
        recall: float | None = None,
        trace: str | None = None,
        draft: str | None = None,
    ) -> dict[str, Any]:
        """Open a store; the answer reports the kernels, the memory plan, and the bytes that a token reads.

        `options` are those of `EngineOptions` as JSON. `routing` is a trace to take the routing from, with guesses of
        the given recall; `trace` is a trace to be written. `draft` is a draft model to be opened beside it.
        """
        self.forced = ForcedRouting(read_trace(routing), routing, recall) if routing is not None else None
        store, settings = open_store(model), EngineOptions.from_json(options)
        beside = None if draft is None else open_beside(draft, store, store.text_folder, settings)
        self.engine = open_engine(store, settings, routing=self.forced, beside=beside)
        if beside is not None:
            self.draft_model = DraftModel.open(beside, self.engine)
        if trace is not None:
            name = model_name(Path(model))
            self.recorder = self._recording.enter_context(recording(self.engine, trace, model=name))
        backend, memory, traffic = self.engine.backend, self.engine.memory, self.engine.traffic
        return {
            "kernels": {"backend": backend.name, "isa": backend.isa, "threads": backend.threads},
            "device": backend.device,
            "memory": {
                "budget_bytes": memory.budget_bytes,
                "planned_bytes": memory.planned_bytes,
                "slots": memory.slots,
                "slot_bytes": memory.slot_bytes,
                "total_experts": memory.total_experts,
                "all_resident": memory.all_resident,
                "context_tokens": memory.context_length,
                "chunk_tokens": memory.chunk_tokens,
                "direct_reads": self.engine.direct_reads,
                "draft_model_bytes": memory.draft_model_bytes,
            },
            "lossy": self.engine.lossy.to_json(),
            "weight_bytes": traffic.weight_bytes,
            "kv_bytes": traffic.kv_bytes,
        }

    def run(self, prompt: Sequence[int], continuation: Sequence[int], ledger: bool = False) -> dict[str, Any]:
        """Answer with the times and the continuation's use of experts and disk; with `ledger`, where the time went."""
        engine = self.engine
        engine.keep_ledger(ledger)
        engine.rewind(0)
        engine.turn.begin()
        forced = self.forced
        steps = Run.next(forced, len(prompt), len(continuation)) if forced is not None else None
        began_s = time.perf_counter()
        logits = engine.read_prompt(prompt)
        prompted_s = time.perf_counter()
        engine.turn.begin_decoding()
        uses, statistics, faults = engine.expert_uses.copy(), counters(engine), major_faults()
        after_prompt = engine.ledger
        continued_s = time.perf_counter()
        for token in continuation:
            engine.forward([token], out=logits)
        ended_s = time.perf_counter()
        answer: dict[str, Any] = {
            "prompt_s": prompted_s - began_s,
            "continuation_s": ended_s - continued_s,
            "major_faults": major_faults() - faults,
            "loaded_experts": int(np.count_nonzero(engine.resident_experts())),
            "distinct_experts": np.count_nonzero(engine.expert_uses - uses, axis=1).tolist(),
            **{name: value - statistics[name] for name, value in counters(engine).items()},
        }
        if steps is not None:
            answer["routing"] = asdict(steps)
            self._runs.append(answer["routing"])
        after_all = engine.ledger
        if after_prompt is not None and after_all is not None:
            answer |= {"prompt_ns": after_prompt.ns, "continuation_ns": (after_all - after_prompt).ns}
        return answer

    def run_together(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], settle: int
    ) -> dict[str, Any]:
        """Decode several sequences together; the answer is as that of `run`, for all steps but the first `settle`."""
        engine = self.engine
        engine.rewind(0)
        engine.turn.begin()
        if self.forced is not None:
            self.forced.spread(len(prompts))
        others = [engine.sequences.open() for _ in prompts[1:]]
        together = [engine.sequence, *others]
        for sequence, prompt in zip(together, prompts, strict=True):
            engine.read_prompt(prompt, sequence)
            sequence.turn.begin_decoding()
        steps = zip(*continuations, strict=True)
        batches = [dict(zip(together, ([token] for token in tokens), strict=True)) for tokens in steps]
        for batch in batches[:settle]:
            engine.step(batch)
        statistics = counters(engine)
        began_s = time.perf_counter()
        for batch in batches[settle:]:
            engine.step(batch)
        answer = {"continuation_s": time.perf_counter() - began_s}
        for sequence in reversed(others):  # the next ones get the same rows in the same order
            engine.sequences.close(sequence)
        return answer | {name: value - statistics[name] for name, value in counters(engine).items()}

    def run_drafted(
        self, prompt: Sequence[int], continuation: Sequence[int], drafts: int, settle: int
    ) -> dict[str, Any]:
        """Decode with `drafts` drafts in each step, all of them right; the first `settle` tokens are not counted.

        A draft model guesses as many, which takes its time, and is not asked whether it is right. Answers with the use
        of experts and disk too.
        """
        engine = self.engine
        engine.rewind(0)
        engine.turn.begin()
        if self.forced is not None:
            self.forced.spread(1)
        engine.read_prompt(prompt)
        engine.turn.begin_decoding()
        for token in continuation[:settle]:
            engine.forward([token])
        if drafts:
            engine.turn.phase = VERIFY
        rows = np.empty((1 + drafts, engine.spec.vocab_size), np.float32)
        statistics, seconds, distinct = counters(engine), 0.0, 0
        guesses = self._guesses([*prompt, *continuation[:settle]]) if drafts else None
        for first in range(settle, len(continuation), 1 + drafts):
            step = continuation[first : first + 1 + drafts]
            began_s = time.perf_counter()
            if guesses is not None:
                guesses.add(step[0])
                guesses.take(guesses.offer(drafts).tokens)
                for token in step[1:]:
                    guesses.add(token)
            engine.forward(step, all_logits=True, out=rows)
            seconds += time.perf_counter() - began_s
            distinct += sum(len(np.unique(one.experts[: len(step)])) for one in engine.routing if one is not None)
        if guesses is not None:
            guesses.end()
        used = {name: value - statistics[name] for name, value in counters(engine).items()}
        return {"continuation_s": seconds, "distinct_experts": distinct, **used}

    def _guesses(self, before: Sequence[int]) -> ModelDrafts | None:
        """The guesses of the draft model, which has read a text; None without one."""
        if self.draft_model is None:
            return None
        guesses = self.draft_model.begin(before, self.engine.sequence)
        guesses.read_all(lambda: False)
        return guesses

    def end(self) -> dict[str, Any]:
        """Answer with the peak memory of this process.

        The answer also has the steps of each run, if routing was taken from a trace; if a trace was written, its
        summary, and the failure if writing ended early.
        """
        self._recording.close()
        answer: dict[str, Any] = {"peak_rss_bytes": peak_rss_bytes(), "routing_runs": self._runs}
        if self.recorder is not None:
            failure = self.recorder.failure
            answer["trace"] = {**self.recorder.summary(), "failure": str(failure) if failure else None}
        return answer


def counters(engine: Engine) -> dict[str, int]:
    """An engine's counters since it was opened."""
    statistics = engine.statistics
    cache = statistics.cache
    return {
        "expert_hits": statistics.expert_hits,
        "expert_misses": statistics.expert_misses,
        "expert_drops": statistics.expert_drops,
        "experts_from_base": statistics.experts_from_base,
        "disk_bytes": statistics.disk_bytes,
        "prefetched_reads": cache.prefetched_reads,
        "prefetched_bytes": cache.prefetched_bytes,
        "useful_prefetches": cache.useful_prefetches,
        "late_prefetches": cache.late_prefetches,
        "guessable_uses": cache.guessable_uses,
        "guessed_uses": cache.guessed_uses,
    }


if __name__ == "__main__":
    worker = EdgemoeWorker()
    serve(
        {
            "open": worker.open,
            "run": worker.run,
            "run_together": worker.run_together,
            "run_drafted": worker.run_drafted,
            "end": worker.end,
        }
    )
