"""Damaged copies of a file, drawn from a seed, and a count of how what reads them ends.

There are two right ends: one error that a person can understand, or the very result of the file as it was. A result
that differs without a word, and any other exception, are faults. A crash of the process ends the test run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgemoe.errors import EdgemoeError


def overwrite(path: Path, data: bytes) -> None:
    """Gives a file that exists another content, in place.

    `write_bytes` empties the file first, and ext4 then goes to the disk when it is closed: 4 ms for each of thousands.
    """
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


def mutants(data: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` altered copies of a file's bytes, each with what was done to it."""
    drawn = random.Random(seed)
    kinds = [_flip_bit, _change_byte, _change_digit, _overwrite, _truncate, _insert, _delete, _swap]
    for number in range(count):
        kind = kinds[number % len(kinds)]
        place = drawn.randrange(len(data))
        yield f"seed {seed}, mutant {number}: {kind.__name__[1:]} at byte {place}", kind(data, place, drawn)


def _flip_bit(data: bytes, place: int, drawn: random.Random) -> bytes:
    return _with(data, place, bytes([data[place] ^ 1 << drawn.randrange(8)]))


def _change_byte(data: bytes, place: int, drawn: random.Random) -> bytes:
    return _with(data, place, bytes([(data[place] + drawn.randrange(1, 256)) % 256]))


def _change_digit(data: bytes, place: int, drawn: random.Random) -> bytes:
    """Another digit, where a text has one: a number stays one, and may stay a plausible one."""
    for near in (*range(place, len(data)), *range(place)):
        if data[near : near + 1].isdigit():
            return _with(data, near, b"%d" % ((data[near] - 48 + drawn.randrange(1, 10)) % 10))
    return _flip_bit(data, place, drawn)


def _overwrite(data: bytes, place: int, drawn: random.Random) -> bytes:
    size = min(drawn.choice((2, 4, 8, 64, 512)), len(data) - place)
    return _with(data, place, drawn.choice((bytes(size), b"\xff" * size, drawn.randbytes(size))))


def _truncate(data: bytes, place: int, drawn: random.Random) -> bytes:
    return data[:place]


def _insert(data: bytes, place: int, drawn: random.Random) -> bytes:
    return data[:place] + drawn.randbytes(drawn.choice((1, 2, 8, 64))) + data[place:]


def _delete(data: bytes, place: int, drawn: random.Random) -> bytes:
    return data[:place] + data[place + drawn.choice((1, 2, 8, 64)) :]


def _swap(data: bytes, place: int, drawn: random.Random) -> bytes:
    """Two runs of bytes change places, as blocks of a disk may."""
    size = min(drawn.choice((1, 8, 64, 512)), len(data) // 2)
    first, second = sorted((min(place, len(data) - size), drawn.randrange(len(data) - size + 1)))
    if second < first + size:
        return _flip_bit(data, place, drawn)
    return (
        b"".join((data[:first], data[second : second + size], data[first + size : second], data[first : first + size]))
        + data[second + size :]
    )


def _with(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


@dataclass
class Tally:
    """How many mutants ended in which way, and what the faults were."""

    refused: int = 0
    same: int = 0
    faults: list[str] = field(default_factory=list)

    def count(
        self, what: str, run: Callable[[], Any], equal: Callable[[Any], bool], names: Sequence[str] = ("",)
    ) -> None:
        """Run something on a mutant; `equal` says whether a result is that of the file as it was.

        An error has to have one of `names` in it.
        """
        try:
            result = run()
        except EdgemoeError as error:
            if error.message and error.hint and any(name in error.message for name in names):
                self.refused += 1
            else:
                self.faults.append(f"{what}: an error without a name or a way out: {error!r}")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a library is a BaseException
            self.faults.append(f"{what}: {type(error).__name__}: {error!s:.200}")
        else:
            if equal(result):
                self.same += 1
            else:
                self.faults.append(f"{what}: another result, without a word")

    def require_no_fault(self, count: int) -> None:
        """All of `count` mutants ended in one of the two right ways."""
        told: Sequence[str] = self.faults[:10]
        assert not self.faults, f"{len(self.faults)} of {count}: {told}"
        assert self.refused + self.same == count
