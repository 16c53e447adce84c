"""Detects kinds of files by their first bytes, whatever their names."""

from __future__ import annotations

import os
from pathlib import Path

_GGUF_MAGIC = b"GGUF"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""The beginning of every Git LFS pointer (git-lfs, docs/spec.md)."""

LFS_FOUND = "expected the file itself, found a Git LFS pointer to it: the repository was cloned without Git LFS."
LFS_WAY_OUT = "Run git lfs install and git lfs pull in that folder, or download the file from its page."


def is_gguf(path: Path) -> bool:
    """Whether a file is GGUF: Ollama keeps such files under names that are checksums. False where it cannot be read."""
    return _begins_with(path, _GGUF_MAGIC)


def is_gguf_file(path: Path) -> bool:
    """Whether a file is GGUF, or is called so: the error about such a file then says what is wrong with it."""
    return (path.suffix.lower() == ".gguf" and os.path.isfile(path)) or is_gguf(path)  # noqa: PTH113


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is a Git LFS pointer, left by a clone without Git LFS. False where it cannot be read."""
    return _begins_with(path, _LFS_POINTER)


def _begins_with(path: Path, beginning: bytes) -> bool:
    # os.path.isfile, since opening a pipe would wait for a writer, and since the text may be an invalid path.
    if not os.path.isfile(path):  # noqa: PTH113
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(beginning)) == beginning
    except OSError:
        return False
