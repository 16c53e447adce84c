"""A repository of the Hugging Face hub at one commit: which files it has, and how they come to this machine.

The commit is looked up once and everything is read at that commit, so an update meanwhile cannot mix versions. A file
is downloaded to a partial file, which a later run resumes, and renamed when its size and SHA-256 are right. It goes to
a folder of downloads, or to the hub's own cache, where other programs find it too; what is in that cache is never
downloaded again. The library lays out the cache. Its own download is used only where the hub gives no SHA-256: it
begins anew after an interruption, and does not check what it got.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from huggingface_hub import HfApi, ModelInfo, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public by its documentation
    WeakFileLock,
    build_hf_headers,
    disable_progress_bars,
)

from edgemoe.conversion.hub_errors import AGAIN, FAILURES, explained, http_status, may_pass
from edgemoe.conversion.hub_folder import hub_cache_folder, partial_name, repository_folder
from edgemoe.conversion.hub_id import HubId
from edgemoe.conversion.progress import Download, DownloadCallback
from edgemoe.errors import SourceError
from edgemoe.paths import CACHE_VARIABLE, cache_folder
from edgemoe.sizes import format_size

_MAX_SMALL_FILE_BYTES = 1 << 28
_MAX_PLAIN_DOWNLOAD_BYTES = 50 * 10**9
"""The hub sends larger files by a protocol of its own alone, which its library has."""
_ATTEMPTS_WITHOUT_PROGRESS = 3
_RANGE_REFUSED = 416
_CHECKED_AT_ONCE_BYTES = 1 << 24
_COMMIT = re.compile("[0-9a-f]{40,64}")


@dataclass(frozen=True)
class RemoteFile:
    """A file of the repository; size and SHA-256 if the hub gives them."""

    size: int | None
    sha256: str | None


class HubRepository:
    """A repository by its hub id.

    `downloads` is the folder for downloads (None: a folder in the user's cache); with `keep` they go to the hub's own
    cache and stay there. A file that is already in that cache is always used from there. `downloading` hears of the
    progress.
    """

    def __init__(
        self,
        hub_id: HubId,
        *,
        downloads: Path | None = None,
        keep: bool = False,
        downloading: DownloadCallback | None = None,
    ) -> None:
        """Asks the hub what there is. Raises SourceError, and HubUnreachableError where the hub cannot be asked."""
        self.id, self._keep, self._downloading = hub_id, keep, downloading
        self._cache = hub_cache_folder()
        if keep and self._cache is None:
            raise SourceError(
                f"{hub_id}: there is no Hugging Face cache to keep downloads in: this user has no home folder.",
                "Set HF_HOME to a folder of yours, or convert without keeping downloads.",
            )
        self._api = HfApi(library_name="edgemoe")
        # The library's progress bars would overwrite those of the caller.
        disable_progress_bars("huggingface_hub.http_get")
        with explained(hub_id.repository):
            info = self._model_info()
        if not _COMMIT.fullmatch(info.sha or ""):  # the commit becomes the name of a folder
            raise SourceError(f"{hub_id}: the hub's answer names no commit.", "Check HF_ENDPOINT.")
        self.commit: str = info.sha or ""
        self.files: Mapping[str, RemoteFile] = {
            file.rfilename: RemoteFile(file.size, file.lfs.sha256 if file.lfs else None)
            for file in info.siblings or []
            if _is_inside(file.rfilename)
        }
        self._downloads = downloads
        self._expected: dict[str, int] = {}

    @property
    def name(self) -> str:
        """The repository with its commit, for provenance and messages."""
        return f"{self.id.repository}@{self.commit}"

    @cached_property
    def folder(self) -> Path:
        """The folder of downloads that are not kept. Raises SourceError where there is none."""
        base = self._downloads or _downloads_folder()
        return base / self.id.repository.replace("/", "--") / self.commit

    def parse_header(self, shard: str) -> Any:
        """The header of a safetensors file, read without the file. Raises the library's errors."""
        return self._api.parse_safetensors_file_metadata(self.id.repository, shard, revision=self.commit)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Read bytes of a file that is not downloaded. Raises SourceError."""

        def limit(done: int) -> None:
            if done > stop - start:
                raise SourceError(
                    f"{self.id.repository}: {name}: expected bytes {start} to {stop}, the hub sends more.",
                    "Check HF_ENDPOINT: a hub sends parts of files.",
                )

        into = io.BytesIO()
        with explained(f"{self.id.repository}: {name}"):
            headers = {**build_hf_headers(library_name="edgemoe"), "Range": f"bytes={start}-{stop - 1}"}
            http_get(
                self._url(name),
                cast(BinaryIO, _Watched(into, limit)),
                headers=headers,
                expected_size=stop - start,
                displayed_filename=name,
            )
        return into.getvalue()

    def cached(self, name: str) -> Path | None:
        """The file in the hub's own cache, from an earlier run with `keep` or from another program."""
        if self._cache is None:
            return None
        path = try_to_load_from_cache(self.id.repository, name, cache_dir=self._cache, revision=self.commit)
        if not isinstance(path, str) or self.files[name].size not in (None, Path(path).stat().st_size):
            return None
        return Path(path)

    def file(self, name: str) -> Path:
        """The local path of a file, downloaded if necessary. Raises SourceError."""
        path = self.cached(name) or (self._download_to_cache(name) if self._keep else self._download(name))
        self._expected.pop(name, None)
        return path

    def small_file(self, name: str) -> Path:
        """The local path of a file that is no weights. Raises SourceError, also if it is implausibly large."""
        size = self.files[name].size
        if size is not None and size > _MAX_SMALL_FILE_BYTES:
            raise SourceError(f"{self.name}: {name}: expected at most {_MAX_SMALL_FILE_BYTES} bytes, found {size}.")
        into_cache = self._keep and size is not None  # the library's own download has no size limit
        return self.cached(name) or (self._download_to_cache(name) if into_cache else self._download(name))

    def expect(self, names: Iterable[str]) -> None:
        """Prepare for the download of these files. Raises SourceError if the disk has no room for all that is missing.

        From then on progress says what is to come after each of them.
        """
        into = self._cache if self._keep and self._cache is not None else self.folder
        self._expected = {name: self._missing_bytes(name) for name in names if not self._is_here(name)}
        missing = sum(self._expected.values())
        free = shutil.disk_usage(_existing(into)).free
        if missing > free:
            many = len(self._expected)
            what = next(iter(self._expected)) if many == 1 else f"{many} files, such as {next(iter(self._expected))},"
            raise SourceError(
                f"{self.id}: {what} would take {format_size(missing)} more under {into}, {format_size(free)} are free.",
                "Free some space there, or set HF_HOME to a folder on another disk; edgemoe list shows which models are"
                " there.",
            )

    def note_revision(self) -> None:
        """Note in the hub's cache which commit the branch or tag is, so that its files are found without the hub."""
        revision = self.id.revision or "main"
        if self._cache is not None and revision != self.commit and _is_inside(revision):
            reference = repository_folder(self._cache, self.id.repository) / "refs" / revision
            with explained(str(self.id), self._cache):
                reference.parent.mkdir(parents=True, exist_ok=True)
                reference.write_text(self.commit)

    def discard(self, name: str) -> None:
        """Delete the download of a file, whole or partial; what is in the hub's cache stays."""
        if self._keep:
            return
        for path in (self.folder / name, self._partial(name)):
            path.unlink(missing_ok=True)

    def tidy(self, weights: Iterable[str]) -> None:
        """Remove the folder of downloads, unless a later run can resume with weights, or parts of files, in it."""
        if "folder" not in self.__dict__:  # nothing was downloaded to it
            return
        kept = {self.folder / name for name in weights}
        if not any(path in kept or path.suffix == ".part" for path in self.folder.rglob("*")):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _model_info(self) -> ModelInfo:
        repository = self.id.repository
        try:
            return self._api.model_info(repository, revision=self.id.revision, files_metadata=True)
        except HFValidationError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise SourceError(
                f"{repository}: the server is not a model hub ({type(error).__name__}: {error!s:.200}).",
                "Check HF_ENDPOINT, and whether this network wants you to sign in first.",
            ) from error

    def _url(self, name: str) -> str:
        return hf_hub_url(self.id.repository, name, revision=self.commit, endpoint=self._api.endpoint)

    def _is_here(self, name: str) -> bool:
        """Whether nothing of a file is to be downloaded. In the cache another commit's file may have its contents."""
        if self._keep and (sha256 := self.files[name].sha256) is not None:
            return _size(self._blobs() / sha256) == self.files[name].size
        return self.cached(name) is not None or (not self._keep and (self.folder / name).exists())

    def _missing_bytes(self, name: str) -> int:
        partial = self._cache_partial(name) if self._keep else self._partial(name)
        return max(0, (self.files[name].size or 0) - (_size(partial) if partial is not None else 0))

    def _partial(self, name: str) -> Path:
        return self.folder / f"{name}.part"

    def _blobs(self) -> Path:
        assert self._cache is not None
        return repository_folder(self._cache, self.id.repository) / "blobs"

    def _cache_partial(self, name: str) -> Path | None:
        """The partial file in the hub's cache; None for what the library downloads."""
        remote = self.files[name]
        if remote.sha256 is None or (remote.size or 0) > _MAX_PLAIN_DOWNLOAD_BYTES:
            return None
        return self._blobs() / partial_name(name, remote.sha256)

    def _download(self, name: str) -> Path:
        path, partial = self.folder / name, self._partial(name)
        if path.exists():
            return path
        with explained(f"{self.id.repository}: {name}", self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fetch(name, partial)
            partial.replace(path)
        return path

    def _download_to_cache(self, name: str) -> Path:
        assert self._cache is not None
        repository, remote, partial = self.id.repository, self.files[name], self._cache_partial(name)
        snapshot = repository_folder(self._cache, repository) / "snapshots" / self.commit
        with explained(f"{repository}: {name}", self._cache):
            self._remove_cached(snapshot / name)
            if partial is None:
                self._report(name, 0)
            else:
                assert remote.sha256 is not None
                # Without a folder of snapshots the library takes the repository's folder for a damaged one.
                for folder in (partial.parent, snapshot):
                    folder.mkdir(parents=True, exist_ok=True)
                blob = partial.with_name(remote.sha256)
                lock = self._cache / ".locks" / partial.parents[1].name / f"{remote.sha256}.lock"
                lock.parent.mkdir(parents=True, exist_ok=True)
                with WeakFileLock(lock):
                    if _size(blob) != remote.size:
                        self._fetch(name, partial)
                        partial.replace(blob)
            path = Path(
                hf_hub_download(
                    repository, name, cache_dir=self._cache, revision=self.commit, endpoint=self._api.endpoint
                )
            )
            if partial is None:
                self._check(name, path)
        return path

    def _remove_cached(self, path: Path) -> None:
        """Remove a file of another size than the hub's from the hub's cache."""
        if path.is_symlink() or path.exists():
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)

    def _fetch(self, name: str, partial: Path) -> None:
        """Download a file to `partial`, from where an earlier run ended, and check it."""
        resumed = _size(partial) > 0
        self._check_space(name, partial)
        self._download_parts(name, partial)
        try:
            self._check(name, partial)
        except SourceError:
            if not resumed:
                raise
            self._download_parts(name, partial)  # what the earlier run left was wrong
            self._check(name, partial)

    def _download_parts(self, name: str, partial: Path) -> None:
        """Download the rest of a file, with new connections as long as they deliver bytes."""
        expected = self.files[name].size
        failures = 0
        if expected is not None and _size(partial) > expected:
            partial.unlink()
        if expected is not None and expected > _MAX_PLAIN_DOWNLOAD_BYTES:
            raise SourceError(
                f"{name}: the hub sends {format_size(expected)} to its own library only.",
                f"Download it first: edgemoe pull {self.id}.",
            )
        while True:
            before = _size(partial)
            try:
                with partial.open("ab") as file:
                    http_get(
                        self._url(name),
                        self._watched(file, name),
                        resume_size=before,
                        headers=build_hf_headers(library_name="edgemoe"),
                        expected_size=expected,
                        displayed_filename=name,
                    )
                return
            except FAILURES as error:
                if http_status(error) == _RANGE_REFUSED or (expected is not None and _size(partial) > expected):
                    # The file's length differs from the hub's metadata: a later run cannot use the partial file.
                    partial.unlink()
                    raise
                failures = 0 if _size(partial) > before else failures + 1
                if failures >= _ATTEMPTS_WITHOUT_PROGRESS or not may_pass(error):
                    raise
                time.sleep(failures)

    def _watched(self, file: BinaryIO, name: str) -> BinaryIO:
        """Wrap a file so that it reports each write and refuses to grow beyond the size that the hub gives."""
        size = self.files[name].size
        most = size if size is not None or name.endswith((".safetensors", ".gguf")) else _MAX_SMALL_FILE_BYTES

        def report(done: int) -> None:
            if most is not None and done > most:
                raise SourceError(f"{name}: expected {most} bytes, the hub sends more.", AGAIN)
            self._report(name, done)

        return cast(BinaryIO, _Watched(file, report))

    def _report(self, name: str, done: int, checking: bool = False) -> None:
        if self._downloading is not None:
            rest = sum(missing for other, missing in self._expected.items() if other != name)
            self._downloading(Download(name, done, self.files[name].size, rest, checking))

    def _check_space(self, name: str, partial: Path) -> None:
        size = self.files[name].size
        if size is None:
            return
        missing, free = size - _size(partial), shutil.disk_usage(partial.parent).free
        if missing > free:
            raise SourceError(
                f"{name}: expected {missing} bytes of free disk under {partial.parent}, found {free}.",
                "Free some space there, then run the same command again.",
            )

    def _check(self, name: str, path: Path) -> None:
        """Check a downloaded file against the size and SHA-256 that the hub gives; delete it if it is wrong."""
        remote = self.files[name]
        size = path.stat().st_size
        if remote.size is not None and size != remote.size:
            self._remove_cached(path)
            raise SourceError(f"{name}: expected {remote.size} bytes, the hub sent {size}.", AGAIN)
        if remote.sha256 is not None:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(_CHECKED_AT_ONCE_BYTES):
                    digest.update(chunk)
                    self._report(name, file.tell(), checking=True)
            if digest.hexdigest() != remote.sha256:
                self._remove_cached(path)
                raise SourceError(
                    f"{name}: expected the SHA-256 {remote.sha256}, found {digest.hexdigest()}: it was altered on the"
                    " way, and is deleted.",
                    AGAIN,
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


def _is_inside(name: str) -> bool:
    """Whether a file's name leads nowhere out of a folder: it becomes part of a local path."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _downloads_folder() -> Path:
    folder = cache_folder()
    if folder is None:
        raise SourceError(
            "There is no folder for downloads: this user has no home folder, or keeping files is switched off.",
            f"Set {CACHE_VARIABLE} to a folder of yours.",
        )
    return folder / "downloads"


def _existing(folder: Path) -> Path:
    """The folder, or the nearest of those that contain it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
