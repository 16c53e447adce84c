"""Replaces side files of a store, such as a chat template, without converting its weights again."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgemoe.store.lock import locked
from edgemoe.store.manifest import MANIFEST_NAME, amend_manifest
from edgemoe.store.reader import Store
from edgemoe.store.side_files import SIDE_FILES, side_file_fault
from edgemoe.store.writer import replace_durably, side_file_entries, sync_folder, write_durably

STAGING_NAME = ".update"
"""The folder within a store that holds new side files until all of them are on disk."""


@dataclass(frozen=True)
class SideChange:
    """The change of one side file by an update, and the file's new size."""

    name: str
    kind: Literal["added", "changed", "restored", "removed"]
    """`restored` is a file that had differed from the manifest and now agrees with it again."""
    bytes: int = 0


def changed_names(store: Store, files: Mapping[str, bytes]) -> set[str]:
    """The side files that these contents add to the manifest, change in it or remove from it."""
    old = {entry.name: entry for entry in store.manifest.side_files}
    new = {entry.name: entry for entry in side_file_entries(files)}
    return {name for name in {*old, *new} if old.get(name) != new.get(name)}


@contextlib.contextmanager
def staged(folder: Path, files: Mapping[str, bytes]) -> Iterator[Path]:
    """Context manager: a folder within a store that holds these files on disk, for `replace_side_files` to move.

    Only one process at a time can have it: a second one gets UsageError. The folder is deleted afterwards.
    """
    with locked(folder):
        staging = folder / STAGING_NAME
        shutil.rmtree(staging, ignore_errors=True)  # left by an update that was killed
        try:
            staging.mkdir()
            for name, content in files.items():
                write_durably(staging / name, content)
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def replace_side_files(store: Store, staging: Path, provenance: Mapping[str, Any]) -> list[SideChange]:
    """Make the files of a `staged` folder the side files of a store; returns the changes.

    Each file is replaced whole, and the manifest last. A process that is killed in between leaves the old store, the
    new one, or one that `check_side_files` refuses: never a mixture that opens.
    """
    files = {path.name: path.read_bytes() for path in staging.iterdir()}
    listed = {entry.name for entry in store.manifest.side_files}
    changed = changed_names(store, files)
    entries = side_file_entries(files)
    changes = []
    for entry in entries:
        differs = side_file_fault(store.path / entry.name, entry) is not None
        if differs:
            (staging / entry.name).replace(store.path / entry.name)
        if entry.name in changed:
            changes.append(SideChange(entry.name, "changed" if entry.name in listed else "added", entry.bytes))
        elif differs:
            changes.append(SideChange(entry.name, "restored", entry.bytes))
    for name in sorted({*SIDE_FILES, *listed} - files.keys()):
        if name in listed or os.path.lexists(store.path / name):
            (store.path / name).unlink(missing_ok=True)
            changes.append(SideChange(name, "removed"))
    sync_folder(store.path)  # the new manifest relies on the names
    if changed:
        origin = {**store.manifest.provenance, "side_files": dict(provenance)}
        replace_durably(store.path / MANIFEST_NAME, amend_manifest(store.text, entries, origin))
    return changes
