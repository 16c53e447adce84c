"""The side files of a store: the small text files beside the weights that prompts and answers depend on.

The manifest has the length and SHA-256 of each. A file that differs from the manifest would silently change every
prompt, and so would one that the manifest does not name: both are refused when a model is opened.
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
"""The files that a store copies from the checkpoint besides its weights. Files of other names are never read."""

SIDE_FILE_LIMIT_BYTES = 1 << 27
_READ_BYTES = 1 << 18


@dataclass(frozen=True)
class SideFault:
    """A side file that differs from the manifest; `message` completes a sentence that begins with its name."""

    name: str
    message: str
    unlisted: bool = False
    """Whether the fault is a file that the manifest does not name."""


def side_faults(store: Store) -> Iterator[SideFault]:
    """The side files that differ from the manifest. Reads all side files."""
    for entry in store.manifest.side_files:
        message = side_file_fault(store.text_folder / entry.name, entry)
        if message is not None:
            yield SideFault(entry.name, message)
    listed = {entry.name for entry in store.manifest.side_files}
    for name in SIDE_FILES:
        if name not in listed and os.path.lexists(store.text_folder / name):
            yield SideFault(name, "is not in the manifest, and would decide what the model reads or writes.", True)


def check_side_files(store: Store) -> None:
    """Raise StoreError for the first side file that differs from the manifest."""
    for fault in side_faults(store):
        raise StoreError(f"{store.path / fault.name}: {fault.message}", side_file_hint(store.path, fault.unlisted))


def side_file_hint(folder: Path, unlisted: bool = False) -> str:
    """The hint of the error for a side file that differs from the manifest."""
    if unlisted:
        return f"edgemoe update {folder} takes it into the store; or move it away."
    return f"edgemoe update {folder} accepts the side files as they are, or takes the checkpoint's again."


def side_file_fault(path: Path, entry: SideFile) -> str | None:
    """How a file differs from its entry, as the rest of a sentence that begins with its name; None where it agrees."""
    import hashlib

    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
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
