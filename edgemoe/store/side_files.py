"""The side files of a store: the small text files beside the weights that prompts and answers depend on.

The manifest has the length and SHA-256 of each. A file that is not as the manifest says would change every prompt
without a word, and so would one that the manifest does not name: both are refused when a model is opened, and
`edgemoe update` (`store/update.py`) is the way to change them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgemoe.errors import StoreError
from edgemoe.store.first_bytes import LFS_FOUND, is_lfs_pointer
from edgemoe.store.manifest import SideFile
from edgemoe.store.reader import Store

SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""What a store takes along from the checkpoint, besides its weights. Files of other names are never read."""

SIDE_FILE_LIMIT_BYTES = 1 << 27
_READ_BYTES = 1 << 18


@dataclass(frozen=True)
class SideFault:
    """A side file that is not as the manifest says, in words that follow its name."""

    name: str
    message: str
    unlisted: bool = False
    """Whether the folder has a file that the manifest does not name."""


def side_faults(store: Store) -> Iterator[SideFault]:
    """The side files that are not as the manifest says. Reads all of them."""
    for entry in store.manifest.side_files:
        message = side_file_fault(store.path / entry.name, entry)
        if message is not None:
            yield SideFault(entry.name, message)
    listed = {entry.name for entry in store.manifest.side_files}
    for name in SIDE_FILES:
        if name not in listed and os.path.lexists(store.path / name):
            yield SideFault(name, "is not in the manifest, and would decide what the model reads or writes.", True)


def check_side_files(store: Store) -> None:
    """Raises StoreError for the first side file that is not as the manifest says."""
    for fault in side_faults(store):
        raise StoreError(f"{store.path / fault.name}: {fault.message}", side_file_hint(store.path, fault.unlisted))


def side_file_hint(folder: Path, unlisted: bool = False) -> str:
    """The way out where a side file is not as the manifest says."""
    if unlisted:
        return f"edgemoe update {folder} takes it into the store; or move it away."
    return f"edgemoe update {folder} takes the side files as they are now, or anew from the checkpoint."


def side_file_fault(path: Path, entry: SideFile) -> str | None:
    """How a file differs from what an entry says of it, in words that follow its name; None where it does not."""
    import hashlib

    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for a process that writes to it
            return "expected a file, found something else."
        if is_lfs_pointer(path):
            return LFS_FOUND
        if status.st_size != entry.bytes:
            return f"expected {entry.bytes} bytes, as the manifest says, found {status.st_size}."
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(_READ_BYTES):
                digest.update(piece)
    except FileNotFoundError:
        return "is missing."
    except OSError as problem:
        return f"cannot be read ({problem.strerror or problem})."
    if digest.hexdigest() != entry.sha256:
        return "is not what was written (its checksum differs)."
    return None
