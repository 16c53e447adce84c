"""How files are read past the page cache, and what is told where they cannot be."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgemoe.io import direct
from edgemoe.io.direct import describe_reads, grants_direct, open_direct


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that refuses direct reads when files are opened, as tmpfs does."""
    real = os.open

    def refusing(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", refusing)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no direct I/O")
def test_a_refusal_falls_back_to_plain_reads_and_says_so(tmp_path: Path, refused: None) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 8192)
    descriptor, granted = open_direct(file)
    assert not granted
    assert os.pread(descriptor, 4, 4096) == b"xxxx"
    os.close(descriptor)
    assert not grants_direct(tmp_path)
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_is_tried_with_a_file_that_goes_again(tmp_path: Path) -> None:
    assert grants_direct(tmp_path) in (True, False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="No such file"):
        grants_direct(tmp_path / "none")


def test_what_takes_the_place_of_direct_reads_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "direct I/O" in describe_reads(True)
    monkeypatch.setattr(direct, "sys", SimpleNamespace(platform="darwin"))
    assert "F_NOCACHE" in describe_reads(False)
    monkeypatch.setattr(direct, "sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr(direct, "os", SimpleNamespace(O_DIRECT=1))
    assert "this file system refuses" in describe_reads(False)
    monkeypatch.setattr(direct, "os", SimpleNamespace())
    assert "this system has no direct I/O" in describe_reads(False)
