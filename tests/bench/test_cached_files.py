"""Files come into the page cache and leave it, whole."""

import sys
from pathlib import Path

import pytest

from edgemoe.bench import cached_files
from edgemoe.bench.cached_files import bring_into_cache, drop_from_cache
from edgemoe.kernels.native.page_cache import cached_bytes

SYNCHRONISES = True


def test_files_keep_their_contents(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 10_000)
    drop_from_cache([path, tmp_path / "missing"])
    assert path.read_bytes() == b"abc" * 10_000


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what its page cache holds")
@pytest.mark.parametrize("free_files", [1.9, 2.1])
def test_files_are_brought_into_the_cache_where_it_has_room(
    tmp_path: Path, free_files: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, size = tmp_path / "file", 20 << 20
    path.write_bytes(bytes(size))
    drop_from_cache([path])
    monkeypatch.setattr(cached_files, "available_bytes", lambda: int(free_files * size))
    with path.open("rb") as file:
        before = cached_bytes(file.fileno(), 0, size)
        bring_into_cache([path])
        assert cached_bytes(file.fileno(), 0, size) == (size if free_files > 2 else before)
