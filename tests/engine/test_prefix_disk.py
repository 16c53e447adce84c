"""Prefixes on disk: found again by another process, and worthless wherever anything about them is not as it was."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgemoe.engine import prefix_disk
from edgemoe.engine.options import EngineOptions
from edgemoe.engine.prefix_disk import HEADER, PrefixDisk
from edgemoe.errors import UsageError
from edgemoe.kernels.operations import PAGE_TOKENS
from tests.support.toy_state import Toy

PROGRAM, OTHER = b"p" * 16, b"o" * 16
IDS = np.random.default_rng(0).integers(0, 100, 1000)
ROOM = 1 << 20


def name(number: int) -> bytes:
    return number.to_bytes(16, "big")


def contents(seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(-9, 9, (2, 3)).astype(np.int8), random.random((5, 2), np.float32)]


def empty() -> list[np.ndarray]:
    return [np.zeros_like(array) for array in contents()]


SIZE = HEADER.size + sum(array.nbytes for array in contents())


def found(disk: PrefixDisk, number: int, seed: int = 0) -> bool:
    """Whether a file is there with the contents of a seed; what is there must be them."""
    arrays = empty()
    if not disk.read("page", name(number), arrays):
        return False
    for array, expected in zip(arrays, contents(seed), strict=True):
        assert (array == expected).all()
    return True


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def disk(tmp_path: Path, told: list[str]) -> PrefixDisk:
    made = PrefixDisk(tmp_path / "prefixes", PROGRAM, ROOM)
    made.tell = told.append
    return made


def test_what_one_process_wrote_another_one_reads(disk: PrefixDisk, tmp_path: Path, told: list[str]) -> None:
    disk.write("page", name(1), 0, contents(1))
    disk.write("page", name(2), 1, contents(2))
    later = PrefixDisk(tmp_path / "prefixes", PROGRAM, ROOM)
    assert found(later, 1, 1)
    assert found(later, 2, 2)
    assert not found(later, 3)
    assert later.held_bytes == disk.held_bytes == 2 * SIZE
    assert not PrefixDisk(tmp_path / "prefixes", OTHER, ROOM).has("page", name(1))
    assert told == []


def test_folders_and_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    root = tmp_path / "prefixes"
    root.mkdir(mode=0o755)
    disk = PrefixDisk(root, PROGRAM, ROOM)
    disk.write("page", name(1), 0, contents())
    (file,) = root.glob("*/*")
    for path in (root, file.parent, file):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def _flipped(place: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    "change",
    [
        *(_flipped(place) for place in (0, 9, 30, 41, 49, 53, HEADER.size, SIZE - 1)),
        lambda data: data[:-1],
        lambda data: data[: HEADER.size - 3],
        lambda data: b"",
        lambda data: data + b"\0",
        lambda data: b"another program's file",
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_removed_and_told_once(
    disk: PrefixDisk, told: list[str], change: Callable[[bytes], bytes]
) -> None:
    for number in (1, 2):
        disk.write("page", name(number), 0, contents())
    paths = sorted(disk._folder.iterdir())
    for path in paths:
        path.write_bytes(change(path.read_bytes()))
    assert not found(disk, 1)
    assert not found(disk, 2)
    assert not any(path.exists() for path in paths)
    assert len(told) == 1
    assert "is removed" in told[0]
    disk.write("page", name(1), 0, contents())
    assert found(disk, 1)


def test_a_file_of_another_name_or_program_is_none_of_these(disk: PrefixDisk, tmp_path: Path) -> None:
    disk.write("page", name(1), 0, contents())
    (path,) = disk._folder.iterdir()
    path.with_name(f"{name(2).hex()}.page").write_bytes(path.read_bytes())
    other = PrefixDisk(tmp_path / "prefixes", OTHER, ROOM)
    (other._folder / path.name).write_bytes(path.read_bytes())
    assert not found(disk, 2)
    assert not found(other, 1)
    assert found(disk, 1)


def test_the_least_recently_used_files_make_way_and_of_a_text_its_end(tmp_path: Path) -> None:
    disk = PrefixDisk(tmp_path / "prefixes", PROGRAM, 4 * SIZE)
    for number in range(3):
        disk.write("page", name(number), number, contents())
    disk.write("page", name(10), 0, contents())
    disk.used("page", name(0), 0)
    disk.used("page", name(1), 1)
    disk.write("page", name(11), 1, contents())
    assert [number for number in (0, 1, 2, 10, 11) if found(disk, number)] == [0, 1, 10, 11]
    later = PrefixDisk(tmp_path / "prefixes", OTHER, 4 * SIZE)  # of all programs together
    later.write("page", name(20), 0, contents())
    assert not disk.has("page", name(10))
    assert later.held_bytes == 4 * SIZE


def test_a_text_that_does_not_fit_keeps_its_beginning(tmp_path: Path) -> None:
    disk = PrefixDisk(tmp_path / "prefixes", PROGRAM, 3 * SIZE)
    for number in range(6):
        disk.write("page", name(number), 10**9 * number, contents())  # as if all were written at once
    assert [number for number in range(6) if disk.has("page", name(number))] == [0, 1, 2]
    assert disk.held_bytes <= 3 * SIZE


def test_a_full_disk_is_told_once_and_leaves_nothing_behind(
    disk: PrefixDisk, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.write("page", name(1), 0, contents())

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prefix_disk.os, "writev", full)
    for number in (2, 3):
        disk.write("page", name(number), 0, contents())
    monkeypatch.undo()
    assert len(told) == 1
    assert "No space left" in told[0]
    assert [path.name for path in disk._folder.iterdir()] == [f"{name(1).hex()}.page"]
    assert found(disk, 1)
    assert not disk.writable


def test_calls_that_move_few_bytes_are_repeated(disk: PrefixDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    write, read = os.writev, os.readv
    monkeypatch.setattr(prefix_disk.os, "writev", lambda file, buffers: write(file, [buffers[0][:3]]))
    monkeypatch.setattr(prefix_disk.os, "readv", lambda file, buffers: read(file, [buffers[0][:5]]))
    disk.write("page", name(1), 0, contents(4))
    assert found(disk, 1, 4)


def test_what_a_process_left_half_written_is_removed(disk: PrefixDisk, tmp_path: Path) -> None:
    half = disk._folder / f".{name(1).hex()}.page.123"
    half.write_bytes(b"x")
    PrefixDisk(tmp_path / "prefixes", PROGRAM, ROOM)
    assert half.exists()  # another process may be at it
    os.utime(half, (1, 1))
    PrefixDisk(tmp_path / "prefixes", PROGRAM, ROOM)
    assert not half.exists()


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "prefixes").write_bytes(b"")
    with pytest.raises(UsageError, match="prefixes cannot be kept here"):
        PrefixDisk(tmp_path / "prefixes", PROGRAM, ROOM)
    with pytest.raises(UsageError, match="is not a size"):
        EngineOptions(prefix_disk="much")


STATES = [
    {"undo": 4},
    {"undo": 4, "windows": (100, 37)},
    {"undo": 4, "snapshots": 4},
    {"undo": 4, "snapshots": 4, "recurrent": True, "windows": (130,)},
    {"undo": PAGE_TOKENS, "snapshots": 3},
]


def started(disk: PrefixDisk, state: dict, pages: int = 8) -> Toy:
    toy = Toy(2, pages, **state)
    toy.sequences.keep_on_disk(disk)
    return toy


@pytest.mark.parametrize("state", STATES)
def test_every_kind_of_state_is_that_of_its_tokens_after_a_restart(disk: PrefixDisk, state: dict) -> None:
    before = started(disk, state)
    one = before.sequences.open()
    before.append(one, IDS[:300])
    before.append(one, IDS[300:310])
    before.sequences.tier.save(60)
    after = started(disk, state)
    same = after.sequences.open(IDS[:400])
    assert same.position == 256
    after.check(same)
    after.append(same, IDS[256:400])
    after.check(same)
    assert after.runs == 144 + 2
    other = after.sequences.open(np.concatenate([IDS[:70], IDS[500:600]]))
    after.check(other)
    assert other.position in (0, 64)  # of a snapshot there is none within the first run


@pytest.mark.parametrize("state", STATES)
def test_damage_costs_the_tokens_after_it_and_no_more(disk: PrefixDisk, told: list[str], state: dict) -> None:
    before = started(disk, state)
    one = before.sequences.open()
    for first in range(0, 320, PAGE_TOKENS):  # a snapshot at the end of each page
        before.append(one, IDS[first : first + PAGE_TOKENS])
    before.sequences.tier.save(60)
    hashes = list(one._hashes)
    (disk._folder / f"{hashes[3].hex()}.page").write_bytes(b"damaged")
    after = started(disk, state)
    same = after.sequences.open(IDS[:400])
    assert same.position <= 192
    assert same.position == 192 or "windows" in state or "snapshots" in state
    assert len(told) == 1
    after.check(same)
    state_file = disk._folder / f"{hashes[2].hex()}.state"
    if state_file.exists():
        state_file.write_bytes(state_file.read_bytes()[:-1])
        again = started(disk, state)
        fewer = again.sequences.open(IDS[:400])
        assert fewer.position < 192
        again.check(fewer)


def test_what_a_context_has_no_room_for_stays_on_disk(disk: PrefixDisk) -> None:
    before = started(disk, {"undo": 4})
    one = before.sequences.open()
    before.append(one, IDS[:500])
    before.sequences.tier.save(60)
    small = Toy(2, 3, undo=4)
    small.sequences.keep_on_disk(disk)
    held = small.sequences.open()
    small.append(held, IDS[600 : 600 + 2 * PAGE_TOKENS])
    found = small.sequences.open(IDS[: 4 * PAGE_TOKENS + 10])
    assert found.position == 3 * PAGE_TOKENS
    assert held.ids == IDS[600 : 600 + 2 * PAGE_TOKENS].tolist()
    assert small.held(held, small.groups[0], 0, held.position).tolist() == held.ids


def test_pages_that_have_made_way_are_not_saved(disk: PrefixDisk) -> None:
    toy = started(disk, {"undo": 4}, pages=2)
    for start in range(0, 500, 120):
        one = toy.sequences.open()
        toy.append(one, IDS[start : start + 120])
        toy.sequences.close(one)
    toy.sequences.tier.save(60)
    assert not toy.sequences.tier.unsaved
    for start in range(0, 500, 120):
        after = started(disk, {"undo": 4})
        one = after.sequences.open(IDS[start : start + 120])
        after.check(one)
