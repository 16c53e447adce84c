"""Holds every byte of a store against its manifest's checksums."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edgemoe.store.manifest import MANIFEST_NAME, checksum_holds, record_name
from edgemoe.store.reader import Store, read_manifest_text
from edgemoe.store.writer import hash_range


@dataclass(frozen=True)
class Problem:
    """Something in a store that is not as it was written; `layer` and `expert` where it is an expert's record."""

    file: str
    message: str
    layer: int | None = None
    expert: int | None = None

    def __str__(self) -> str:
        return f"{self.file}: {self.message}"


@dataclass(frozen=True)
class _Part:
    """A range of a file with the checksum that it must have."""

    file: str
    name: str
    offset: int
    bytes: int
    sha256: str
    layer: int | None = None
    expert: int | None = None


def verify_store(store: Store, progress: Callable[[int, int], None] | None = None) -> list[Problem]:
    """What is not as it was written, an empty list for a store that is whole. Reads every byte.

    `progress` is called with (bytes done, bytes in all).
    """
    problems = []
    if not checksum_holds(read_manifest_text(store.path)):
        problems.append(Problem(MANIFEST_NAME, "the manifest was altered: its own checksum differs."))
    problems += _header_problems(store)
    parts = list(_parts(store))
    total = sum(part.bytes for part in parts)
    done = 0
    for part in parts:
        problem = _check(store, part)
        problems += [problem] if problem else []
        done += part.bytes
        if progress:
            progress(done, total)
    return problems


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
    for side in manifest.side_files:
        yield _Part(side.name, "the file", 0, side.bytes, side.sha256)
    for tensor in manifest.resident:
        yield _Part(manifest.resident_file.name, tensor.name, tensor.offset, tensor.bytes, tensor.sha256)
    for number, layer in enumerate(manifest.expert_layers):
        for expert, place in enumerate(layer.records if layer else ()):
            assert layer is not None
            file = manifest.expert_files[place.file].name
            name = record_name(number, expert)
            yield _Part(file, name, place.offset, layer.record_bytes, place.sha256, number, expert)


def _check(store: Store, part: _Part) -> Problem | None:
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
    if found == part.sha256:
        return None
    message = f"{part.name} at byte {part.offset} differs from what was written (sha256)."
    return Problem(part.file, message, part.layer, part.expert)
