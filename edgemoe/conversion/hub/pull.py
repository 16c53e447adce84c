"""Downloads what a hub id names to the Hugging Face cache, whole and checked, where every command finds it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from edgemoe.conversion.formats import BY_DEFAULT
from edgemoe.conversion.hub.errors import HubUnreachableError
from edgemoe.conversion.hub.gguf import HubGgufSource
from edgemoe.conversion.hub.gguf_names import gguf_models, list_models
from edgemoe.conversion.hub.id import HubId
from edgemoe.conversion.hub.opening import CachedGgufSource, open_cached, open_repository
from edgemoe.conversion.hub.repository import HubRepository
from edgemoe.conversion.plan import plan_conversion
from edgemoe.conversion.progress import DownloadCallback
from edgemoe.conversion.showing import shown
from edgemoe.errors import SourceError


@dataclass(frozen=True)
class Pulled:
    """A model in the hub's cache."""

    hub_id: HubId
    """With the quantisation that was chosen, where it is a GGUF model."""
    path: Path
    """The GGUF file, the first one of a split model, or the folder of a checkpoint."""
    bytes: int
    notice: str = ""
    """A remark that a person should read."""

    @property
    def is_gguf(self) -> bool:
        """Whether it runs as it is; a checkpoint is to be converted."""
        return self.hub_id.quantisation is not None


def pull(hub_id: HubId, *, to_run: bool = False, downloading: DownloadCallback | None = None) -> Pulled:
    """Download a GGUF model, or a checkpoint with all that its conversion needs, unless it is there already.

    A GGUF model it is where a quantisation is named, or where the repository has no other weights; what cannot be used
    is refused before its weights are downloaded. With `to_run` a checkpoint is refused, which has to be converted
    first. Where the hub cannot be asked, what is there is taken. Raises SourceError.
    """
    try:
        repository = HubRepository(hub_id, keep=True, downloading=downloading)
        if to_run:
            _require_gguf(repository)
        source = open_repository(repository)
    except HubUnreachableError as problem:
        return _pulled_before(hub_id, to_run, problem)
    with closing(source):
        plan_conversion(shown(source), BY_DEFAULT, {})
        path = source.download()
        repository.note_revision()
        if isinstance(source, HubGgufSource):
            hub_id = replace(hub_id, quantisation=hub_id.quantisation or source.model.quantisation)
            names: Sequence[str] = source.model.files
        else:
            names = source.shards()
        return Pulled(hub_id, path, sum(repository.files[name].size or 0 for name in names))


def _require_gguf(repository: HubRepository) -> None:
    """Raise SourceError for a checkpoint of safetensors."""
    names = repository.files
    if repository.id.quantisation is not None or not any(name.endswith(".safetensors") for name in names):
        return
    models = gguf_models(names)
    sizes = {name: file.size for name, file in names.items()}
    beside = f" Or name one of its GGUF files after a colon: {list_models(models, sizes)}." if models else ""
    raise _to_convert(repository.id, beside)


def _pulled_before(hub_id: HubId, to_run: bool, problem: HubUnreachableError) -> Pulled:
    """The model as it is in the hub's cache. Raises SourceError."""
    source = open_cached(hub_id, problem)
    if isinstance(source, CachedGgufSource):
        (model,) = gguf_models([file.path.name for file in source.files])
        hub_id = replace(hub_id, quantisation=hub_id.quantisation or model.quantisation)
        size = sum(file.bytes for file in source.files)
    elif to_run:
        raise _to_convert(hub_id)
    else:
        size = sum((source.path / shard).stat().st_size for shard in source.shards())
    source.close()
    return Pulled(hub_id, source.path, size, source.notices()[0])


def _to_convert(hub_id: HubId, beside: str = "") -> SourceError:
    return SourceError(
        f"{hub_id}: expected a GGUF file, which runs as it is, found a checkpoint of safetensors files.",
        f"Convert it first: edgemoe convert {hub_id} DEST.{beside}",
    )
