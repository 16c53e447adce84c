"""Folders of the user: where what can be made anew is kept (cache), and what outlives a run (state).

A user without a home (a container that runs under a number of its own) has neither, unless a variable names one: then
nothing is kept, and nothing fails.
"""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "EDGEMOE_CACHE_DIR"
"""A folder in place of the user's cache; empty: nothing is kept."""


def cache_folder() -> Path | None:
    """The folder of hot lists, prices and downloads, whether or not it is there yet; None where nothing is kept."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return platform_cache_folder() if chosen is None else expanded(chosen)


def platform_cache_folder() -> Path | None:
    """The cache folder where no variable of edgemoe's names another; None without a home."""
    return _platform_folder("user_cache_dir")


def state_folder() -> Path | None:
    """The folder of conversations and of what was typed, whether or not it is there yet; None without a home."""
    return _platform_folder("user_state_dir")


def expanded(text: str) -> Path | None:
    """A path whose leading `~` or `~user` is that home folder; None where that is not known, and for an empty text."""
    path = os.path.expanduser(text)  # noqa: PTH111 (it tells an unknown home by leaving it as it is)
    return None if not path or path.startswith("~") else Path(path)


def _platform_folder(name: str) -> Path | None:
    import platformdirs

    try:
        path = Path(getattr(platformdirs, name)("edgemoe"))
    except RuntimeError:  # without a home
        return None
    # Older versions leave an unknown home as `~`. The XDG specification has programs ignore relative paths.
    return path if path.is_absolute() else None
