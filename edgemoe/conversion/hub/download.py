"""Downloads one file of the hub: in a partial file that a later run resumes, and checked when all of it is there."""

from __future__ import annotations

import hashlib
import io
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public by its documentation

from edgemoe.conversion.hub.errors import AGAIN, FAILURES, http_status, may_pass
from edgemoe.errors import SourceError
from edgemoe.sizes import format_size

MAX_SMALL_FILE_BYTES = 1 << 28
MAX_PLAIN_DOWNLOAD_BYTES = 50 * 10**9
"""The hub sends larger files by a protocol of its own alone, which its library has."""
_ATTEMPTS_WITHOUT_PROGRESS = 3
_RANGE_REFUSED = 416
_CHECKED_AT_ONCE_BYTES = 1 << 24

Report = Callable[[int, bool], None]
"""Hears of the bytes that are there, and whether they are being checked."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on the hub; size and SHA-256 if the hub gives them."""

    name: str
    url: str
    size: int | None
    sha256: str | None


def fetch(remote: RemoteFile, partial: Path, report: Report) -> None:
    """Download a file to `partial`, from where an earlier run ended, and check it.

    Raises SourceError, OSError, and what the library raises (`hub_errors.explained`).
    """
    resumed = size_of(partial) > 0
    _check_space(remote, partial)
    _download_parts(remote, partial, report)
    try:
        check(remote, partial, report)
    except SourceError:
        if not resumed:
            raise
        _download_parts(remote, partial, report)  # what the earlier run left was wrong
        check(remote, partial, report)


def check(remote: RemoteFile, path: Path, report: Report) -> None:
    """Check a downloaded file against the size and SHA-256 that the hub gives; remove it if it is wrong.

    Raises SourceError.
    """
    size = path.stat().st_size
    if remote.size is not None and size != remote.size:
        remove_with_contents(path)
        raise SourceError(f"{remote.name}: expected {remote.size} bytes, the hub sent {size}.", AGAIN)
    if remote.sha256 is None:
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHECKED_AT_ONCE_BYTES):
            digest.update(chunk)
            report(file.tell(), True)
    if digest.hexdigest() != remote.sha256:
        remove_with_contents(path)
        raise SourceError(
            f"{remote.name}: expected the SHA-256 {remote.sha256}, found {digest.hexdigest()}: it was altered on the"
            " way, and is removed.",
            AGAIN,
        )


def read_range(remote: RemoteFile, start: int, stop: int) -> bytes:
    """Read bytes of a file without downloading it. Raises SourceError, and what the library raises."""

    def limit(done: int) -> None:
        if done > stop - start:
            raise SourceError(
                f"{remote.name}: expected bytes {start} to {stop}, the hub sends more.",
                "Check HF_ENDPOINT: a hub sends parts of files.",
            )

    into = io.BytesIO()
    headers = {**build_hf_headers(library_name="edgemoe"), "Range": f"bytes={start}-{stop - 1}"}
    http_get(
        remote.url,
        cast(BinaryIO, _Watched(into, limit)),
        headers=headers,
        expected_size=stop - start,
        displayed_filename=remote.name,
    )
    return into.getvalue()


def remove_with_contents(path: Path) -> None:
    """Remove a file, and what it is a link to, as in the hub's cache: the library would only make the link again."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def _download_parts(remote: RemoteFile, partial: Path, report: Report) -> None:
    """Download the rest of a file, with new connections as long as they deliver bytes."""
    expected = remote.size
    failures = 0
    if expected is not None and size_of(partial) > expected:
        partial.unlink()
    if expected is not None and expected > MAX_PLAIN_DOWNLOAD_BYTES:
        raise SourceError(
            f"{remote.name}: the hub sends {format_size(expected)} to its own library only.",
            "Download it first, with edgemoe pull.",
        )
    while True:
        before = size_of(partial)
        try:
            with partial.open("ab") as file:
                http_get(
                    remote.url,
                    _limited(file, remote, report),
                    resume_size=before,
                    headers=build_hf_headers(library_name="edgemoe"),
                    expected_size=expected,
                    displayed_filename=remote.name,
                )
            return
        except FAILURES as error:
            if http_status(error) == _RANGE_REFUSED or (expected is not None and size_of(partial) > expected):
                # The file's length differs from the hub's metadata: a later run cannot use the partial file.
                partial.unlink()
                raise
            failures = 0 if size_of(partial) > before else failures + 1
            if failures >= _ATTEMPTS_WITHOUT_PROGRESS or not may_pass(error):
                raise
            time.sleep(failures)


def _limited(file: BinaryIO, remote: RemoteFile, report: Report) -> BinaryIO:
    """Wrap a file so that it reports each write and refuses to grow beyond the size that the hub gives."""
    weights = remote.name.endswith((".safetensors", ".gguf"))
    most = remote.size if remote.size is not None or weights else MAX_SMALL_FILE_BYTES

    def written(done: int) -> None:
        if most is not None and done > most:
            raise SourceError(f"{remote.name}: expected {most} bytes, the hub sends more.", AGAIN)
        report(done, False)

    return cast(BinaryIO, _Watched(file, written))


def _check_space(remote: RemoteFile, partial: Path) -> None:
    if remote.size is None:
        return
    missing, free = remote.size - size_of(partial), shutil.disk_usage(partial.parent).free
    if missing > free:
        raise SourceError(
            f"{remote.name}: expected {missing} bytes of free disk under {partial.parent}, found {free}.",
            "Free some space there, then run the same command again.",
        )


class _Watched:
    """A file that reports its length after each write."""

    def __init__(self, file: BinaryIO, report: Callable[[int], None]) -> None:
        self._file, self._report = file, report

    def write(self, data: bytes) -> int:
        count = self._file.write(data)
        self._report(self._file.tell())
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
