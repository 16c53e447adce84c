"""Opens a hub id: at the hub, or from the hub's cache on this machine if the hub is unreachable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import huggingface_hub.constants
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from edgemoe.conversion import hub
from edgemoe.conversion.folder import FolderSource
from edgemoe.conversion.folder_contents import CONFIG_NAME, checkpoint_folder
from edgemoe.conversion.hub_errors import HubUnreachableError
from edgemoe.conversion.progress import DownloadCallback
from edgemoe.conversion.source import Source
from edgemoe.errors import SourceError


def open_hub(
    text: str,
    *,
    downloads: Path | None = None,
    keep: bool = False,
    downloading: DownloadCallback | None = None,
    side_files: bool = True,
) -> Source:
    """Open the checkpoint of a hub id from the hub or, if the hub is unreachable, from its cache on this machine.

    The cache must hold the whole checkpoint. The arguments are those of `HubSource`. Raises SourceError.
    """
    try:
        return hub.HubSource(text, downloads=downloads, keep=keep, downloading=downloading, side_files=side_files)
    except HubUnreachableError as problem:
        try:
            snapshot = _cached_snapshot(text)
            if snapshot is not None:
                return CachedSource(text, snapshot)
            found = "The Hugging Face cache on this machine does not have it."
        except SourceError as missing:
            found = f"The copy in the Hugging Face cache on this machine is unusable: {missing.message}"
        raise SourceError(f"{problem.message} {found}", problem.hint) from problem


def _cached_snapshot(text: str) -> Path | None:
    """The folder in the hub's cache with the files of a hub id at its revision; None where there is none.

    Without a revision it is that of the main branch, or the only one: `keep` records no branch. Raises SourceError.
    """
    repository, _, revision = text.partition("@")
    try:
        config = try_to_load_from_cache(repository, CONFIG_NAME, revision=revision or None)
    except (HFValidationError, OSError, ValueError):
        return None
    if isinstance(config, str):
        return Path(config).parent
    if revision:
        return None
    folder = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    snapshot = checkpoint_folder(folder)
    return None if snapshot == folder else snapshot


class CachedSource(FolderSource):
    """A checkpoint of the hub in the hub's own cache, read without contacting the hub.

    Its fingerprint covers its files, not the commit: the cache may lack small files that the hub has.
    """

    def __init__(self, text: str, snapshot: Path) -> None:
        super().__init__(snapshot)
        self.name = f"{text.partition('@')[0]}@{snapshot.name}"

    def notices(self) -> Sequence[str]:
        return [
            f"The hub cannot be reached: {self.name} is read from the Hugging Face cache on this machine.",
            *super().notices(),
        ]
