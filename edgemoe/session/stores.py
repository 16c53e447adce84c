"""Opens what a person names as a model: a store, or a GGUF file as it is."""

from __future__ import annotations

import os
from pathlib import Path

from edgemoe.errors import StoreError
from edgemoe.session.default_model import find_model
from edgemoe.store.first_bytes import is_gguf_file
from edgemoe.store.reader import Store


def find_runnable(model: str | os.PathLike[str] | None = None) -> Path:
    """The GGUF file that a text names, else the folder of a store as `find_model` finds it; None: the bundled model.

    Raises as `find_model`, and StoreError for a GGUF file that is not there, or is no file.
    """
    if model is not None and os.fspath(model):
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


def open_store(model: str | os.PathLike[str] | None = None) -> Store:
    """Open the model that a text names, to be run. Raises StoreError, and SourceError for a GGUF file."""
    path = find_runnable(model)
    if path.is_dir():
        return Store.open(path)
    from edgemoe.conversion.gguf_store import GgufStore  # only a GGUF file needs the converters

    return GgufStore.open_file(path)
