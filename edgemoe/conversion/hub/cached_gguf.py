"""Finds GGUF files by their hub id in the Hugging Face cache on this machine, without asking the hub.

Imports little: a model that is there starts without the hub's library.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from edgemoe.conversion.hub.folder import cached_snapshots, hub_cache_folder
from edgemoe.conversion.hub.gguf_names import (
    DEFAULT_QUANTISATION,
    choose_model,
    gguf_models,
    is_gguf_repository,
    list_models,
)
from edgemoe.conversion.hub.id import HubId
from edgemoe.errors import SourceError


def find_cached(hub_id: HubId) -> Path | None:
    """The file, or the first part, that the hub would name too, by what this machine knows; None: ask the hub.

    It lies whole in the newest snapshot, and its name is that of the quantisation that is named, or of the usual one.
    """
    asked = hub_id.quantisation or DEFAULT_QUANTISATION
    for snapshot in _snapshots(hub_id)[:1]:
        sizes = cached_sizes(snapshot)
        if hub_id.quantisation is not None or is_gguf_repository(sizes):
            with suppress(SourceError):
                model = choose_model(hub_id, sizes, asked)
                if model.names(asked):  # else the hub may have one that is called so
                    return snapshot / model.files[0]
    return None


def find_cached_offline(hub_id: HubId) -> Path | None:
    """The file, or the first part, to use while the hub cannot be asked; None where no GGUF file of it is there.

    Raises SourceError, which says what there is, for another quantisation, or where several could be meant.
    """
    problem: SourceError | None = None
    for snapshot in _snapshots(hub_id):
        sizes = cached_sizes(snapshot)
        if hub_id.quantisation is None and not is_gguf_repository(sizes):
            continue
        try:
            return snapshot / choose_model(hub_id, sizes, hub_id.quantisation).files[0]
        except SourceError:
            if (models := gguf_models(sizes)) and problem is None:
                there = list_models(models, sizes)
                problem = SourceError(f"it has {there} of {hub_id.repository}.")
    if problem is not None:
        raise problem
    return None


def cached_sizes(snapshot: Path) -> dict[str, int]:
    """Names and sizes of the files in a snapshot. Links that lead nowhere are left out."""
    return {
        path.relative_to(snapshot).as_posix(): path.stat().st_size for path in snapshot.rglob("*") if path.is_file()
    }


def _snapshots(hub_id: HubId) -> list[Path]:
    cache = hub_cache_folder()
    return [] if cache is None else cached_snapshots(cache, hub_id.repository, hub_id.revision)
