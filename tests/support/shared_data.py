"""Public data that is kept beside the project and never in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PLACE = "shared/data"


def shared_file(name: str) -> Path:
    """A file of the data beside the repository, or in the folder that EDGEMOE_SHARED_DATA names; skips without it."""
    given = os.environ.get("EDGEMOE_SHARED_DATA")
    folders = [Path(given)] if given else [parent / PLACE for parent in Path(__file__).resolve().parents]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    pytest.skip(f"{PLACE}/{name} is not beside the repository, nor in EDGEMOE_SHARED_DATA")
