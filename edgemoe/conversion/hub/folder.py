"""Names of folders and files in the Hugging Face cache on this machine, which all programs share.

A cached repository is a folder `models--owner--name` with `blobs`, links to them in `snapshots/COMMIT`, and the commit
of each branch in `refs/BRANCH`. Imports little: a model that is there starts without the hub's library.
"""

from __future__ import annotations

from pathlib import Path

_PARTIAL = ".edgemoe.incomplete"
"""The library, too, calls unfinished files `*.incomplete`, and its own command finds and removes them."""
_SHORT_DIGEST = 16
_FOLDER = "%2F"
_LONGEST = 200
"""Characters of a name that leave room for the rest: file systems take 255 bytes."""


def hub_cache_folder() -> Path | None:
    """The cache of all programs, which may not exist yet; None for a user without a home."""
    import huggingface_hub.constants  # takes as long as all the rest of opening a store, which does without

    text: str = huggingface_hub.constants.HF_HUB_CACHE
    return None if text.startswith("~") else Path(text)


def repository_folder(cache: Path, repository: str) -> Path:
    """The folder of a cached repository `owner/name`."""
    return cache / f"models--{repository.replace('/', '--')}"


def partial_name(name: str, sha256: str) -> str:
    """The name, among the blobs, of a file's unfinished download: it says which file, and of which content."""
    return f"{name.replace('/', _FOLDER)[-_LONGEST:]}.{sha256[:_SHORT_DIGEST]}{_PARTIAL}"


def unfinished_downloads(repository: Path) -> dict[Path, str]:
    """Unfinished downloads in a repository's folder, each with the name of its file."""
    found = sorted((repository / "blobs").glob(f"*{_PARTIAL}"))
    return {path: path.name[: -len(_PARTIAL) - _SHORT_DIGEST - 1].replace(_FOLDER, "/") for path in found}


def cached_snapshots(cache: Path, repository: str, revision: str | None) -> list[Path]:
    """Folders with files of a cached repository: first that of the revision, then, without one, the others by age.

    A revision is a branch, tag or commit; None means the main branch. The newest of the others comes first.
    """
    folder = repository_folder(cache, repository)
    try:
        commit = (folder / "refs" / (revision or "main")).read_text(encoding="ascii")[:100].strip()
    except (OSError, ValueError):
        commit = revision or ""
    snapshots = folder / "snapshots"
    try:
        others = {path.name: path.stat().st_mtime for path in snapshots.iterdir() if path.is_dir()}
    except OSError:
        return []
    first = [snapshots / commit] if commit in others else []
    if revision is not None:
        return first
    by_age = sorted((name for name in others if name != commit), key=lambda name: others[name], reverse=True)
    return [*first, *(snapshots / name for name in by_age)]
