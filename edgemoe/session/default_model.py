"""Finds models: a path, a name under a models folder, or the bundled model when neither is given."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from edgemoe.errors import StoreError, UsageError
from edgemoe.store.first_bytes import is_gguf_file

DEFAULT_MODEL = "smollm2-135m-moe"
MODELS_VARIABLE = "EDGEMOE_MODELS"
MANIFEST = "edgemoe.json"
STORE_FOLDER = "store"
"""A model under a models folder is a store, or a folder with its store in it (and its recipe beside that)."""


def models_folders() -> list[Path]:
    """Folders that may hold models: those of EDGEMOE_MODELS, the installed package's, the checkout's."""
    given = [Path(entry) for entry in os.environ.get(MODELS_VARIABLE, "").split(os.pathsep) if entry]
    # the package's folders (an editable install has two) without an import of it, which would point upwards
    installed = [Path(folder) / "models" for folder in sys.modules["edgemoe"].__path__]
    checkout = Path(__file__).resolve().parents[2] / "models"
    return [*given, *installed, checkout]


def find_model(path: str | os.PathLike[str] | None = None) -> Path:
    """The folder of a store, given as a path or as the name of a model; the bundled one for None.

    Raises StoreError with the way out where there is none (a checkpoint is to be converted first), UsageError for "".
    """
    if path is None:
        return _named(DEFAULT_MODEL) or _missing_default()
    text = os.fspath(path)
    if not text:
        raise UsageError("the name of the model is empty.", "Give the folder of a store, or leave it out.")
    folder = Path(os.path.expanduser(text))  # noqa: PTH111 (it leaves an unknown ~user as it is)
    for store in (folder, folder / STORE_FOLDER):
        if (store / MANIFEST).is_file():
            return store
    if not folder.exists():
        if os.sep not in text and (named := _named(text)):
            return named
        looks_like_hub_id = text.count("/") == 1 and not text.startswith((".", "/", "~"))
        raise StoreError(
            f"{text}: there is no such folder or model.",
            f"For a model of the hub, convert it first: edgemoe convert {text} DEST."
            if looks_like_hub_id
            else "Give the folder of a store; edgemoe convert makes one, edgemoe info names the bundled model.",
        )
    found, source = _describe(folder)
    if source is None:
        way_out = "Give the folder of a store; edgemoe convert makes one."
    elif folder.is_dir() and is_gguf_file(source):
        way_out = f"Give the file {source} to run it, or convert it first: edgemoe convert {source} DEST."
    else:
        way_out = f"Convert it first: edgemoe convert {source} DEST."
    raise StoreError(f"{text}: expected a store (a folder with {MANIFEST}), found {found}.", way_out)


def model_name(folder: Path) -> str:
    """The name of a store: that of its folder, or of the model's folder that contains it; of a GGUF file its own."""
    if folder.suffix.lower() == ".gguf":  # perhaps a link, as in the hub's cache, to a file that is called otherwise
        return folder.stem
    resolved = folder.resolve()
    if resolved.suffix.lower() == ".gguf":
        return resolved.stem
    return resolved.parent.name if resolved.name == STORE_FOLDER else resolved.name


def _named(name: str) -> Path | None:
    for folder in models_folders():
        for store in (folder / name, folder / name / STORE_FOLDER):
            if (store / MANIFEST).is_file():
                return store
    return None


def _missing_default() -> Path:
    raise StoreError(
        f"the bundled model ({DEFAULT_MODEL}) is not here: looked in {', '.join(map(str, models_folders()))}.",
        f"Name another model, or set {MODELS_VARIABLE} to the folder that holds it.",
    )


def _describe(path: Path) -> tuple[str, Path | None]:
    """Names in words what lies there, and how it can be converted."""
    if path.is_file():
        return ("a GGUF file", path) if is_gguf_file(path) else ("something else", None)
    if (path / "config.json").is_file():
        return "a checkpoint", path
    if (path / "snapshots").is_dir():
        return "a repository of the hub's cache", path
    ggufs = sorted(path.glob("*.gguf"))
    return (f"GGUF: {ggufs[0].name}", ggufs[0]) if ggufs else ("something else", None)
