"""Fixed state: sequences that go back through undo, snapshots and tokens that are run again."""

from __future__ import annotations

import numpy as np
import pytest

from edgemoe.engine.phase import DECODE, VERIFY
from edgemoe.kernels.operations import PAGE_TOKENS
from tests.support.examples import examples
from tests.support.toy_state import Toy

IDS = np.random.default_rng(0).integers(0, 100, 1000)


def test_few_tokens_are_taken_back_without_running_any_again() -> None:
    toy = Toy(1, 8, undo=4, snapshots=4)
    one = toy.sequences.open()
    toy.append(one, IDS[:100])
    one.rewind(96)
    assert one.behind == 0
    one.rewind(95)
    assert one.behind == 95 - 64
    toy.check(one)


def test_the_undone_does_not_add_up_over_several_rewinds() -> None:
    toy = Toy(1, 8, undo=4, snapshots=4)
    one = toy.sequences.open()
    toy.append(one, IDS[:50])
    one.rewind(47)
    toy.append(one, IDS[:1])
    one.rewind(45)
    assert one.behind == 45
    toy.check(one)


@pytest.mark.parametrize("recurrent", [False, True])
def test_a_run_stops_for_the_snapshot_of_its_last_page(recurrent: bool) -> None:
    toy = Toy(1, 8, undo=4, snapshots=8, recurrent=recurrent)
    one = toy.sequences.open()
    toy.append(one, IDS[:230])
    assert one.stop_within(10) == 0
    one.rewind(200)
    assert one.behind == 8
    toy.check(one)
    one.rewind(190)
    assert one.behind == 190  # pages in the middle of the run have none
    toy.check(one)
    one.rewind(130)
    assert one.behind == 2  # the tokens that were run again left one
    toy.check(one)


def test_a_ring_that_holds_a_page_needs_no_stop() -> None:
    toy = Toy(1, 8, undo=PAGE_TOKENS, snapshots=8)
    one = toy.sequences.open()
    assert one.stop_within(230) == 0
    toy.append(one, IDS[:230])
    one.rewind(200)
    assert one.behind == 0
    toy.append(one, IDS[:230])
    one.rewind(210)
    assert one.behind == 210 - 192
    toy.check(one)


def test_a_prefix_is_adopted_up_to_its_newest_snapshot() -> None:
    toy = Toy(3, 8, undo=4, snapshots=4)
    one = toy.sequences.open()
    toy.append(one, IDS[:150])
    toy.append(one, IDS[150:300])
    other = toy.sequences.open(np.concatenate([IDS[:200], IDS[500:600]]))
    assert other.position == 128  # the page up to 192 is there, without a snapshot
    toy.check(other)
    assert toy.sequences.open(np.concatenate([IDS[:120], IDS[500:600]])).position == 0


def test_of_snapshots_that_are_worth_the_same_the_one_used_least_recently_makes_way() -> None:
    toy = Toy(1, 8, undo=PAGE_TOKENS, snapshots=2)
    one = toy.sequences.open()
    for first in range(0, 128, 64):
        toy.append(one, IDS[first : first + 64])
    one.rewind(0)
    toy.append(one, IDS[:64])  # finds its snapshot, which is now the latest one used
    toy.append(one, IDS[200:310])
    one.rewind(100)
    assert one.behind == 100 - 64
    toy.check(one)


def test_a_fork_goes_back_by_itself() -> None:
    toy = Toy(2, 8, undo=4, snapshots=4)
    one = toy.sequences.open()
    toy.append(one, IDS[:100])
    one.rewind(90)
    other = toy.sequences.fork(one)
    assert other.behind == one.behind == 26
    toy.append(other, IDS[300:400])
    toy.check(one)
    toy.check(other)


def test_a_fork_knows_what_is_lost() -> None:
    toy = Toy(2, 8, undo=4, snapshots=4)
    one = toy.sequences.open()
    toy.append(one, IDS[:60])
    other = toy.sequences.fork(one)
    other.rewind(50)
    assert other.behind == 50
    toy.check(other)


def test_a_snapshot_that_was_lost_during_a_run_is_not_taken_too_late() -> None:
    toy = Toy(2, 8, undo=4, snapshots=1)
    one, other = toy.sequences.open(), toy.sequences.open()
    toy.append(one, IDS[:64])
    toy.step({one: IDS[64:164], other: IDS[300:400]})  # the other one's snapshot takes the place of that at 128
    one.rewind(140)
    assert one.behind == 140
    toy.check(one)


def test_a_closed_row_leaves_nothing_to_the_next_sequence() -> None:
    toy = Toy(1, 8, undo=4, snapshots=4)
    one = toy.sequences.open()
    toy.append(one, IDS[:100])
    one.rewind(30)
    toy.sequences.close(one)
    other = toy.sequences.open()
    assert other.behind == 0
    toy.append(other, IDS[:3])
    other.rewind(2)
    assert other.behind == 0
    toy.check(other)


def test_where_bits_do_not_follow_from_tokens_shared_pages_are_not_written_again() -> None:
    toy = Toy(2, 8, undo=4, snapshots=4, keeps_prefixes=False)
    one = toy.sequences.open()
    toy.append(one, IDS[:150])
    other = toy.sequences.fork(one)
    one.rewind(100)
    assert one.behind == 100  # the snapshot lies at 128
    toy.check(one)
    assert not set(one.whole.pages) & set(other.whole.pages)
    toy.check(other)


@pytest.mark.parametrize("undo", [0, 4, PAGE_TOKENS])
@pytest.mark.parametrize("recurrent", [False, True])
def test_random_work_with_failures_keeps_the_state_right(undo: int, recurrent: bool) -> None:
    random = np.random.default_rng(undo)
    toy = Toy(4, 8, undo, snapshots=3, recurrent=recurrent)
    opened = [toy.sequences.open()]
    for _ in range(examples(150)):
        one = opened[random.integers(len(opened))]
        action = random.integers(8)
        if action == 0 and len(opened) < 4:
            opened.append(toy.sequences.open(np.concatenate([IDS[: random.integers(1, 300)], [1]])))
        elif action == 1 and len(opened) < 4:
            opened.append(toy.sequences.fork(one))
        elif action == 2 and len(opened) > 1:
            toy.sequences.close(one)
            opened.remove(one)
        elif action == 3:
            one.rewind(int(random.integers(one.position + 1)))
        elif one.position < 350:
            known = IDS[one.position :] if one.ids == IDS[: one.position].tolist() else IDS
            before = list(one.ids)
            fails = int(random.integers(1, 4)) if action == 4 else None
            toy.append(one, known[: random.integers(1, 150 if action < 7 else 2)], fails)
            assert fails is None or one.ids[: len(before)] == before
        for each in opened:
            toy.check(each)


def test_drafts_are_taken_back_without_running_more_than_the_others_again() -> None:
    toy = Toy(2, 8, undo=4, snapshots=4, recurrent=True, windows=(37, 130))
    random = np.random.default_rng(3)
    one = toy.sequences.open()
    toy.append(one, IDS[:100])
    again = 0
    while one.position < 400:
        one.turn.phase = VERIFY
        drafts, right = int(random.integers(1, 8)), int(random.integers(0, 8))
        before, behind = toy.runs, one.behind
        toy.append(one, random.integers(0, 100, 1 + drafts))
        assert toy.runs - before == behind + 1 + drafts
        one.rewind(one.position - max(0, drafts - right))
        assert one.behind <= (1 + right if right < drafts else 0)
        again += one.behind
        if random.integers(4) == 0:
            one.turn.phase = DECODE
            toy.append(one, random.integers(0, 100, 1))
            toy.check(one)
    assert again
    other = toy.sequences.fork(one)
    one.turn.phase = VERIFY
    toy.append(one, IDS[:3])
    one.rewind(one.position - 2)
    toy.check(other)
    toy.check(one)
    toy.sequences.close(one)
    snapshots = toy.sequences._snapshots
    assert snapshots is not None
    assert len(snapshots._free) + len(snapshots._kept) == 4  # no slot is lost
