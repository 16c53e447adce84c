"""Opens the source that a text names: a folder, a GGUF file, or a hub id."""

from __future__ import annotations

import os
from pathlib import Path

from edgemoe.conversion.hub.id import HubId
from edgemoe.conversion.progress import DownloadCallback
from edgemoe.conversion.showing import shown
from edgemoe.conversion.source import Source
from edgemoe.errors import SourceError
from edgemoe.store.first_bytes import is_gguf_file


def open_source(
    text: str,
    *,
    downloads: Path | None = None,
    keep: bool = False,
    downloading: DownloadCallback | None = None,
    side_files: bool = True,
) -> Source:
    """The source that `text` names: a folder, a GGUF file, or a hub id `owner/name[@revision][:QUANT]`.

    A path that exists on this machine is never looked up on the hub, and a GGUF file may have any name. `downloads` is
    the folder in which a hub source keeps partial downloads across runs; with `keep` shards stay in the hub's own cache
    instead; `downloading` is called with the progress of each file; without `side_files` a hub source does not download
    the tokenizer's files. Raises SourceError if the source does not exist or is damaged.
    """
    # os.path rather than Path: its tests return False, and raise nothing, for a text that is not a valid path.
    path = Path(os.path.expanduser(text))  # noqa: PTH111
    if text and os.path.isdir(path):  # noqa: PTH112
        from edgemoe.conversion.folder import FolderSource

        return shown(FolderSource(path))
    if is_gguf_file(path):
        from edgemoe.conversion.gguf.source import GgufSource

        return GgufSource(path)
    if text and os.path.lexists(path):
        raise _not_a_source(text, path)
    hub_id = HubId.parse(text)
    if hub_id is not None:
        from edgemoe.conversion.hub.opening import open_hub

        return shown(open_hub(hub_id, downloads=downloads, keep=keep, downloading=downloading, side_files=side_files))
    raise SourceError(
        f"{text!r}: no such folder or file, and not a hub id (owner/name) either.",
        "Check the spelling of the source.",
    )


def _not_a_source(text: str, path: Path) -> SourceError:
    """The error for an existing path that is neither a folder nor a GGUF file."""
    if not path.exists():
        return SourceError(
            f"{text}: is a link to {path.readlink()}, which does not exist.", "Put the file back, or repair the link."
        )
    if path.is_file() and not os.access(path, os.R_OK):
        return SourceError(f"{text}: cannot be read.", "Check the permissions of the file.")
    if (
        path.name in ("config.json", "adapter_config.json")
        or path.suffix == ".safetensors"
        or ".safetensors." in path.name
    ):
        return SourceError(
            f"{text}: expected a folder, a GGUF file or a hub id, found one file of a checkpoint.",
            f"Give the folder that holds config.json and the weights: {path.absolute().parent}",
        )
    return SourceError(
        f"{text}: expected a folder, a GGUF file or a hub id, found a file of another kind.",
        "Give the folder that holds config.json and the .safetensors files.",
    )
