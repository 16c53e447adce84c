"""Writes the files of a planned store in place, in any order, and its manifest last.

Invariants: the bytes at each offset do not depend on the order of writes, so that a resumed conversion ends with the
same bytes; no write is certain to be durable before `sync`; the manifest is written last.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgemoe.io.checksum import crc32c
from edgemoe.store.manifest import MANIFEST_NAME, Checksums, FileEntry, Manifest, SideFile

HASH_BYTES = 1 << 22


class StoreWriter:
    """Open files of a store that is being written. Every method may raise OSError. A context manager.

    `plan` is a manifest with places and without checksums, from `plan_store`.
    """

    def __init__(self, folder: Path, plan: Manifest) -> None:
        self.folder = folder
        self.plan = plan
        self._descriptors: dict[str, int] = {}
        self._unsynced: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        headers = [plan.dense_header(), *plan.expert_headers()]
        try:
            for entry, header in zip((plan.dense_file, *plan.expert_files), headers, strict=True):
                self._create(entry, header)
        except BaseException:
            self.close()
            raise

    def _create(self, entry: FileEntry, header: bytes) -> None:
        descriptor = os.open(self.folder / entry.name, os.O_RDWR | os.O_CREAT, 0o666)
        self._descriptors[entry.name] = descriptor
        os.ftruncate(descriptor, entry.bytes)
        self.write(entry.name, 0, header)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files as they are."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def missing_bytes(self) -> int:
        """Bytes of the store's files for which the disk has no blocks yet."""
        stats = [os.fstat(descriptor) for descriptor in self._descriptors.values()]
        return sum(max(0, stat.st_size - stat.st_blocks * 512) for stat in stats)

    def write(self, file: str, offset: int, data: Any) -> None:
        """Write bytes-like data at an offset of one of the store's files."""
        view = memoryview(data).cast("B")
        self._unsynced.add(file)
        while view:
            count = os.pwrite(self._descriptors[file], view, offset)
            view, offset = view[count:], offset + count

    def sync(self) -> None:
        """Return when all written bytes are on the disk."""
        for file in sorted(self._unsynced):
            os.fsync(self._descriptors[file])
            self._unsynced.discard(file)

    def checksums(self, file: str, offset: int, size: int) -> Checksums:
        """The checksums of a range of a file as it is now."""
        return hash_range(self._descriptors[file], offset, size)

    def finish(self, manifest: Manifest, side_files: Mapping[str, bytes]) -> Manifest:
        """Write the side files, the records' table and the manifest, with checksums, and make everything durable."""
        for name, content in side_files.items():
            write_durably(self.folder / name, content)
        manifest = replace(manifest, side_files=side_file_entries(side_files))
        if manifest.record_file is not None:
            write_durably(self.folder / manifest.record_file.name, manifest.records.to_bytes())
        self.sync()
        write_durably(self.folder / MANIFEST_NAME, manifest.to_bytes())
        sync_folder(self.folder)
        return manifest


def side_file_entries(files: Mapping[str, bytes]) -> tuple[SideFile, ...]:
    """The manifest's entries for side files with these contents."""
    return tuple(
        SideFile(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in sorted(files.items())
    )


def replace_durably(path: Path, content: bytes) -> None:
    """Replace a file atomically, and return when it is on the disk: others that open it read the old or the new one."""
    beside = path.with_name(f".{path.name}.new")
    try:
        write_durably(beside, content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_durably(path: Path, content: bytes) -> None:
    """Write a whole file, and return when it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def with_checksums(plan: Manifest, checksums: Mapping[str, Checksums]) -> Manifest:
    """The manifest with the checksums of each dense tensor and record, given by their names."""
    found = [checksums[record.name] for record in plan.records]
    records = replace(
        plan.records,
        sha256=np.frombuffer(bytes.fromhex("".join(one.sha256 for one in found)), np.uint8).reshape(-1, 32),
        crc32c=np.array([one.crc32c for one in found], np.uint32),
    )
    dense = tuple(replace(tensor, **asdict(checksums[tensor.name])) for tensor in plan.dense)
    return replace(plan, dense=dense, records=records)


def hash_range(descriptor: int, offset: int, size: int) -> Checksums:
    """The checksums of a range of a file; if the file ends early, of the bytes up to its end."""
    digest, crc = hashlib.sha256(), 0
    buffer = memoryview(bytearray(min(HASH_BYTES, size)))
    while size:
        count = os.preadv(descriptor, [buffer[: min(size, HASH_BYTES)]], offset)
        if not count:
            break
        digest.update(buffer[:count])
        crc = crc32c(buffer[:count], crc)
        offset, size = offset + count, size - count
    return Checksums(digest.hexdigest(), crc)


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder durable (fsync)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
