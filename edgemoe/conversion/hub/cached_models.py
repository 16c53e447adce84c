"""Lists the models in the Hugging Face cache on this machine, and removes them."""

from __future__ import annotations

import json
import logging
import os
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from huggingface_hub import CachedFileInfo, CachedRepoInfo, DeleteCacheStrategy, HFCacheInfo, scan_cache_dir
from huggingface_hub.errors import CacheNotFound
from huggingface_hub.utils.logging import get_verbosity, set_verbosity

from edgemoe.conversion.folder_contents import CONFIG_NAME, INDEX_NAME, SINGLE_NAME
from edgemoe.conversion.hub.folder import hub_cache_folder, repository_folder, unfinished_downloads
from edgemoe.conversion.hub.gguf_names import GgufModel, best_matches, gguf_models, list_models
from edgemoe.conversion.hub.id import HubId
from edgemoe.errors import SourceError, UsageError

_MAX_JSON_BYTES = 1 << 26
_MAX_NAME_BYTES = 256
_STRING = 8
"""The type of a text among the values of a GGUF file's metadata."""
_PERMISSIONS = "Check the permissions of the folder."


@dataclass(frozen=True)
class CachedModel:
    """A GGUF model, or a checkpoint, in the cache."""

    hub_id: HubId
    """With a quantisation, which a GGUF model alone has."""
    architecture: str | None
    """The family as its config or metadata calls it; None if that cannot be read."""
    files: int
    bytes: int
    """Bytes on this disk, those of an unfinished download too."""
    whole: bool
    """Whether all of it is there."""
    used_s: float
    """When its files were last read or written, in seconds since 1970, as far as the file system notes it."""

    @property
    def is_gguf(self) -> bool:
        """Whether it runs as it is; a checkpoint is to be converted."""
        return self.hub_id.quantisation is not None

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON."""
        return {
            "id": str(self.hub_id),
            "kind": "gguf" if self.is_gguf else "checkpoint",
            "architecture": self.architecture,
            "files": self.files,
            "bytes": self.bytes,
            "whole": self.whole,
            "used": datetime.fromtimestamp(self.used_s, timezone.utc).isoformat(timespec="seconds"),
        }


@dataclass(frozen=True)
class CacheContents:
    """The models in the cache, in the order of their names, and what in it could not be read."""

    folder: Path | None
    models: tuple[CachedModel, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Removal:
    """Files that are to be removed."""

    hub_id: HubId
    folder: Path
    """The repository's folder in the cache."""
    files: int
    bytes: int
    """Bytes on the disk that it frees."""
    strategy: DeleteCacheStrategy
    """Removes all but the unfinished downloads, by the library."""
    partials: tuple[Path, ...]
    """Unfinished downloads, which the library does not know."""

    def execute(self) -> None:
        """Remove them. Raises SourceError if some of them stay."""
        verbosity = get_verbosity()
        set_verbosity(logging.ERROR)  # the library logs what stays, with a traceback, and goes on
        try:
            self.strategy.execute()
        finally:
            set_verbosity(verbosity)
        for path in self.partials:
            path.unlink(missing_ok=True)
        for path in (*self.strategy.repos, *self.strategy.snapshots, *self.strategy.blobs):
            if os.path.lexists(path):
                raise SourceError(f"{path}: could not be removed.", _PERMISSIONS)


def cached_models() -> CacheContents:
    """All GGUF models and checkpoints in the cache. What else lies there, such as data sets, is left out."""
    cache = hub_cache_folder()
    info = _scan(cache)
    if info is None:
        return CacheContents(cache, ())
    models = [model for repository in _repositories(info) for model in repository.models()]
    models.sort(key=lambda model: str(model.hub_id).lower())
    return CacheContents(cache, tuple(models), tuple(str(warning) for warning in info.warnings))


def plan_removal(hub_id: HubId) -> Removal:
    """The files that go with a hub id: those of one GGUF model by its quantisation, else all of the repository.

    Raises SourceError, which says what there is, and UsageError for a revision.
    """
    if hub_id.revision is not None:
        raise UsageError(f"{hub_id}: expected an id without a revision.", "All revisions of it are removed together.")
    cache = hub_cache_folder()
    info = _scan(cache)
    found = [one for one in _repositories(info) if one.id == hub_id.repository] if info is not None else []
    if cache is None or info is None or not found:
        raise _not_there(cache, hub_id)
    (repository,) = found
    names = repository.names
    if hub_id.quantisation is not None:
        names = set(repository.find(hub_id).files)
    rest = repository.names - names
    if not gguf_models(rest) and not any(name.endswith(".safetensors") for name in rest):
        names = repository.names
        strategy = info.delete_revisions(*(revision.commit_hash for revision in repository.info.revisions))
    else:
        entries, blobs = repository.entries(names), repository.blobs(names)
        strategy = replace(info.delete_revisions(), snapshots=frozenset(entries), blobs=frozenset(blobs))
    partials = repository.partials(names)
    return Removal(
        hub_id, repository.info.repo_path, len(names), repository.bytes(names), strategy, tuple(sorted(partials))
    )


class _Repository:
    """A repository in the cache: the files of each snapshot, and unfinished downloads."""

    def __init__(self, info: CachedRepoInfo) -> None:
        self.info, self.id = info, info.repo_id
        self._snapshots: list[dict[str, CachedFileInfo]] = [
            {file.file_path.relative_to(revision.snapshot_path).as_posix(): file for file in revision.files}
            for revision in info.revisions
        ]
        self._partials = unfinished_downloads(info.repo_path)
        self.names = {name for snapshot in self._snapshots for name in snapshot} | {*self._partials.values()}

    def models(self) -> list[CachedModel]:
        """GGUF models, and the checkpoint of safetensors files, if there is one."""
        found = [self._gguf(model) for model in gguf_models(self.names)]
        shards = {name for name in self.names if name.endswith(".safetensors")}
        return [*found, self._checkpoint(shards)] if shards else found

    def find(self, hub_id: HubId) -> GgufModel:
        """The GGUF model that a hub id names. Raises SourceError, which says what there is."""
        assert hub_id.quantisation is not None
        models = gguf_models(self.names)
        chosen = best_matches(models, hub_id.quantisation)
        if len(chosen) == 1:
            return chosen[0]
        sizes = {name: self.bytes({name}) for name in self.names}
        there = list_models(chosen or models, sizes, whole=bool(chosen))
        raise SourceError(
            f"{hub_id}: expected one GGUF model in the Hugging Face cache, found {len(chosen) or 'none'} of that name.",
            f"There are {there}." if there else "edgemoe list shows what is there.",
        )

    def bytes(self, names: Collection[str]) -> int:
        """Bytes on the disk of files with these names, those of unfinished downloads too."""
        return sum(path.stat().st_size for path in self.blobs(names) | self.partials(names))

    def entries(self, names: Collection[str]) -> set[Path]:
        """The entries of snapshots with these names, which are links to contents."""
        return {file.file_path for snapshot in self._snapshots for name, file in snapshot.items() if name in names}

    def blobs(self, names: Collection[str]) -> set[Path]:
        """The contents of files with these names that no other file has."""
        files = [(name, file.blob_path) for snapshot in self._snapshots for name, file in snapshot.items()]
        return {blob for name, blob in files if name in names} - {blob for name, blob in files if name not in names}

    def partials(self, names: Collection[str]) -> set[Path]:
        """Unfinished downloads of files with these names."""
        return {path for path, name in self._partials.items() if name in names}

    def _gguf(self, model: GgufModel) -> CachedModel:
        entries = [snapshot[model.files[0]] for snapshot in self._snapshots if model.files[0] in snapshot]
        whole = not model.missing and any(snapshot.keys() >= set(model.files) for snapshot in self._snapshots)
        architecture = _gguf_architecture(entries[0].blob_path) if entries else None
        return self._model(HubId(self.id, None, model.quantisation), architecture, model.files, whole)

    def _checkpoint(self, shards: Collection[str]) -> CachedModel:
        configs = [snapshot[CONFIG_NAME] for snapshot in self._snapshots if CONFIG_NAME in snapshot]
        architecture = _read_json(configs[0].blob_path).get("model_type") if configs else None
        whole = any(self._has_checkpoint(snapshot) for snapshot in self._snapshots)
        return self._model(HubId(self.id), architecture if isinstance(architecture, str) else None, shards, whole)

    @staticmethod
    def _has_checkpoint(snapshot: dict[str, CachedFileInfo]) -> bool:
        if CONFIG_NAME not in snapshot:
            return False
        if SINGLE_NAME in snapshot or INDEX_NAME not in snapshot:
            return any(name.endswith(".safetensors") for name in snapshot)
        weight_map = _read_json(snapshot[INDEX_NAME].blob_path).get("weight_map")
        return isinstance(weight_map, dict) and snapshot.keys() >= {*map(str, weight_map.values())}

    def _model(self, hub_id: HubId, architecture: str | None, names: Collection[str], whole: bool) -> CachedModel:
        status = [path.stat() for path in self.blobs(names) | self.partials(names)]
        used_s = max((max(one.st_atime, one.st_mtime) for one in status), default=0.0)
        return CachedModel(hub_id, architecture, len(names), sum(one.st_size for one in status), whole, used_s)


def _scan(cache: Path | None) -> HFCacheInfo | None:
    """The library's view of the cache; None where there is none. Raises SourceError."""
    if cache is None:
        return None
    try:
        return scan_cache_dir(cache)
    except CacheNotFound:
        return None
    except (OSError, ValueError) as error:
        raise SourceError(f"{cache}: the Hugging Face cache cannot be read ({error}).", _PERMISSIONS) from error


def _repositories(info: HFCacheInfo) -> Iterable[_Repository]:
    return (_Repository(repository) for repository in info.repos if repository.repo_type == "model")


def _not_there(cache: Path | None, hub_id: HubId) -> SourceError:
    folder = None if cache is None else repository_folder(cache, hub_id.repository)
    if folder is not None and folder.is_dir():
        return SourceError(f"{folder}: expected a repository of the cache, found a damaged one.", "Remove the folder.")
    return SourceError(
        f"{hub_id}: expected a model in the Hugging Face cache ({cache or 'there is none'}), found none of that name.",
        "edgemoe list shows what is there.",
    )


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file of the cache; empty where there is none."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _gguf_architecture(path: Path) -> str | None:
    """The architecture that a GGUF file's metadata begins with; None where it begins otherwise."""
    try:
        with open(path, "rb", opener=_unnoticed) as file:
            if file.read(24)[:4] != b"GGUF" or _read_string(file) != "general.architecture":
                return None
            return _read_string(file) if file.read(4) == struct.pack("<I", _STRING) else None
    except (OSError, ValueError, struct.error):
        return None


def _unnoticed(path: str, flags: int) -> int:
    """Open a file so that reading it is no use of it, where the system allows that."""
    try:
        return os.open(path, flags | getattr(os, "O_NOATIME", 0))
    except PermissionError:  # another user's
        return os.open(path, flags)


def _read_string(file: Any) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    return str(file.read(min(length, _MAX_NAME_BYTES)).decode())
