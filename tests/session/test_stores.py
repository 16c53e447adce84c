"""Models that a person names to be run: GGUF files with any name, and names that are no such file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgemoe.errors import SourceError, StoreError
from edgemoe.session.stores import find_runnable, open_store
from tests.support.every_case import every_case


@every_case("content", [b"", b"GG", b"PK and more", b"version https://git-lfs.github.com/spec/v1"])
def test_a_file_that_is_only_called_gguf_is_told_what_is_wrong_with_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.GGUF"
    path.write_bytes(content)
    assert find_runnable(path) == path
    with pytest.raises(
        SourceError, match=r"x\.GGUF: (the header at byte 0|expected a GGUF file|expected the file itself)"
    ):
        open_store(path)


@pytest.mark.parametrize(
    ("kind", "found"), [("missing", "nothing there"), ("pipe", "something else"), ("link", "a link to one")]
)
def test_a_name_that_is_no_file(kind: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(tmp_path / "missing")
    with pytest.raises(StoreError, match=rf"x\.gguf: expected a GGUF file, found {found}"):
        find_runnable(path)


def test_a_missing_file_in_a_folder_is_not_taken_for_a_model_of_the_hub() -> None:
    with pytest.raises(StoreError, match="found nothing there") as caught:
        find_runnable("models/missing.gguf")
    assert "convert" not in caught.value.hint


def test_a_link_and_an_odd_name(tmp_path: Path) -> None:
    file = tmp_path / "мой файл — «x».bin"
    file.write_bytes(b"GGUF")
    (tmp_path / "sha256-abc").symlink_to(file)
    assert find_runnable(file) == file
    assert find_runnable(str(tmp_path / "sha256-abc")) == tmp_path / "sha256-abc"
