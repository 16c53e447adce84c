"""The place where a conversion makes its store: what may stand there before, and how the store comes to be there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgemoe.conversion.journal import JOURNAL_NAME
from edgemoe.errors import EdgemoeError, StoreError, UsageError
from edgemoe.paths import expanded
from edgemoe.store.manifest import MANIFEST_NAME
from edgemoe.store.reader import Store
from edgemoe.store.side_files import check_side_files
from edgemoe.store.writer import sync_folder

STORE_FOLDER = "store"
DOWNLOADS_FOLDER = "downloads"


def target_path(destination: str | os.PathLike[str]) -> Path:
    """The destination as an absolute path with a name of its own."""
    text = os.fspath(destination)
    found = expanded(text)
    if found is None and text:
        raise UsageError(
            f"{text}: expected a folder to make, found no home folder that {Path(text).parts[0]} stands for.",
            f"Give the path without it; for a folder of that name, ./{text}.",
        )
    path = (found or Path()).absolute()
    if not text or "\0" in text or path.name in ("", ".."):
        raise UsageError(f"{text!r}: expected a folder to make.", "Give it a name, such as ./my-model.")
    return path


def existing_store(target: Path) -> Store | None:
    """The store that stands at the destination already; None where the place is free."""
    if not target.exists() and not target.is_symlink():
        return None
    if target.is_dir() and not any(target.iterdir()):
        return None
    way_out = "Give another destination, or remove it first."
    if not (target / MANIFEST_NAME).is_file():
        raise UsageError(f"{target}: exists, and is not a store.", way_out)
    try:
        store = Store.open(target)
    except StoreError as problem:
        raise UsageError(f"{target}: exists, and is a damaged store ({problem.message})", way_out) from None
    try:
        check_side_files(store)
    except StoreError as problem:
        raise UsageError(f"{target}: exists, and was altered ({problem.message})", problem.hint) from None
    return store


def refuse_foreign(partial: Path) -> None:
    """Raises UsageError if the folder for unfinished work holds files that a conversion does not make."""
    if not partial.exists() and not partial.is_symlink():
        return
    ours = {JOURNAL_NAME, STORE_FOLDER, DOWNLOADS_FOLDER}
    names = {path.name for path in partial.iterdir()} if partial.is_dir() else {partial.name}
    if names - ours:
        raise UsageError(
            f"{partial}: expected an unfinished conversion there, found {sorted(names - ours)[0]}.",
            "Move it away, or give another destination.",
        )


def publish(partial: Path, target: Path) -> None:
    """Rename the finished store to `target`, atomically and durably."""
    if target.is_dir():
        target.rmdir()  # an empty folder; if it has been filled meanwhile it stays, and this raises
    (partial / STORE_FOLDER).rename(target)
    sync_folder(target.parent)


def remove_partial(partial: Path) -> None:
    """Remove the remains of an ended conversion. The journal's lock is held, so no other conversion uses them."""
    for name in (STORE_FOLDER, DOWNLOADS_FOLDER):
        if (partial / name).exists():
            shutil.rmtree(partial / name)
    (partial / JOURNAL_NAME).unlink()
    partial.rmdir()


@contextmanager
def disk_errors(partial: Path) -> Iterator[None]:
    """Turns errors of the destination's disk into a StoreError with a remedy."""
    try:
        yield
    except EdgemoeError:
        raise
    except OSError as problem:
        kept = "what was done is kept: the same command goes on from there."
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"{partial}: the disk is full.", f"Free some space; {kept}") from problem
        if problem.errno == errno.EFBIG:
            raise StoreError(
                f"{partial}: a file of the store is larger than this file system or account allows.",
                f"Raise the limit (ulimit -f) or give a destination elsewhere; {kept}",
            ) from problem
        raise StoreError(
            f"{partial}: cannot be written ({problem.strerror or problem}).", f"Mend that; {kept}"
        ) from problem
