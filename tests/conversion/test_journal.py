"""The journal: what it noted comes back; what a crash cut short is forgotten, and only that."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemoe.conversion.journal import JOURNAL_NAME, Journal
from edgemoe.errors import UsageError
from edgemoe.store.manifest import Checksums
from tests.support.every_case import every_case


def _write(folder: Path) -> None:
    with Journal.lock(folder) as journal:
        journal.restart({"source": "x"})
        journal.record({0: (0.1, 1 / 3)}, {})
        journal.record({7: (0.0, 2.0)}, {"layers.0.experts.0": Checksums("ab", 0xFFFFFFFF)})


def test_what_was_noted_comes_back_to_the_bit(tmp_path: Path) -> None:
    _write(tmp_path / "p")
    with Journal.lock(tmp_path / "p") as journal:
        assert journal.identity == {"source": "x"}
        assert journal.errors == {0: (0.1, 1 / 3), 7: (0.0, 2.0)}
        assert journal.checksums == {"layers.0.experts.0": Checksums("ab", 0xFFFFFFFF)}
        journal.record({8: (1.0, 1.0)}, {})
    with Journal.lock(tmp_path / "p") as journal:
        assert set(journal.errors) == {0, 7, 8}


def test_a_journal_cut_at_any_byte_keeps_its_whole_lines_and_can_go_on(tmp_path: Path) -> None:
    _write(tmp_path / "p")
    content = (tmp_path / "p" / JOURNAL_NAME).read_bytes()
    for size in range(len(content) + 1):
        whole = content[:size].count(b"\n")
        (tmp_path / "p" / JOURNAL_NAME).write_bytes(content[:size])
        with Journal.lock(tmp_path / "p") as journal:
            found = (journal.identity is not None) + len(journal.errors) + len(journal.checksums)
            assert found == whole
            if whole:
                journal.record({9: (1.0, 1.0)}, {})
        with Journal.lock(tmp_path / "p") as journal:
            assert (9 in journal.errors) == bool(whole)


@every_case("garbage", [b"\0\0\0\0", b"\0\n", b"{}\n", b'{"piece": 1}\n', b'{"piece": "x", "sums": [1, 2]}\n'])
def test_garbage_behind_the_last_good_line_is_forgotten(tmp_path: Path, garbage: bytes) -> None:
    _write(tmp_path / "p")
    with (tmp_path / "p" / JOURNAL_NAME).open("ab") as file:
        file.write(garbage)
    with Journal.lock(tmp_path / "p") as journal:
        assert set(journal.errors) == {0, 7}


def test_only_one_may_hold_it(tmp_path: Path) -> None:
    with Journal.lock(tmp_path / "p"), pytest.raises(UsageError, match="another conversion"):
        Journal.lock(tmp_path / "p")
    Journal.lock(tmp_path / "p").__exit__()
