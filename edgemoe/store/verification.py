"""Verifies every byte of a store by its manifest's checksums; the manifest's own is checked at every read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgemoe.store.lock import locked
from edgemoe.store.manifest import MANIFEST_NAME, Checksums, with_record_file
from edgemoe.store.reader import Store
from edgemoe.store.side_files import side_faults
from edgemoe.store.writer import hash_range, replace_durably, with_checksums


@dataclass(frozen=True)
class Problem:
    """A part of a store that differs from its checksum; `layer` and `expert` are set for an expert's record."""

    file: str
    message: str
    layer: int | None = None
    expert: int | None = None
    in_side_file: bool = False
    """Whether the problem is a side file's, which `edgemoe update` can repair."""

    def __str__(self) -> str:
        return f"{self.file}: {self.message}"


@dataclass(frozen=True)
class _Part:
    """A range of a file with the checksums that it must have."""

    file: str
    name: str
    offset: int
    bytes: int
    sha256: str
    crc32c: int | None = None
    layer: int | None = None
    expert: int | None = None


Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


def verify_store(store: Store, progress: Progress | None = None) -> list[Problem]:
    """List the parts that differ from their checksums; empty for an undamaged store. Reads every byte.

    Side files that the manifest does not name are problems too, since a session would read them.
    """
    return _verify(store, progress)[0]


def migrate_store(path: Path, progress: Progress | None = None) -> tuple[Store, list[Problem]]:
    """Bring the manifest of a store to the form of this version; returns the store as it is then, and its problems.

    Records move from the manifest to a table in a file of its own, and tensors and records get the CRC-32C checksums
    of every read where they have none. The store is verified first: with problems it stays as it is. Weights are not
    written. The table is on the disk before the manifest, which is replaced atomically, names it, so that a process
    that is killed leaves the old store or the new one, and the next migration ends the work. Raises OSError where the
    folder cannot be written to, UsageError where another process changes the store.
    """
    with locked(path):
        store = Store.open(path)
        problems, found = _verify(store, progress)
        if problems or store.manifest.is_current:
            return store, problems
        manifest = with_record_file(with_checksums(store.manifest, found))
        if manifest.record_file is not None:
            replace_durably(path / manifest.record_file.name, manifest.records.to_bytes())
        replace_durably(path / MANIFEST_NAME, manifest.to_bytes())
        return Store.open(path), []


def _verify(store: Store, progress: Progress | None) -> tuple[list[Problem], dict[str, Checksums]]:
    """The problems of a store, and the actual checksums of its parts."""
    problems = [Problem(fault.name, fault.message, in_side_file=True) for fault in side_faults(store)]
    problems += _header_problems(store)
    parts = list(_parts(store))
    total = sum(part.bytes for part in parts)
    done = 0
    found = {}
    for part in parts:
        result = _check(store, part)
        if isinstance(result, Problem):
            problems.append(result)
        else:
            found[part.name] = result
        done += part.bytes
        if progress:
            progress(done, total)
    return problems, found


def _header_problems(store: Store) -> Iterator[Problem]:
    manifest = store.manifest
    headers = [manifest.dense_header(), *manifest.expert_headers()]
    for entry, header in zip((manifest.dense_file, *manifest.expert_files), headers, strict=True):
        try:
            with (store.path / entry.name).open("rb") as file:
                found = file.read(len(header))
        except OSError as error:
            yield Problem(entry.name, f"cannot be read ({error.strerror}).")
            continue
        if found != header:
            yield Problem(entry.name, "its header is not the one that was written.")


def _parts(store: Store) -> Iterator[_Part]:
    manifest = store.manifest
    for tensor in manifest.dense:
        file = manifest.dense_file.name
        yield _Part(file, tensor.name, tensor.offset, tensor.bytes, tensor.sha256, tensor.crc32c)
    records = manifest.records
    for row, record in enumerate(records):
        file = manifest.expert_files[record.file].name
        sha256 = records.sha256[row].tobytes().hex()
        crc = None if records.crc32c is None else int(records.crc32c[row])
        yield _Part(file, record.name, record.offset, record.length, sha256, crc, record.layer, record.expert)


def _check(store: Store, part: _Part) -> Problem | Checksums:
    try:
        descriptor = os.open(store.path / part.file, os.O_RDONLY)
        try:
            found = hash_range(descriptor, part.offset, part.bytes)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, part.offset, part.bytes, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    except OSError as error:
        return Problem(part.file, f"{part.name} cannot be read ({error.strerror}).", part.layer, part.expert)
    if found.sha256 != part.sha256:
        wrong = "differs from what was written (sha256)."
    elif part.crc32c not in (None, found.crc32c):
        wrong = "is as it was written, but the manifest has another crc32c for it."
    else:
        return found
    return Problem(part.file, f"{part.name} at byte {part.offset} {wrong}", part.layer, part.expert)
