"""Sequences that each have an input of their own, which an encoder reads once and nothing changes afterwards.

Random work on many of them is compared, with `==`, with the same input and text alone: in any company, cut, budget and
thread count, after rewinds, forks and runs that fail.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.engine import Engine
from edgemoe.engine.lossy import EXACT, LossySettings
from edgemoe.engine.memory import LEAST_CONTEXT_TOKENS
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.engine.sequence import Sequence as TokenSequence
from edgemoe.errors import EdgemoeError, StoreError, UsageError
from edgemoe.kernels.native.library import available_isas
from edgemoe.kernels.operations import PAGE_TOKENS
from edgemoe.lab.forced_routing import ForcedRouting
from edgemoe.lab.recorder import recording
from edgemoe.lab.trace import read_trace
from edgemoe.model.build import build_graph
from edgemoe.model.description import store_spec
from edgemoe.model.spec import EncoderSpec
from edgemoe.store.reader import Store
from tests.support.checkpoints import SMALL_SWITCH, write_checkpoint
from tests.support.engines import engine_with_slots

EXPERTS = 10 + 3 * 10
SEQUENCES = 6
LONGEST = 150
VOCABULARY = 12


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    write_checkpoint(folder / "source", SMALL_SWITCH)
    return convert_checkpoint(str(folder / "source"), folder / "store", experts="q4", dense="q8")


class Alone:
    """Logits of a text after an input, in one call, on one thread, with all experts in RAM."""

    def __init__(self, store: Path, kv: str) -> None:
        self.kv = kv
        self._engine = engine_with_slots(store, EXPERTS, kv=kv, context_length=256, chunk_tokens=256)
        self._known: dict[tuple[tuple[int, ...], tuple[int, ...]], np.ndarray] = {}

    def logits(self, read: list[int], ids: list[int]) -> np.ndarray:
        key = tuple(read), tuple(ids)
        if key not in self._known:
            self._engine.rewind(0)
            self._engine.encode(read)
            self._known[key] = self._engine.forward(ids, all_logits=True)
        return self._known[key]

    def close(self) -> None:
        self._engine.close()


@pytest.fixture(scope="module", params=["f16", "q8"])
def alone(store: Path, request: pytest.FixtureRequest) -> Iterator[Alone]:
    reference = Alone(store, request.param)
    yield reference
    reference.close()


class InjectedError(Exception):
    """Ends a run in the middle."""


class FailingObserver:
    """Lets the run that it observes fail."""

    one_sequence = True
    drafts = False

    def step(self, run: object) -> None:
        raise InjectedError


class Company:
    """Random work on the sequences of one engine, each result compared with that of its input and tokens alone."""

    def __init__(self, engine: Engine, alone: Alone, seed: int) -> None:
        self._engine, self._alone = engine, alone
        self._random = np.random.default_rng(seed)
        self._inputs: dict[TokenSequence, list[int]] = {}
        engine.rewind(0)
        self._read(engine.sequence)
        self.compared = 0

    def step(self) -> None:
        random, sequences = self._random, self._engine.sequences
        one = list(self._inputs)[random.integers(len(self._inputs))]
        action = random.integers(10)
        if action == 0 and len(self._inputs) < SEQUENCES:
            self._read(sequences.open())
        elif action == 1 and len(self._inputs) < SEQUENCES:
            self._inputs[sequences.fork(one)] = self._inputs[one]
        elif action == 2 and one is not self._engine.sequence:
            sequences.close(one)
            del self._inputs[one]
        elif action == 3:
            one.rewind(int(random.integers(one.position + 1)))
        elif action == 4:
            one.rewind(0)
            self._read(one)
        elif action == 5:
            before = list(one.ids)
            self._engine.recorder = FailingObserver()
            with contextlib.suppress(InjectedError):
                self._engine.step({one: self._tokens(random.integers(1, LONGEST - one.position + 1))})
            self._engine.recorder = None
            assert one.ids == before
        else:
            batch = {}
            for number in random.permutation(len(self._inputs))[: random.integers(1, len(self._inputs) + 1)]:
                sequence = list(self._inputs)[number]
                sequence.turn.phase = int(action % 2)
                if sequence.position + 70 > LONGEST:
                    sequence.rewind(int(random.integers(LONGEST // 2)))
                batch[sequence] = self._tokens(1 if action % 2 else random.integers(1, 70))
            self._append(batch)

    def close(self) -> None:
        for sequence in list(self._inputs)[1:]:
            self._engine.sequences.close(sequence)

    def _read(self, sequence: TokenSequence) -> None:
        self._inputs.pop(sequence, None)
        self._engine.encode(self._tokens(self._random.integers(1, LONGEST)), sequence)
        self._inputs = {self._engine.sequence: [], **self._inputs, sequence: self._last}

    def _tokens(self, count: int) -> list[int]:
        self._last: list[int] = self._random.integers(0, VOCABULARY, count).tolist()
        return self._last

    def _append(self, batch: dict[TokenSequence, list[int]]) -> None:
        every = bool(self._random.integers(2))
        for sequence, found in self._engine.step(batch, all_logits=every).items():
            expected = self._alone.logits(self._inputs[sequence], list(sequence.ids))
            new = expected[len(sequence.ids) - len(batch[sequence]) :] if every else expected[-1]
            assert (found == new).all()
            self.compared += 1


def work(store: Path, alone: Alone, slots: int, threads: int, steps: int, seed: int) -> int:
    with engine_with_slots(
        store, slots, threads, alone.kv, sequences=SEQUENCES, context_length=256, chunk_tokens=(8, 48, 256)[seed % 3]
    ) as engine:
        company = Company(engine, alone, seed)
        for _ in range(steps):
            company.step()
        return company.compared


@pytest.mark.parametrize(("slots", "threads"), [(EXPERTS, 3), (6, 1), (1, 2)])
def test_company_cuts_rewinds_and_forks_change_no_bit(store: Path, alone: Alone, slots: int, threads: int) -> None:
    assert work(store, alone, slots, threads, 25, threads) > 10


@pytest.mark.slow
@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize(("slots", "threads"), [(EXPERTS, 1), (EXPERTS, 3), (17, 2), (6, 3), (1, 2)])
def test_a_thousand_combinations(
    store: Path, alone: Alone, slots: int, threads: int, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEMOE_ISA", isa)
    seed, compared = 100, 0
    while compared < 200:
        compared += work(store, alone, slots, threads, 150, seed)
        seed += 1


def test_what_is_kept_of_an_input_is_in_the_plan(store: Path) -> None:
    with engine_with_slots(store, EXPERTS, sequences=3, context_length=100) as engine:
        pages, layers, heads, width = 2, 3, 6, 16
        assert engine.memory.input_bytes == 3 * pages * PAGE_TOKENS * layers * heads * width * 2 * 2
        assert engine.memory.kv_cache_bytes == engine.memory.input_bytes  # as many layers see earlier tokens
        planned = engine.memory.planned_bytes - engine.memory.interpreter_bytes  # which is measured, so it varies
        assert engine._space.nbytes <= engine.memory.workspace_bytes + 2 * engine.memory.input_bytes
    with engine_with_slots(store, EXPERTS, sequences=3, context_length=200) as engine:
        longer = engine.memory
        assert longer.planned_bytes - longer.interpreter_bytes > planned + longer.input_bytes // 2
    opened = Store.open(store)
    graph = build_graph(store_spec(opened))
    assert {value.name for value in graph.state}.isdisjoint(value.name for value in graph.written_once)
    assert graph.tables == [graph.pages]


def test_the_floor_holds_a_whole_input_whatever_the_chunk(store: Path) -> None:
    context = min(LEAST_CONTEXT_TOKENS, SMALL_SWITCH["n_positions"])
    read = np.random.default_rng(1).integers(0, 193, context)
    with open_engine(store, EngineOptions("floor", threads=2)) as least, engine_with_slots(store, EXPERTS) as most:
        assert least.memory.chunk_tokens < context == least.context_length
        for engine in (least, most):
            engine.encode(read)
        np.testing.assert_array_equal(least.forward([0, 5, 9]), most.forward([0, 5, 9]))


def test_uses_of_experts_count_those_of_inputs(store: Path) -> None:
    with engine_with_slots(store, EXPERTS) as engine:
        engine.encode([5, 6, 7])
        engine.forward([0, 8])
        assert engine.expert_uses.sum(axis=1).tolist() == [0, 3, 0, 2, 2, 2]
        assert engine.statistics.tokens == 5
        assert engine.statistics.expert_hits == 3 * 1 + 2 * 3
        assert [one is None for one in engine.routing] == [True, True, True, False, False, False]


def test_a_recording_is_of_written_tokens(store: Path, tmp_path: Path) -> None:
    with engine_with_slots(store, EXPERTS) as engine:
        with recording(engine, tmp_path / "routing.trace") as recorder:
            engine.encode([5, 6, 7])
            engine.forward([0, 8])
            engine.turn.begin_decoding()
            engine.forward([4])
            assert recorder.summary()["uses"] == 3 * 3
        trace = read_trace(tmp_path / "routing.trace")
        assert set(trace.layer.tolist()) == {3, 4, 5}
        assert [size > 0 for size in trace.shape.expert_bytes] == [False] * 3 + [True] * 3
    with pytest.raises(UsageError, match="Forced routing is for models without an encoder"):
        open_engine(store, routing=ForcedRouting(trace, "a trace", None))


def test_lossy_settings_with_all_experts_in_memory_change_nothing(store: Path) -> None:
    def answer(slots: int, lossy: LossySettings = EXACT) -> np.ndarray:
        with engine_with_slots(store, slots, lossy=lossy, context_length=100) as engine:
            engine.encode([5, 6, 7, 9, 2])
            engine.turn.begin_decoding()
            return np.stack([engine.forward([token]) for token in range(20)])

    lossy = LossySettings(cache_aware_routing=0.3, drop_cold=0.2)
    np.testing.assert_array_equal(answer(EXPERTS, lossy), answer(EXPERTS))
    assert np.isfinite(answer(4, lossy)).all()


def test_what_a_sequence_cannot_do_is_refused(store: Path) -> None:
    with engine_with_slots(store, EXPERTS, sequences=2, context_length=100) as engine:
        with pytest.raises(UsageError, match="reads an input before it writes"):
            engine.forward([0])
        assert engine.position == 0
        engine.encode([5, 6, 7])
        expected = engine.forward([0, 3])
        for ids, message in (([], r"no tokens|empty|at least"), ([193], "193"), ([1] * 101, "does not fit")):
            engine.rewind(0)
            with pytest.raises(UsageError, match=message):
                engine.encode(ids)
        np.testing.assert_array_equal(engine.forward([0, 3]), expected)  # the input is still there
        with pytest.raises(UsageError, match="Rewind it to 0"):
            engine.encode([5])
        with pytest.raises(UsageError, match="no kept prefix"):
            engine.sequences.open(np.array([0, 3]))
        other = engine.sequences.open()
        with pytest.raises(UsageError, match="reads an input before"):
            engine.step({engine.sequence: [4], other: [0]})
        assert (engine.position, other.position) == (2, 0)
        engine.sequences.close(other)
        with pytest.raises(UsageError, match="closed"):
            engine.encode([5], other)
    engine.rewind(0)
    with pytest.raises(UsageError, match="closed"):
        engine.encode([5])


def test_an_input_that_fails_leaves_none(store: Path) -> None:
    with engine_with_slots(store, EXPERTS) as engine:
        engine.encode([5, 6])
        loaded = engine._loaded
        run, loaded.encode = loaded.encode, _fail  # type: ignore[method-assign]
        with pytest.raises(InjectedError):
            engine.encode([7, 8])
        with pytest.raises(UsageError, match="has none"):
            engine.forward([0])
        loaded.encode = run  # type: ignore[method-assign]
        engine.encode([7, 8])
        assert np.isfinite(engine.forward([0])).all()


def _fail(tokens: int) -> None:
    raise InjectedError


def test_a_decoder_alone_reads_no_input(tmp_path: Path) -> None:
    from tests.support.checkpoints import SMALL_MIXTRAL

    write_checkpoint(tmp_path / "source", SMALL_MIXTRAL)
    made = convert_checkpoint(str(tmp_path / "source"), tmp_path / "store")
    with engine_with_slots(made, 8) as engine, pytest.raises(UsageError, match="no encoder"):
        engine.encode([1])


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": None},  # blocks of a decoder that read an input, and attention over a whole one
        {"encoder": EncoderSpec(2)},  # a layer that is not causal in the decoder
        {"encoder": EncoderSpec(4)},  # a layer with state of tokens in the encoder
    ],
)
def test_blocks_that_do_not_belong_where_they_are_are_refused(store: Path, change: dict[str, EncoderSpec]) -> None:
    spec = dataclasses.replace(store_spec(Store.open(store)), **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"encoder|input"):
        build_graph(spec)


def test_such_a_store_is_refused(store: Path, tmp_path: Path) -> None:
    import shutil

    from tests.support.stores import edit_manifest

    shutil.copytree(store, altered := tmp_path / "altered")

    def alter(manifest: dict[str, object]) -> None:
        manifest["model"]["encoder"]["layers"] = 2  # type: ignore[index]

    edit_manifest(altered, alter)
    with pytest.raises(StoreError, match="contradicts itself"):
        open_engine(altered)
    for wrong in (0, 6, "3", -1):
        edit_manifest(altered, lambda manifest, wrong=wrong: manifest["model"]["encoder"].update(layers=wrong))
        with pytest.raises(EdgemoeError, match="cannot be understood"):
            open_engine(altered)
