"""Opens what a person names as a model: a store, or a GGUF file as it is."""

from __future__ import annotations

import os
from pathlib import Path

from edgemoe.conversion.hub.cached_gguf import find_cached
from edgemoe.conversion.hub.id import HubId
from edgemoe.errors import StoreError
from edgemoe.session.default_model import find_model
from edgemoe.store.first_bytes import is_gguf_file
from edgemoe.store.reader import Store


def find_runnable(model: str | os.PathLike[str] | None = None) -> Path:
    """The GGUF file that a text names, else the folder of a store as `find_model` finds it; None: the bundled model.

    A hub id names a GGUF file too, which is downloaded to the hub's cache unless it is there. Raises as `find_model`,
    StoreError for a GGUF file that is not there, or is no file, and SourceError for what the hub does not have.
    """
    if model is not None and os.fspath(model):
        hub_id = HubId.of_model(model) if isinstance(model, str) else None
        if hub_id is not None:
            return find_cached(hub_id) or _pulled(hub_id)
        path = Path(os.path.expanduser(model))  # noqa: PTH111 (it leaves an unknown ~user as it is)
        if is_gguf_file(path):
            return path
        if path.suffix.lower() == ".gguf" and not path.is_dir():
            found = "a link to one that is missing" if path.is_symlink() else "something else"
            raise StoreError(
                f"{path}: expected a GGUF file, found {found if os.path.lexists(path) else 'nothing there'}.",
                "Check the spelling of its name, or give the folder of a store.",
            )
    return find_model(model)


def _pulled(hub_id: HubId) -> Path:
    from edgemoe.conversion.hub.pull import pull  # only a download needs the hub's library

    return pull(hub_id, to_run=True).path


def open_store(model: str | os.PathLike[str] | None = None) -> Store:
    """Open the model that a text names, to be run. Raises StoreError, and SourceError for a GGUF file."""
    path = find_runnable(model)
    if path.is_dir():
        return Store.open(path)
    from edgemoe.conversion.gguf_store import GgufStore  # only a GGUF file needs the converters

    return GgufStore.open_file(path)
