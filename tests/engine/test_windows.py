"""Layers with windows: their pages are given back, found again at snapshots, and what is lost is run again."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgemoe.conversion.pipeline import convert_checkpoint
from edgemoe.engine.opening import open_engine
from edgemoe.engine.options import EngineOptions
from edgemoe.engine.pages import HeldPages, PageGroup
from edgemoe.engine.part_sizes import window_plans
from edgemoe.engine.sequence import Sequence
from edgemoe.engine.workspace import bounding_window, pool_pages
from edgemoe.errors import KernelError, UsageError
from edgemoe.kernels.operations import PAGE_TOKENS
from edgemoe.model.build import build_graph
from edgemoe.model.description import store_spec
from edgemoe.model.graph import Window
from edgemoe.store.reader import Store
from tests.engine.test_invariants import LONG_LFM2, WINDOWED
from tests.support.checkpoints import write_checkpoint
from tests.support.engines import engine_with_slots
from tests.support.examples import examples
from tests.support.toy_state import Toy

IDS = np.random.default_rng(0).integers(0, 100, 3000)
EXPERTS = 4 * 10


def places(sequence: Sequence) -> list[int]:
    """The places of the snapshots of a sequence's text."""
    return sorted(PAGE_TOKENS * (sequence._hashes.index(prefix) + 1) for prefix in sequence._snapshots._kept)


@pytest.mark.parametrize(("window", "undo"), [(64, 0), (65, 0), (65, 64), (100, 4), (1, 0), (2, 64)])
def test_pages_before_the_window_are_given_back(window: int, undo: int) -> None:
    toy = Toy(1, 32, undo, windows=[window])
    one = toy.sequences.open()
    for count in (1, 63, 1, 100, 64, 1, 300):
        toy.append(one, IDS[one.position : one.position + count])
        end = one.position
        listed = np.flatnonzero(toy.groups[1].table[one.row] >= 0).tolist()
        assert listed == list(range(max(0, end - undo - window + 1) // PAGE_TOKENS, -(-end // PAGE_TOKENS)))
    toy.check(one)


def test_a_run_that_is_longer_than_the_window_has_its_own_pages() -> None:
    toy = Toy(2, 32, undo=4, chunk=500, windows=[64])
    one, other = toy.sequences.open(), toy.sequences.open()
    toy.step({one: IDS[:1100], other: IDS[500:900]})
    toy.step({other: IDS[:300], one: IDS[1100:1400]})
    for each in (one, other):
        toy.check(each)


def test_few_tokens_are_taken_back_without_running_any_again() -> None:
    toy = Toy(1, 32, undo=4, windows=[100])
    one = toy.sequences.open()
    toy.append(one, IDS[:310])
    one.rewind(306)
    assert one.behind == 0
    one.rewind(305)
    assert one.behind == 305 - 256
    toy.check(one)


@pytest.mark.parametrize(("windows", "place"), [([100], 192), ([64, 150], 128)])
@pytest.mark.parametrize("snapshots", [0, 6])
def test_a_sequence_goes_back_to_one_place_with_all_its_state(windows: list[int], place: int, snapshots: int) -> None:
    toy = Toy(1, 32, undo=4, snapshots=snapshots, chunk=64, windows=windows)
    one = toy.sequences.open()
    for first in range(0, 320, 64):
        toy.append(one, IDS[first : first + 64])
    toy.append(one, IDS[320:500])
    one.rewind(250)
    assert one.behind == 250 - place
    ran = toy.runs
    toy.append(one, IDS[250:260])
    assert toy.runs == ran + 250 - place + 10
    one.rewind(30)
    assert one.behind == 30
    toy.check(one)


def test_a_place_whose_pages_are_gone_is_no_prefix() -> None:
    toy = Toy(2, 32, undo=4, chunk=150, windows=[100])
    one = toy.sequences.open()
    toy.append(one, IDS[:450])  # snapshots at 128, 256 and 448
    toy.sequences.close(one)
    text = np.concatenate([IDS[:330], IDS[700:900]])
    other = toy.sequences.open(text)
    assert other.position == 256  # the pages of the whole context reach to 320
    toy.append(other, text[256:])
    toy.check(other)
    assert toy.sequences.open(np.concatenate([IDS[:120], IDS[500:600]])).position == 0


def test_a_fork_gives_back_only_its_own_share() -> None:
    toy = Toy(2, 32, undo=4, windows=[100])
    one = toy.sequences.open()
    toy.append(one, IDS[:230])
    other = toy.sequences.fork(one)
    assert (toy.groups[1].table[0] == toy.groups[1].table[1]).all()
    toy.append(other, IDS[1000:1400])
    toy.check(one)
    toy.append(one, IDS[230:600])
    toy.check(one)
    toy.check(other)


def test_sequences_that_part_within_a_page_write_to_pages_of_their_own() -> None:
    toy = Toy(3, 32, undo=4, windows=[100, 64])
    one = toy.sequences.open()
    toy.append(one, IDS[:300])
    one.rewind(296)
    others = [one, toy.sequences.fork(one), toy.sequences.fork(one)]
    for first in range(1000, 1100, 10):
        toy.step({each: IDS[first + 300 * number :][:10] for number, each in enumerate(others)})
    for each in others:
        toy.check(each)


def test_a_snapshot_keeps_its_page_from_a_sequence_that_goes_back_into_it() -> None:
    toy = Toy(2, 32, undo=64, windows=[100])
    one = toy.sequences.open()
    toy.append(one, IDS[:256])
    one.rewind(240)
    toy.append(one, IDS[1000:1020])
    other = toy.sequences.open(IDS[:300])
    assert other.position == 192  # the whole context's page up to 256 was written to
    toy.append(other, IDS[192:260])
    toy.sequences.close(other)
    again = toy.sequences.open(IDS[:300])
    assert again.position == 256
    toy.append(again, IDS[256:300])
    toy.check(again)


def test_generated_tokens_leave_snapshots_a_window_apart_and_prompts_one_at_their_end() -> None:
    toy = Toy(1, 64, undo=64, chunk=512, windows=[256])
    one = toy.sequences.open()
    toy.append(one, IDS[:330])
    one.turn.begin_decoding()
    for token in IDS[330:1400]:
        toy.append(one, np.array([token]))
    assert places(one) == [320, 576, 832, 1088, 1344]


def test_the_further_back_the_further_apart_are_snapshots() -> None:
    """Going back from anywhere runs few tokens again, though there is room for few snapshots."""
    toy = Toy(1, 400, undo=64, chunk=512, windows=[128])
    toy._run = lambda rows: None  # type: ignore[method-assign]  # the bookkeeping alone
    one = toy.sequences.open()
    random = np.random.default_rng(1)
    for _ in range(5):
        toy.append(one, random.integers(0, 100, 2000))
        one.turn.begin_decoding()
        for _ in range(2000):
            toy.append(one, random.integers(0, 100, 1))
        one.turn.begin()
    pages = pool_pages(Window(128, 64), 512, 400 * 64)
    assert pages < 100
    found = [0, *places(one), one.position]
    for place, following in itertools.pairwise(found):
        assert following - place <= 300 + (20_000 - place) / 4


@pytest.mark.parametrize("windows", [[1], [1, 1], [2], [1, 64]])
def test_windows_of_any_size_have_a_bounded_number_of_snapshots(windows: list[int]) -> None:
    toy = Toy(1, 10, undo=0, chunk=512, windows=windows)
    one = toy.sequences.open()
    most = max(group.pages for group in toy.groups[1:])
    for number in range(2 * most):
        one.rewind(0)
        toy.append(one, (IDS[:129] + number) % 100)
        assert 0 < len(toy.sequences._snapshots._kept) <= len(windows) * most
    toy.check(one)


def test_where_bits_do_not_follow_from_tokens_a_sequence_goes_back_to_its_own_snapshots() -> None:
    toy = Toy(3, 32, undo=4, windows=[70], keeps_prefixes=False)
    one = toy.sequences.open()
    toy.append(one, IDS[:300])
    assert toy.sequences.open(IDS[:300]).position == 0
    other = toy.sequences.fork(one)
    one.rewind(200)
    assert one.behind == 200 - 192
    toy.check(one)
    assert one.whole.pages[:3] == other.whole.pages[:3]
    assert not set(one.whole.pages[3:]) & set(other.whole.pages)
    assert one.windowed[0].pages[-1] not in other.windowed[0].pages
    toy.check(other)


class PoolMachine(RuleBasedStateMachine):
    """Random work on sequences with windows, alone or beside fixed state: every page is somebody's or free."""

    @initialize(
        windows=st.sampled_from([(64,), (65, 100), (37, 200), (1,)]),
        undo=st.sampled_from([0, 4, 64]),
        snapshots=st.sampled_from([0, 1, 5]),
        chunk=st.sampled_from([1, 50, 130]),
        keeps=st.sampled_from([True, True, False]),
    )
    def begin(self, windows: tuple[int, ...], undo: int, snapshots: int, chunk: int, keeps: bool) -> None:
        self.toy = Toy(3, 12, undo, snapshots, chunk, recurrent=undo == 0, windows=windows, keeps_prefixes=keeps)
        self.open = [self.toy.sequences.open()]

    def one(self, number: int) -> Sequence:
        return self.open[number % len(self.open)]

    @precondition(lambda self: len(self.open) < 3)
    @rule(count=st.integers(1, 500), number=st.integers(0, 2), own=st.booleans())
    def open_with_tokens(self, count: int, number: int, own: bool) -> None:
        known = np.array(self.one(number).ids if own else IDS[:count], np.int64)
        self.open.append(self.toy.sequences.open(np.append(known, 5)))

    @precondition(lambda self: len(self.open) < 3)
    @rule(number=st.integers(0, 2))
    def fork(self, number: int) -> None:
        self.open.append(self.toy.sequences.fork(self.one(number)))

    @precondition(lambda self: len(self.open) > 1)
    @rule(number=st.integers(0, 2))
    def close(self, number: int) -> None:
        one = self.one(number)
        self.toy.sequences.close(one)
        self.open.remove(one)

    @rule(number=st.integers(0, 2), back=st.integers(0, 700))
    def rewind(self, number: int, back: int) -> None:
        one = self.one(number)
        one.rewind(max(0, one.position - back))

    @rule(
        counts=st.lists(st.integers(0, 260), min_size=3, max_size=3),
        fails=st.sampled_from([None, None, None, 1, 2, 3]),
        decoding=st.booleans(),
        texts=st.lists(st.integers(0, 2), min_size=3, max_size=3),
    )
    def step(self, counts: list[int], fails: int | None, decoding: bool, texts: list[int]) -> None:
        batch = {}
        for one, count, text in zip(self.open, counts, texts, strict=False):
            first = 700 * text + one.position  # so that sequences often agree, and often part
            ids = IDS[first:][: min(count, 12 * PAGE_TOKENS - one.position - 1)]
            if len(ids):
                one.turn.phase = int(decoding)
                batch[one] = ids
        before = [list(one.ids) for one in self.open]
        self.toy.step(batch, fails)
        for one, ids in zip(self.open, before, strict=True):
            assert one.ids in (ids, [*ids, *batch.get(one, [])])

    @invariant()
    def every_page_has_its_holders(self) -> None:
        if not hasattr(self, "toy"):
            return
        snapshots = self.toy.sequences._snapshots
        for number, group in enumerate(self.toy.groups):
            held = [one.whole if number == 0 else one.windowed[number - 1] for one in self.open]
            uses = Counter(page for pages in held for page in pages.pages)
            if number:
                uses.update(page for one in snapshots._kept.values() for page in one.pages[number - 1])
            assert [uses[page] for page in range(group.pages)] == group.pool._uses
            assert group.pool.available == group.pages - len(uses)
            self.tables_agree(group, held)

    def tables_agree(self, group: PageGroup, held: list[HeldPages]) -> None:
        for one, pages in zip(self.open, held, strict=True):
            listed = group.table[one.row]
            assert listed[pages.first : pages.end].tolist() == pages.pages
            assert (listed[: pages.first] == -1).all()
            assert (listed[pages.end :] == -1).all()
            assert pages.end == -(-(one.position if group.window is None else one.resumes_at) // PAGE_TOKENS)

    def teardown(self) -> None:
        if hasattr(self, "toy"):
            for one in self.open:
                self.toy.check(one)
                self.toy.sequences.close(one)
            self.open.clear()
            self.every_page_has_its_holders()


TestPools = PoolMachine.TestCase
TestPools.settings = settings(max_examples=examples(60), stateful_step_count=12, deadline=None)


def test_a_window_that_bounds_nothing_has_no_pool_of_its_own() -> None:
    window = Window(128, 64)
    assert bounding_window(window, 512, 512) is None
    assert bounding_window(window, 512, 1024) is None  # a run of 512 tokens, 128 + 64 before it, two snapshots
    assert bounding_window(window, 32, 1024) == window
    assert bounding_window(Window(4096, 64), 32, 4096) is None
    sizes = [pool_pages(window, 512, length) for length in (1 << 12, 1 << 14, 1 << 17, 1 << 20)]
    assert sizes == [12 + 8, 12 + 32, 12 + 64, 12 + 64]
    assert pool_pages(window, 512, 1 << 17, 8) == 8 + (8 * (127 + 64 + 62) + 512) // 64 + 8 * 64


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("windows")
    write_checkpoint(folder / "source", WINDOWED)
    return convert_checkpoint(str(folder / "source"), folder / "store", experts="q4", dense="q8")


WINDOWS = 64, 0, 100, 65
TEXT = IDS[:700]


@pytest.fixture(scope="module")
def expected(store: Path) -> np.ndarray:
    """Logits after each token, all in one call, in a context so short that all pages are kept."""
    with engine_with_slots(store, EXPERTS, context_length=704, windows=WINDOWS) as engine:
        assert len(engine.sequence.windowed) == 0
        return engine.forward(TEXT, all_logits=True)


def test_every_page_or_the_windows_alone_give_the_same_bits(store: Path, expected: np.ndarray) -> None:
    with engine_with_slots(store, 6, 2, context_length=2048, chunk_tokens=48, windows=WINDOWS) as engine:
        assert [held.group.window.size for held in engine.sequence.windowed] == [64, 100, 65]
        parts = np.split(TEXT, [1, 300, 301, 302, 650])
        found = np.concatenate([engine.forward(part, all_logits=True) for part in parts])
        np.testing.assert_array_equal(found, expected)
        assert [held.first for held in engine.sequence.windowed] == [8, 8, 8]
        assert (engine._space.pages[0, :11] >= 0).all()


@pytest.mark.parametrize("kernels", ["jit", "reference"])
def test_no_kernel_touches_pages_that_were_given_back(
    store: Path, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEMOE_KERNELS", kernels)
    found = []
    for length, groups in ((320, 0), (2048, 3)):
        with engine_with_slots(store, EXPERTS, context_length=length, chunk_tokens=64, windows=WINDOWS) as engine:
            assert len(engine.sequence.windowed) == groups
            found.append(np.concatenate([engine.forward(TEXT[:250], all_logits=True), [engine.forward(TEXT[250:251])]]))
            for held in engine.sequence.windowed:
                assert held.first > 0
    np.testing.assert_array_equal(*found)


def test_a_page_that_a_window_needs_and_has_not_is_an_error(store: Path) -> None:
    with engine_with_slots(store, EXPERTS, context_length=2048, chunk_tokens=64, windows=WINDOWS) as engine:
        engine.forward(TEXT[:250])
        held = engine.sequence.windowed[0]
        held.group.table[0, held.end - 2] = -1
        with pytest.raises(KernelError):
            engine.forward(TEXT[250:251])


@pytest.mark.parametrize(("position", "behind"), [(640, 0), (600, 88), (300, 44), (40, 40), (0, 0)])
def test_what_the_windows_have_lost_is_run_again(store: Path, expected: np.ndarray, position: int, behind: int) -> None:
    with engine_with_slots(store, EXPERTS, context_length=2048, chunk_tokens=64, windows=WINDOWS) as engine:
        engine.forward(TEXT)
        engine.rewind(position)
        assert engine.sequence.behind == behind
        computed = engine.statistics.tokens
        np.testing.assert_array_equal(engine.forward(TEXT[position : position + 1]), expected[position])
        assert engine.statistics.tokens == computed + behind + 1


def test_a_kept_prefix_ends_where_its_windows_are_kept(store: Path, expected: np.ndarray) -> None:
    sizes = {"sequences": 2, "context_length": 2048, "chunk_tokens": 150}
    with engine_with_slots(store, EXPERTS, windows=WINDOWS, **sizes) as engine:
        first = engine.sequences.open()
        engine.step({first: TEXT[:400]})
        engine.sequences.close(first)
        other = engine.sequences.open(TEXT[:370])
        assert other.position == 256  # the pages of the whole context reach to 320
        logits = engine.step({other: TEXT[256:370], engine.sequence: TEXT[:100]})
        np.testing.assert_array_equal(logits[other], expected[369])
        np.testing.assert_array_equal(logits[engine.sequence], expected[99])


def test_a_context_is_used_to_its_last_position(store: Path, expected: np.ndarray) -> None:
    with engine_with_slots(store, EXPERTS, context_length=640, chunk_tokens=16, windows=WINDOWS) as engine:
        assert len(engine.sequence.windowed) == 3
        np.testing.assert_array_equal(engine.forward(TEXT[:640]), expected[639])
        with pytest.raises(UsageError, match="1 tokens after 640 do not fit the context of 640 tokens"):
            engine.forward(TEXT[:1])
        engine.rewind(639)
        np.testing.assert_array_equal(engine.forward(TEXT[639:640]), expected[639])


def test_windows_beside_fixed_state_and_windows_alone(tmp_path: Path, store: Path) -> None:
    write_checkpoint(tmp_path / "source", LONG_LFM2)
    both = convert_checkpoint(str(tmp_path / "source"), tmp_path / "store", experts="q4", dense="q8")
    for path, windows in ((both, (65,)), (both, (64, 100)), (store, (70,))):
        with engine_with_slots(path, EXPERTS, context_length=320, windows=windows) as engine:
            whole = engine.forward(TEXT[:300], all_logits=True)
        with engine_with_slots(path, EXPERTS, context_length=2048, chunk_tokens=40, windows=windows) as engine:
            assert len(engine.sequence.windowed) == len(windows)
            np.testing.assert_array_equal(engine.forward(TEXT[:300], all_logits=True), whole)
            for position in (250, 200, 150, 20):
                engine.rewind(position)
                np.testing.assert_array_equal(engine.forward(TEXT[position : position + 1]), whole[position])


def test_the_plan_knows_what_windows_keep(store: Path) -> None:
    position_bytes = 2 * 2 * 2 * 24 * 2  # two layers of a window, keys and values, two heads, their width, float16
    for sequences, context in ((1, 4096), (3, 2048)):
        options = EngineOptions("2GiB", 1, context, sequences=sequences)
        with open_engine(store, options) as engine:
            plan = engine.memory
            (window,) = plan.windows
            pages = pool_pages(Window(37, 64), plan.chunk_tokens, context, sequences)
            assert window.window == 37
            assert window.kept_bytes == pages * PAGE_TOKENS * position_bytes
            assert window.whole_bytes == sequences * context * position_bytes > 2 * window.kept_bytes
            arrays = [array for group in engine.sequences._groups for array in group.arrays]
            kept = sum(array.nbytes for array in arrays)
            assert kept == window.kept_bytes + sequences * context * position_bytes
            assert plan.planned_bytes <= plan.budget_bytes
    assert window_plans(build_graph(store_spec(Store.open(store))), 64, 256, "f16") == ()
