"""A checkpoint on the Hugging Face hub: small files first, then one shard at a time, each deleted after use.

The commit is looked up once and everything is read at that commit, so an update during the conversion cannot mix
versions. Only the files named here are ever fetched, never a pickle or a program. The shapes of all tensors come from
the shards' headers, read by range requests before any shard is downloaded.

A shard is downloaded to `NAME.part`, which a later run resumes, and renamed when its size and SHA-256 are right.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from huggingface_hub import HfApi, ModelInfo, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, disable_progress_bars  # type: ignore[attr-defined]  # public by its documentation

from edgemoe.conversion.folder import read_json_file, to_float32
from edgemoe.conversion.folder_contents import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    INDEX_NAME,
    SINGLE_NAME,
    adapter_error,
    no_tokenizer,
    single_before_shards,
)
from edgemoe.conversion.hub_errors import AGAIN, FAILURES, explained, http_status, may_pass
from edgemoe.conversion.mxfp4 import join_pairs, read_pair
from edgemoe.conversion.progress import Download, DownloadCallback
from edgemoe.conversion.rank_shards import named_by_rank, rank_shards
from edgemoe.conversion.source import TensorInfo, column_spans, float_dtype
from edgemoe.conversion.tokenizers.files import vocabulary_name
from edgemoe.errors import SourceError
from edgemoe.kernels.file_rows import Rows
from edgemoe.paths import CACHE_VARIABLE, cache_folder
from edgemoe.store.headers import HeaderTensor, read_header
from edgemoe.store.side_files import SIDE_FILES

_MAX_SMALL_FILE_BYTES = 1 << 28
_HEADERS_AT_ONCE = 8
_ATTEMPTS_WITHOUT_PROGRESS = 3
_RANGE_REFUSED = 416
_COMMIT = re.compile("[0-9a-f]{40,64}")


@dataclass(frozen=True)
class _RemoteFile:
    """A file of the repository; size and SHA-256 if the hub gives them."""

    size: int | None
    sha256: str | None


class HubSource:
    """A checkpoint by its hub id `owner/name[@revision]` (see `Source`). Opening it fetches the small files.

    `downloads` is the folder for shards (None: a folder in the user's cache); with `keep` they go to the hub's own
    cache and stay there. A shard that is already in that cache is always used from there. Without `side_files` the
    tokenizer's files are not downloaded.
    """

    def __init__(
        self,
        text: str,
        *,
        downloads: Path | None = None,
        keep: bool = False,
        downloading: DownloadCallback | None = None,
        endpoint: str | None = None,
        side_files: bool = True,
    ) -> None:
        self._repository, _, revision = text.partition("@")
        self._keep, self._downloading = keep, downloading
        if keep and HF_HUB_CACHE.startswith("~"):
            raise SourceError(
                f"{text}: there is no Hugging Face cache to keep downloads in: this user has no home folder.",
                "Set HF_HOME to a folder of yours, or convert without keeping downloads.",
            )
        self._api = HfApi(endpoint=endpoint, library_name="edgemoe")
        # The library's progress bars would overwrite those of the caller.
        disable_progress_bars("huggingface_hub.http_get")
        with explained(self._repository):
            info = self._model_info(revision or None)
        if not _COMMIT.fullmatch(info.sha or ""):  # the commit becomes the name of a folder
            raise SourceError(f"{text}: the hub's answer names no commit.", "Check HF_ENDPOINT.")
        self._commit: str = info.sha or ""
        self._remote = {
            file.rfilename: _RemoteFile(file.size, file.lfs.sha256 if file.lfs else None)
            for file in info.siblings or []
        }
        base = downloads or _downloads_folder()
        self._folder = base / self._repository.replace("/", "--") / self._commit
        if ADAPTER_CONFIG_NAME in self._remote:
            adapter = read_json_file(self._small_file(ADAPTER_CONFIG_NAME), "the config of an adapter")
            raise adapter_error(self._repository, ADAPTER_CONFIG_NAME, adapter, CONFIG_NAME in self._remote)
        if CONFIG_NAME not in self._remote:
            raise self._unreadable(CONFIG_NAME)
        self._config = read_json_file(self._small_file(CONFIG_NAME), "a config.json of a checkpoint")
        self._unlisted: dict[str, str] = {}
        self._shards = self._find_shards()
        self._listed = self._find_tensors()
        self._joined = join_pairs(self._listed, list(self._shards))
        self._tensors = self._joined.tensors
        self._released: set[str] = set()
        wanted = (*SIDE_FILES, vocabulary_name(self._remote)) if side_files else ()
        self._side_files = {
            name: self._small_file(name) for name in wanted if name is not None and name in self._remote
        }
        self._open: dict[str, tuple[Path, dict[str, HeaderTensor]]] = {}

    @property
    def name(self) -> str:
        return f"{self._repository}@{self._commit}"

    @property
    def fingerprint(self) -> str:
        return self._commit

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    def shards(self) -> Sequence[str]:
        return list(self._shards)

    def read_rows(self, tensor: str, index: int | None, row_start: int, row_stop: int) -> Rows:
        info = self._tensors[tensor]
        if tensor in self._joined.pairs:
            return read_pair(self._joined.pairs[tensor], info.shape, index, row_start, row_stop, self._read_bytes)
        dtype = float_dtype(tensor, info)
        path, header = self._fetch_shard(info.shard)
        shape = info.shape if index is None else info.shape[1:]
        columns = shape[1] if len(shape) == 2 else 1
        first = ((index or 0) * shape[0] + row_start) * columns
        count = (row_stop - row_start) * columns
        with explained(self._repository):
            raw = np.fromfile(path, dtype, count, offset=header[tensor].offset + first * dtype.itemsize)
        if raw.size != count:
            raise SourceError(f"{path}: {tensor}: expected {count} numbers, found {raw.size}.", AGAIN)
        values = to_float32(raw)
        return values.reshape(-1, columns) if len(shape) == 2 else values

    def read_columns(
        self, tensor: str, index: int | None, start: int, stop: int, height: int = 0
    ) -> npt.NDArray[np.float32]:
        info = self._tensors[tensor]
        path, header = self._fetch_shard(info.shard)
        raw, spans = column_spans(info, float_dtype(tensor, info), index, start, stop, height)
        with explained(self._repository), path.open("rb") as file:
            for offset, into in spans:
                file.seek(header[tensor].offset + offset)
                found = file.readinto(into)
                if found != len(into):
                    raise SourceError(f"{path}: {tensor}: expected {len(into)} bytes, found {found}.", AGAIN)
        return to_float32(raw).T

    def _read_bytes(self, tensor: str, start: int, count: int) -> npt.NDArray[np.uint8]:
        path, header = self._fetch_shard(self._listed[tensor].shard)
        with explained(self._repository):
            raw = np.fromfile(path, np.uint8, count, offset=header[tensor].offset + start)
        if raw.size != count:
            raise SourceError(f"{path}: {tensor}: expected {count} bytes, found {raw.size}.", AGAIN)
        return raw

    def release(self, shard: str) -> None:
        self._released.add(shard)
        for name in self._joined.may_go(self._released):
            self._open.pop(name, None)
            for path in (self._folder / name, self._partial(name)):
                path.unlink(missing_ok=True)

    def side_files(self) -> Mapping[str, bytes | Path]:
        return self._side_files

    def unlisted(self) -> Mapping[str, str]:
        return {name: shard for name, shard in self._unlisted.items() if name not in self._listed}

    def notices(self) -> Sequence[str]:
        notices = single_before_shards(self._remote)
        if "tokenizer.json" not in self._remote and vocabulary_name(self._remote) is None:
            notices.append(no_tokenizer(sorted(self._remote)))
        return notices

    def close(self) -> None:
        """Clean up, but keep the partial downloads that a later run can resume."""
        self._open.clear()
        if not any(path.name in self._shards or path.suffix == ".part" for path in self._folder.glob("*")):
            shutil.rmtree(self._folder, ignore_errors=True)

    def _model_info(self, revision: str | None) -> ModelInfo:
        try:
            return self._api.model_info(self._repository, revision=revision, files_metadata=True)
        except HFValidationError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise SourceError(
                f"{self._repository}: the server is not a model hub ({type(error).__name__}: {error!s:.200}).",
                "Check HF_ENDPOINT, and whether this network wants you to sign in first.",
            ) from error

    def _find_shards(self) -> dict[str, set[str] | None]:
        """Each shard with the tensors that the index lists for it; None if no index is used.

        A single file takes precedence over an index, as in transformers and in `FolderSource`.
        """
        if SINGLE_NAME in self._remote:
            return {SINGLE_NAME: None}
        if INDEX_NAME not in self._remote:
            if ranks := rank_shards(self.name, (name for name in self._remote if "/" not in name)):
                return dict.fromkeys(ranks)
            raise self._unreadable(SINGLE_NAME)
        weight_map = read_json_file(self._small_file(INDEX_NAME), "the index of the shards").get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise SourceError(f"{self.name}: {INDEX_NAME}: expected a weight_map of tensor names to file names.")
        shards: dict[str, set[str] | None] = {}
        for tensor, shard in weight_map.items():
            # Only a plain name of a file in the repository may become part of a local path.
            if shard not in self._remote or Path(shard).name != shard or Path(shard).suffix != ".safetensors":
                raise SourceError(
                    f"{self.name}: {INDEX_NAME} names {shard!r:.80}, which is not a file of the checkpoint."
                )
            wanted = shards.setdefault(shard, set())
            if wanted is not None:
                wanted.add(tensor)
        return dict(sorted(shards.items()))

    def _find_tensors(self) -> dict[str, TensorInfo]:
        with explained(self._repository), ThreadPoolExecutor(_HEADERS_AT_ONCE) as pool:
            headers = list(pool.map(self._remote_header, self._shards))
        tensors: dict[str, TensorInfo] = {}
        for (shard, wanted), header in zip(self._shards.items(), headers, strict=True):
            absent = (wanted or set()) - header.keys()
            if absent:
                raise SourceError(f"{self.name}: {shard}: expected the tensor {min(absent)}, as {INDEX_NAME} says.")
            for name, info in header.items():
                if wanted is None or name in wanted:
                    tensors[name] = info
                else:
                    self._unlisted[name] = shard
        return tensors

    def _remote_header(self, shard: str) -> dict[str, TensorInfo]:
        header = self._api.parse_safetensors_file_metadata(self._repository, shard, revision=self._commit)
        found = {name: TensorInfo(tuple(info.shape), info.dtype, shard) for name, info in header.tensors.items()}
        return found if self._shards[shard] else named_by_rank(shard, found)

    def _fetch_shard(self, shard: str) -> tuple[Path, dict[str, HeaderTensor]]:
        """The local path of a shard, downloaded if necessary, and its header."""
        if shard not in self._open:
            path = self._cached(shard) or (self._download_to_cache(shard) if self._keep else self._download(shard))
            header: dict[str, HeaderTensor] = dict(read_header(path, SourceError, AGAIN))
            header = header if self._shards[shard] else named_by_rank(shard, header)
            for name, info in self._listed.items():
                place = header.get(name)
                if info.shard == shard and (place is None or (place.shape, place.dtype) != (info.shape, info.dtype)):
                    raise SourceError(f"{shard}: {name}: the file differs from the header that the hub sent.", AGAIN)
            self._open[shard] = (path, header)
        return self._open[shard]

    def _cached(self, name: str) -> Path | None:
        """The file in the hub's own cache, from an earlier run with `keep` or from another program."""
        path = try_to_load_from_cache(self._repository, name, revision=self._commit)
        return Path(path) if isinstance(path, str) else None

    def _small_file(self, name: str) -> Path:
        size = self._remote[name].size
        if size is not None and size > _MAX_SMALL_FILE_BYTES:
            raise SourceError(f"{self.name}: {name}: expected at most {_MAX_SMALL_FILE_BYTES} bytes, found {size}.")
        into_cache = self._keep and size is not None  # the library's own download has no size limit
        return self._cached(name) or (self._download_to_cache(name) if into_cache else self._download(name))

    def _download_to_cache(self, name: str) -> Path:
        if self._downloading is not None:
            self._downloading(Download(name, 0, self._remote[name].size))
        with explained(f"{self._repository}: {name}", self._folder):
            path = Path(hf_hub_download(self._repository, name, revision=self._commit, endpoint=self._api.endpoint))
        self._check(name, path, path)
        return path

    def _partial(self, name: str) -> Path:
        return self._folder / f"{name}.part"

    def _download(self, name: str) -> Path:
        path, partial = self._folder / name, self._partial(name)
        if path.exists():
            return path
        with explained(f"{self._repository}: {name}", self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._check_space(name, partial)
            self._download_parts(name, partial)
            self._check(name, partial, partial)
            partial.replace(path)
        return path

    def _download_parts(self, name: str, partial: Path) -> None:
        """Download the rest of a file, with new connections as long as they deliver bytes."""
        expected = self._remote[name].size
        url = hf_hub_url(self._repository, name, revision=self._commit, endpoint=self._api.endpoint)
        failures = 0
        if expected is not None and _size(partial) > expected:
            partial.unlink()
        while True:
            before = _size(partial)
            try:
                with partial.open("ab") as file:
                    http_get(
                        url,
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
        listener, size = self._downloading, self._remote[name].size
        most = size if size is not None or name.endswith(".safetensors") else _MAX_SMALL_FILE_BYTES

        def report(done: int) -> None:
            if most is not None and done > most:
                raise SourceError(f"{name}: expected {most} bytes, the hub sends more.", AGAIN)
            if listener is not None:
                listener(Download(name, done, size))

        return cast(BinaryIO, _Watched(file, report))

    def _check_space(self, name: str, partial: Path) -> None:
        size = self._remote[name].size
        if size is None:
            return
        missing, free = size - _size(partial), shutil.disk_usage(self._folder).free
        if missing > free:
            raise SourceError(
                f"{name}: expected {missing} bytes of free disk under {self._folder}, found {free}.",
                "Free some space there, then run the same command again.",
            )

    def _check(self, name: str, path: Path, to_delete: Path) -> None:
        """Check a downloaded file against the size and SHA-256 that the hub gives; delete it if it is wrong."""
        remote = self._remote[name]
        size = path.stat().st_size
        if remote.size is not None and size != remote.size:
            to_delete.unlink()
            raise SourceError(f"{name}: expected {remote.size} bytes, the hub sent {size}.", AGAIN)
        if remote.sha256 is not None:
            with path.open("rb") as file:
                found = _sha256(file)
            if found != remote.sha256:
                to_delete.unlink()
                raise SourceError(f"{name}: expected the SHA-256 {remote.sha256}, found {found}.", AGAIN)

    def _unreadable(self, missing: str) -> SourceError:
        ggufs = sorted(name for name in self._remote if name.endswith(".gguf"))
        if ggufs:
            hint = f"It has GGUF files: download one, such as {ggufs[0]}, and give its path."
        elif any(name.endswith((".bin", ".pth", ".pt")) for name in self._remote):
            hint = "Its weights are pickles, which can run code and are not read; choose a checkpoint in safetensors."
        else:
            hint = "Give the id of a language model's checkpoint."
        return SourceError(f"{self._repository}: expected {missing} in it, found none.", hint)


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


def _downloads_folder() -> Path:
    folder = cache_folder()
    if folder is None:
        raise SourceError(
            "There is no folder for downloads: this user has no home folder, or keeping files is switched off.",
            f"Set {CACHE_VARIABLE} to a folder of yours.",
        )
    return folder / "downloads"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
