"""Collects a store's side files: those of a checkpoint at conversion, and those given to `edgemoe update`."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from edgemoe.architectures import model_spec
from edgemoe.conversion.folder_contents import refuse_lfs_pointer
from edgemoe.conversion.opening import open_source
from edgemoe.conversion.progress import DownloadCallback
from edgemoe.conversion.source import Source
from edgemoe.conversion.tokenizers.files import TOKENIZER_NAME, VOCABULARY_NAMES, vocabulary_name, with_tokenizer
from edgemoe.errors import SourceError, UsageError
from edgemoe.model.description import store_spec
from edgemoe.store.headers import parse_json
from edgemoe.store.reader import Store
from edgemoe.store.side_files import SIDE_FILE_LIMIT_BYTES, SIDE_FILES

CONFIG_NAME = "config.json"


@dataclass(frozen=True)
class SideFileSet:
    """Side files with their contents, and the name of what they were taken from."""

    origin: str
    files: Mapping[str, bytes]


def side_files_of(source: Source, vocab_size: int) -> dict[str, bytes]:
    """The side files of a checkpoint as the store of a model of `vocab_size` tokens has them. Raises SourceError."""
    made = {CONFIG_NAME: json.dumps(dict(source.config), indent=2).encode() + b"\n"}  # for a source without the file
    return made | with_tokenizer(_contents(source.side_files()), vocab_size)


def find_side_files(
    store: Store, text: str | None = None, *, downloading: DownloadCallback | None = None
) -> SideFileSet:
    """All side files that a store is to have.

    Without `text` they are those that lie in the store's folder now. It names a checkpoint as in `open_source`, whose
    side files take the place of all others; or a folder that has some of them and no config.json, or one such file,
    which take the place of those of the same name. What a tokenizer.json is made from counts as one. No weights are
    needed. Raises SourceError and UsageError.
    """
    vocab_size = store_spec(store).vocab_size
    listed = (file.name for file in store.manifest.side_files)  # another version's store may have files of other names
    here = _files_in(store.path, {*SIDE_FILES, *listed})
    if text is None:
        return SideFileSet("the store's folder", _contents(here))
    path = Path(os.path.expanduser(text))  # noqa: PTH111 (it leaves an unknown ~user as it is)
    if path.is_dir():
        given = _files_in(path, (*SIDE_FILES, *VOCABULARY_NAMES))
    elif path.is_file() and (path.suffix in (".json", ".jinja") or path.name in VOCABULARY_NAMES):
        known = (*SIDE_FILES, *VOCABULARY_NAMES)
        if path.name not in known:
            raise UsageError(
                f"{path}: expected a checkpoint, or a side file, which is called {', '.join(known)}.",
                "Give the file the name that it has in a checkpoint.",
            )
        given = {path.name: path}
    else:
        given = {}
    if given:
        others = {} if CONFIG_NAME in given and path.is_dir() else here
        if vocabulary_name(given) is not None:  # the tokenizer that is made of it takes the old one's place
            others = {name: file for name, file in others.items() if name != TOKENIZER_NAME}
        return SideFileSet(path.resolve().name, with_tokenizer(_contents({**others, **given}), vocab_size))
    with (
        tempfile.TemporaryDirectory(prefix="edgemoe-update-") as downloads,
        closing(open_source(text, downloads=Path(downloads), downloading=downloading)) as source,
    ):
        return SideFileSet(source.name, side_files_of(source, vocab_size))


def require_same_model(store: Store, files: Mapping[str, bytes]) -> None:
    """Raises SourceError if a config.json describes another model than the store's weights."""
    if CONFIG_NAME not in files or _is_listed(store, files[CONFIG_NAME]):
        return
    try:
        config = parse_json(files[CONFIG_NAME])
    except ValueError as problem:
        raise SourceError(f"{CONFIG_NAME}: expected JSON, found something else ({problem}).") from None
    found, expected = model_spec(config).to_json(), store_spec(store).to_json()
    different = [key for key in expected if found.get(key) != expected[key]]
    if different:
        raise SourceError(
            f"{CONFIG_NAME}: describes another model than that of the store: its {different[0]} differs.",
            "Use the side files of the checkpoint that the store was made from, or convert this one.",
        )


def _is_listed(store: Store, config: bytes) -> bool:
    """Whether a config.json is the one that the manifest names, which an older edgemoe may have read otherwise."""
    digest = hashlib.sha256(config).hexdigest()
    return any(entry.name == CONFIG_NAME and entry.sha256 == digest for entry in store.manifest.side_files)


def _files_in(folder: Path, names: Iterable[str]) -> dict[str, bytes | Path]:
    return {name: folder / name for name in names if (folder / name).exists()}


def _contents(files: Mapping[str, bytes | Path]) -> dict[str, bytes]:
    """Read the contents of files. Raises SourceError for an implausibly large one."""
    return {name: content if isinstance(content, bytes) else _read(name, content) for name, content in files.items()}


def _read(name: str, path: Path) -> bytes:
    try:
        if not path.is_file():  # opening a pipe would block until a process writes to it
            raise SourceError(f"{path}: expected a file, found something else.", "Remove it, or put a file there.")
        refuse_lfs_pointer(path)
        with path.open("rb") as file:
            content = file.read(SIDE_FILE_LIMIT_BYTES + 1)
    except OSError as problem:
        raise SourceError(f"{name}: cannot be read ({problem.strerror}).", "Check its permissions.") from None
    if len(content) > SIDE_FILE_LIMIT_BYTES:
        raise SourceError(
            f"{name}: expected at most {SIDE_FILE_LIMIT_BYTES / 1e6:.1f} MB, found more.",
            "Is it a file of this model? Download the checkpoint again.",
        )
    return content
