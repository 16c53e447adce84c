"""Folders of the user: the cache, whose files can be made anew, and the state, which outlives a run.

A user without a home (as in a container that runs under an unknown user id) has neither, unless a variable names one.
Then no files are kept, and no operation fails.
"""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "EDGEMOE_CACHE_DIR"
"""Variable that names a folder in place of the user's cache; if it is empty no files are kept."""


def cache_folder() -> Path | None:
    """The folder of hot lists, quality figures and downloads, which may not exist yet; None where no files are kept."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return platform_cache_folder() if chosen is None else expanded(chosen)


def platform_cache_folder() -> Path | None:
    """The cache folder unless edgemoe's variable names another; None without a home."""
    return _platform_folder("user_cache_dir")


def state_folder() -> Path | None:
    """The folder of conversations and of the input history, which may not exist yet; None without a home."""
    return _platform_folder("user_state_dir")


def expanded(text: str) -> Path | None:
    """Replace a leading `~` or `~user` by the home folder; None if that is unknown, and for an empty text."""
    path = os.path.expanduser(text)  # noqa: PTH111 (it leaves an unknown home unchanged)
    return None if not path or path.startswith("~") else Path(path)


def _platform_folder(name: str) -> Path | None:
    import platformdirs

    try:
        path = Path(getattr(platformdirs, name)("edgemoe"))
    except RuntimeError:  # without a home
        return None
    # Older versions leave an unknown home as `~`. By the XDG specification programs ignore relative paths.
    return path if path.is_absolute() else None
