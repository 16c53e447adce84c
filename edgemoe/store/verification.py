"""Verifies every byte of a store by its manifest's checksums; the manifest's own is checked at every read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edgemoe.store.manifest import Checksums, record_name
from edgemoe.store.reader import Store
from edgemoe.store.side_files import side_faults
from edgemoe.store.writer import hash_range, replace_manifest, with_checksums


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


def add_checksums(store: Store, progress: Progress | None = None) -> list[Problem]:
    """Add CRC-32C checksums, which are checked at every read, to the manifest of a store made before they existed.

    The store is verified first: problems, if any, are returned, and the manifest stays unchanged. Raises OSError where
    the manifest cannot be written.
    """
    problems, found = _verify(store, progress)
    if not problems and not store.manifest.checked_when_read:
        replace_manifest(store.path, with_checksums(store.manifest, found))
    return problems


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
    headers = [manifest.resident_header(), *manifest.expert_headers()]
    for entry, header in zip((manifest.resident_file, *manifest.expert_files), headers, strict=True):
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
    for tensor in manifest.resident:
        file = manifest.resident_file.name
        yield _Part(file, tensor.name, tensor.offset, tensor.bytes, tensor.sha256, tensor.crc32c)
    for number, layer in enumerate(manifest.expert_layers):
        for expert, place in enumerate(layer.records if layer else ()):
            assert layer is not None
            file = manifest.expert_files[place.file].name
            name = record_name(number, expert)
            size = layer.record_bytes
            yield _Part(file, name, place.offset, size, place.sha256, place.crc32c, number, expert)


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
