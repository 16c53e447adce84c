"""The journal of a conversion: records on disk what is finished, so that any interruption can be resumed; and its lock.

The journal is a file of JSON lines, each appended and made durable only after the bytes that it describes. A line
cut short by a crash, and everything after it, is ignored: that work is done again and gives the same bytes.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgemoe.errors import UsageError
from edgemoe.store.headers import parse_json
from edgemoe.store.manifest import Checksums

JOURNAL_NAME = "journal"
MAX_JOURNAL_BYTES = 1 << 30


class Journal:
    """The journal of a conversion into `folder`, which it locks. A context manager."""

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder = folder
        self._descriptor = descriptor
        self.identity: Mapping[str, Any] | None = None
        """Identity of the conversion in the folder; None if none was begun."""
        self.errors: dict[int, tuple[float, float]] = {}
        """Sums of squared errors and of squared weights of each finished piece, by its number."""
        self.checksums: dict[str, Checksums] = {}
        """Checksums of each finished record or dense tensor."""
        self._read()

    @classmethod
    def lock(cls, folder: Path) -> Journal:
        """Open and lock the journal in a folder, or create it. Raises UsageError if another conversion runs there."""
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(folder / JOURNAL_NAME, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:
                continue  # a conversion that was ending removed the folder in this moment
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise UsageError(
                    f"{folder}: another conversion into this place is running.",
                    "Wait for it, stop it, or give another destination.",
                ) from None
            if _is_same_file(descriptor, folder / JOURNAL_NAME):
                return cls(folder, descriptor)
            os.close(descriptor)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _read(self) -> None:
        text = os.pread(self._descriptor, MAX_JOURNAL_BYTES, 0)
        good = 0
        for line in text.splitlines(keepends=True):
            if not line.endswith(b"\n") or not self._understand(line):
                break
            good += len(line)
        os.ftruncate(self._descriptor, good)
        os.lseek(self._descriptor, good, os.SEEK_SET)

    def _understand(self, line: bytes) -> bool:
        """Parse one line and apply it; False if it is damaged."""
        try:
            entry = parse_json(line)
            if self.identity is None:
                self.identity = dict(entry["identity"])
            elif "piece" in entry:
                error, weight = entry["sums"]
                self.errors[int(entry["piece"])] = (float(error), float(weight))
            else:
                self.checksums[str(entry["part"])] = Checksums(str(entry["sha256"]), int(entry["crc32c"]))
        except (ValueError, TypeError, KeyError):
            return False
        return True

    def restart(self, identity: Mapping[str, Any]) -> None:
        """Forget everything, and begin a conversion of `identity`."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.errors.clear()
        self.checksums.clear()
        self.identity = identity
        self._append([{"identity": identity}])

    def record(self, errors: Mapping[int, tuple[float, float]], checksums: Mapping[str, Checksums]) -> None:
        """Record finished pieces and parts; returns once that is on the disk. Their bytes must be there already."""
        self.errors.update(errors)
        self.checksums.update(checksums)
        lines: list[dict[str, Any]] = [{"piece": number, "sums": list(sums)} for number, sums in errors.items()]
        self._append(lines + [{"part": name, **vars(found)} for name, found in checksums.items()])

    def _append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        view = memoryview("".join(json.dumps(line) + "\n" for line in lines).encode())
        while view:
            view = view[os.write(self._descriptor, view) :]
        os.fsync(self._descriptor)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
