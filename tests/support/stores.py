"""Small stores for tests, made by the conversion itself."""

from __future__ import annotations

from pathlib import Path

from edgemoe.convert.pipeline import convert_checkpoint
from edgemoe.store.reader import Store
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint


def small_store(folder: Path, **options: str | None) -> Store:
    """A converted `SMALL_MIXTRAL`, in `folder / "store"`."""
    write_checkpoint(folder / "checkpoint", SMALL_MIXTRAL)
    return Store.open(convert_checkpoint(str(folder / "checkpoint"), folder / "store", **options))
