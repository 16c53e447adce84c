"""Opens a hub id: at the hub, or from the hub's cache on this machine if the hub is unreachable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from edgemoe.conversion.folder import FolderSource
from edgemoe.conversion.folder_contents import CONFIG_NAME, checkpoint_folder
from edgemoe.conversion.gguf.source import GgufSource
from edgemoe.conversion.hub.cached_gguf import find_cached_offline
from edgemoe.conversion.hub.errors import HubUnreachableError
from edgemoe.conversion.hub.folder import hub_cache_folder, repository_folder
from edgemoe.conversion.hub.gguf import HubGgufSource
from edgemoe.conversion.hub.gguf_names import choose_model, is_gguf_repository
from edgemoe.conversion.hub.id import HubId
from edgemoe.conversion.hub.repository import HubRepository
from edgemoe.conversion.hub.source import HubSource
from edgemoe.conversion.progress import DownloadCallback
from edgemoe.conversion.safetensors_rows import BytesSource
from edgemoe.errors import SourceError


def open_hub(
    hub_id: HubId,
    *,
    downloads: Path | None = None,
    keep: bool = False,
    downloading: DownloadCallback | None = None,
    side_files: bool = True,
) -> BytesSource | GgufSource:
    """Open what a hub id names from the hub or, if the hub is unreachable, from its cache on this machine.

    That is a checkpoint, or a GGUF model where a quantisation is named or the repository has no other weights. The
    cache must hold it whole. The arguments are those of `HubRepository` and `HubSource`. Raises SourceError.
    """
    try:
        repository = HubRepository(hub_id, downloads=downloads, keep=keep, downloading=downloading)
        return open_repository(repository, side_files=side_files)
    except HubUnreachableError as problem:
        return open_cached(hub_id, problem)


def open_repository(repository: HubRepository, *, side_files: bool = True) -> HubSource | HubGgufSource:
    """Open what the id of a repository names. Raises SourceError."""
    hub_id = repository.id
    if hub_id.quantisation is None and not is_gguf_repository(repository.files):
        return HubSource(repository, side_files=side_files)
    sizes = {name: file.size for name, file in repository.files.items()}
    return HubGgufSource(repository, choose_model(hub_id, sizes, hub_id.quantisation))


def open_cached(hub_id: HubId, problem: HubUnreachableError) -> CachedSource | CachedGgufSource:
    """Open what a hub id names from the hub's cache, since the hub has the problem. Raises SourceError."""
    try:
        file = find_cached_offline(hub_id)
        if file is not None:
            return CachedGgufSource(hub_id, file)
        snapshot = None if hub_id.quantisation is not None else _cached_snapshot(hub_id)
        if snapshot is not None:
            return CachedSource(hub_id, snapshot)
        found = "The Hugging Face cache on this machine does not have it, and there is no folder of that name."
    except SourceError as missing:
        found = f"The copy in the Hugging Face cache on this machine is unusable: {missing.message}"
    raise SourceError(f"{problem.message} {found}", problem.hint) from problem


def _cached_snapshot(hub_id: HubId) -> Path | None:
    """The folder in the hub's cache with the files of a hub id at its revision; None where there is none.

    Without a revision it is that of the main branch, or the only one: `keep` records no branch. Raises SourceError.
    """
    cache = hub_cache_folder()
    if cache is None:
        return None
    try:
        config = try_to_load_from_cache(hub_id.repository, CONFIG_NAME, cache_dir=cache, revision=hub_id.revision)
    except (HFValidationError, OSError, ValueError):
        return None
    if isinstance(config, str):
        return Path(config).parent
    if hub_id.revision:
        return None
    folder = repository_folder(cache, hub_id.repository)
    snapshot = checkpoint_folder(folder)
    return None if snapshot == folder else snapshot


class CachedSource(FolderSource):
    """A checkpoint of the hub in the hub's own cache, read without contacting the hub.

    Its fingerprint covers its files, not the commit: the cache may lack small files that the hub has.
    """

    def __init__(self, hub_id: HubId, snapshot: Path) -> None:
        super().__init__(snapshot)
        self.name = f"{hub_id.repository}@{snapshot.name}"
        self.path = snapshot

    def notices(self) -> Sequence[str]:
        return [_unreachable(self.name), *super().notices()]


class CachedGgufSource(GgufSource):
    """A GGUF model of the hub in the hub's own cache, read without contacting the hub."""

    def __init__(self, hub_id: HubId, path: Path) -> None:
        super().__init__(path)
        self.hub_id, self.path = hub_id, path

    def notices(self) -> Sequence[str]:
        return [_unreachable(str(self.hub_id)), *super().notices()]


def _unreachable(name: str) -> str:
    return f"The hub cannot be reached: {name} is read from the Hugging Face cache on this machine."
