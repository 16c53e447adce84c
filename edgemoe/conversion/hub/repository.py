"""A repository of the Hugging Face hub at one commit: which files it has, and how they come to this machine.

The commit is looked up once and everything is read at that commit, so an update meanwhile cannot mix versions. A file
goes to a folder of downloads, or to the hub's own cache, where other programs find it too; what is in that cache is
never downloaded again. The library lays out the cache. Its own download is used only where the hub gives no SHA-256:
it begins anew after an interruption, and does not check what it got.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, ModelInfo, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import WeakFileLock, disable_progress_bars  # type: ignore[attr-defined]  # both are public

from edgemoe.conversion.hub.download import (
    MAX_PLAIN_DOWNLOAD_BYTES,
    MAX_SMALL_FILE_BYTES,
    RemoteFile,
    Report,
    check,
    fetch,
    read_range,
    remove_with_contents,
    size_of,
)
from edgemoe.conversion.hub.errors import explained
from edgemoe.conversion.hub.folder import hub_cache_folder, partial_name, repository_folder
from edgemoe.conversion.hub.id import HubId
from edgemoe.conversion.progress import Download, DownloadCallback
from edgemoe.errors import SourceError
from edgemoe.paths import CACHE_VARIABLE, cache_folder
from edgemoe.sizes import format_size

_COMMIT = re.compile("[0-9a-f]{40,64}")


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
            file.rfilename: RemoteFile(
                file.rfilename,
                hf_hub_url(hub_id.repository, file.rfilename, revision=self.commit, endpoint=self._api.endpoint),
                file.size,
                file.lfs.sha256 if file.lfs else None,
            )
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
        with explained(f"{self.id.repository}: {name}"):
            return read_range(self.files[name], start, stop)

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
        if size is not None and size > MAX_SMALL_FILE_BYTES:
            raise SourceError(f"{self.name}: {name}: expected at most {MAX_SMALL_FILE_BYTES} bytes, found {size}.")
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
            first, *others = self._expected
            what = f"{len(self._expected)} files, such as {first}," if others else first
            raise SourceError(
                f"{self.id}: {what} would take {format_size(missing)} more under {into}, {format_size(free)} are free.",
                "Free some space there, or set HF_HOME to a folder on another disk; edgemoe list shows what is there."
                if self._keep
                else "Free some space there, then run the same command again.",
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

    def _is_here(self, name: str) -> bool:
        """Whether nothing of a file is to be downloaded. In the cache another commit's file may have its contents."""
        if self._keep and (sha256 := self.files[name].sha256) is not None:
            return size_of(self._blobs() / sha256) == self.files[name].size
        return self.cached(name) is not None or (not self._keep and (self.folder / name).exists())

    def _missing_bytes(self, name: str) -> int:
        partial = self._cache_partial(name) if self._keep else self._partial(name)
        return max(0, (self.files[name].size or 0) - (size_of(partial) if partial is not None else 0))

    def _partial(self, name: str) -> Path:
        return self.folder / f"{name}.part"

    def _blobs(self) -> Path:
        assert self._cache is not None
        return repository_folder(self._cache, self.id.repository) / "blobs"

    def _cache_partial(self, name: str) -> Path | None:
        """The partial file in the hub's cache; None for what the library downloads."""
        remote = self.files[name]
        if remote.sha256 is None or (remote.size or 0) > MAX_PLAIN_DOWNLOAD_BYTES:
            return None
        return self._blobs() / partial_name(name, remote.sha256)

    def _download(self, name: str) -> Path:
        path, partial = self.folder / name, self._partial(name)
        if path.exists():
            return path
        with explained(f"{self.id.repository}: {name}", self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            fetch(self.files[name], partial, self._reporter(name))
            partial.replace(path)
        return path

    def _download_to_cache(self, name: str) -> Path:
        assert self._cache is not None
        repository, remote, partial = self.id.repository, self.files[name], self._cache_partial(name)
        snapshot = repository_folder(self._cache, repository) / "snapshots" / self.commit
        with explained(f"{repository}: {name}", self._cache):
            remove_with_contents(snapshot / name)  # of another size than the hub's, if there is one
            if partial is None:
                self._reporter(name)(0, False)
            else:
                assert remote.sha256 is not None
                # Without a folder of snapshots the library takes the repository's folder for a damaged one.
                for folder in (partial.parent, snapshot):
                    folder.mkdir(parents=True, exist_ok=True)
                blob = partial.with_name(remote.sha256)
                lock = self._cache / ".locks" / partial.parents[1].name / f"{remote.sha256}.lock"
                lock.parent.mkdir(parents=True, exist_ok=True)
                with WeakFileLock(lock):
                    if size_of(blob) != remote.size:
                        fetch(remote, partial, self._reporter(name))
                        partial.replace(blob)
            path = Path(
                hf_hub_download(
                    repository, name, cache_dir=self._cache, revision=self.commit, endpoint=self._api.endpoint
                )
            )
            if partial is None:
                check(remote, path, self._reporter(name))
        return path

    def _reporter(self, name: str) -> Report:
        def report(done: int, checking: bool) -> None:
            if self._downloading is not None:
                rest = sum(missing for other, missing in self._expected.items() if other != name)
                self._downloading(Download(name, done, self.files[name].size, rest, checking))

        return report


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
