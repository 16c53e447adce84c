"""Predicts the store that a conversion would make: every size and offset, without reading any weights.

The config and the names, shapes and dtypes of the tensors determine all of it. If the shards themselves are missing,
the names come from the index, the shapes from the config, and the weights are assumed to be floats, but for those that
their names show to be quantised. If the names are unknown too, experts are quantised where the config says that weights
are.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemoe.architectures import model_spec, possible_shapes, resolve
from edgemoe.conversion.folder import read_json_file
from edgemoe.conversion.folder_contents import CONFIG_NAME, INDEX_NAME, SINGLE_NAME, checkpoint_folder
from edgemoe.conversion.formats import BY_DEFAULT, FormatChoice, choose_formats, expert_of
from edgemoe.conversion.gguf_store import GgufStore
from edgemoe.conversion.hub.id import HubId
from edgemoe.conversion.opening import open_source
from edgemoe.conversion.plan import plan_conversion, plan_manifest
from edgemoe.conversion.quantised.schemes import scheme_of
from edgemoe.conversion.quantised.source import shown_dtypes
from edgemoe.conversion.source import Source
from edgemoe.conversion.tailed import without_tails
from edgemoe.errors import SourceError, UsageError
from edgemoe.kernels.formats import SUB1
from edgemoe.store.manifest import Manifest
from edgemoe.store.reader import Store


@dataclass(frozen=True)
class Forecast:
    """A predicted store."""

    store: Store
    """A store with a complete manifest but no files."""
    source: str
    """The name of the source that it would be made from."""
    known_from: str
    """Description of the parts of the source that were examined."""
    weights: tuple[Path, ...] = ()
    """The weight files that exist."""


def forecast_store(
    source: str, experts: str | None = None, dense: str | None = None, head: str | None = None
) -> Forecast:
    """Predict the store that `edgemoe convert` would make from a source with these formats.

    The source is a folder with a checkpoint, a folder with only its config.json (and its index), the config.json
    itself, a GGUF file, or a hub id, of which only config, index and headers are fetched. A GGUF model on the hub is
    forecast as it is opened, unless formats are given or it has to be converted. Raises SourceError for a
    source that cannot be converted, UsageError for an unknown format.
    """
    choice = FormatChoice(experts, dense, head)
    choice.check()
    if choice.experts == SUB1.name:
        raise UsageError(
            f"`experts={SUB1.name}`: expected a format whose sizes follow from shapes; those of {SUB1.name} are known"
            " once the weights are encoded.",
            "Convert the checkpoint, and plan with the store.",
        )
    path = Path(os.path.expanduser(source))  # noqa: PTH111 (leaves an unknown ~user unchanged)
    path = checkpoint_folder(path) if source else path
    config = _config_alone(path)
    if config is not None:
        names = _names_of_index(config.with_name(INDEX_NAME))
        known_from = f"{CONFIG_NAME} and the index of its shards" if names is not None else f"{CONFIG_NAME} alone"
        manifest = forecast_manifest(read_json_file(config, "a config.json of a checkpoint"), names, choice)
        return Forecast(Store(config.parent, manifest), str(config.parent), known_from)
    with (
        tempfile.TemporaryDirectory(prefix="edgemoe-plan-") as downloads,
        closing(open_source(source, downloads=Path(downloads), side_files=False)) as opened,
    ):
        name = opened.name
        if choice == BY_DEFAULT and HubId.of_model(source) and (as_it_is := _opened_as_it_is(opened)) is not None:
            return Forecast(as_it_is, name, "the header of the file on the hub, opened as it is")
        manifest = plan_conversion(opened, choice, {}).manifest
    weights = (path,) if path.is_file() else tuple(sorted(path.glob("*.safetensors")))
    return Forecast(Store(path, manifest), name, f"{CONFIG_NAME} and the headers of the weights", weights)


def _opened_as_it_is(source: Source) -> Store | None:
    """The store as which a GGUF model on the hub opens; None for other sources, or one that is to be converted."""
    from edgemoe.conversion.hub.gguf import HubGgufSource  # a file on this machine needs no hub

    if isinstance(source, HubGgufSource):
        with suppress(SourceError):
            return GgufStore.open_file(source.files[0].path)
    return None


def forecast_manifest(config: Mapping[str, Any], names: Iterable[str] | None, choice: FormatChoice) -> Manifest:
    """The manifest for a config, given the names of its tensors; None if the names are unknown too.

    Raises SourceError if the model is not supported, or the names are not those of its tensors.
    """
    spec = model_spec(config)
    shapes = spec.tensors()
    if names is not None:
        shown = shown_dtypes(config, names)
        possible, whole = possible_shapes(config), without_tails(config, shown)
        places = resolve(config, {name: possible.get(name, ()) for name in whole})
        dtypes = {name: shown[place.tensor] or "BF16" for name, place in places.items()}
    else:
        scheme = scheme_of(config)
        quantised = {name for name in shapes if scheme.declared and expert_of(name) and len(shapes[name]) == 2}
        dtypes = {name: scheme.dtype(name) if name in quantised else "BF16" for name in shapes}
    return plan_manifest(spec, shapes, choose_formats(shapes, dtypes, choice), {}, base=choice.base)


def _config_alone(path: Path) -> Path | None:
    """The config.json of a checkpoint without its weights; None for any other kind of source."""
    if path.name == CONFIG_NAME and path.is_file():
        return path
    config = path / CONFIG_NAME
    if not config.is_file() or (path / SINGLE_NAME).is_file():
        return None
    names = _shards_of_index(path / INDEX_NAME)
    if names is not None:
        return None if all((path / name).is_file() for name in names) else config
    weights = [file for pattern in ("*.safetensors", "*.bin", "*.pth") for file in path.glob(pattern)]
    return None if weights else config


def _names_of_index(index: Path) -> list[str] | None:
    """The names of all tensors from the index; None without an index, or if a single file takes precedence over it."""
    weight_map = None if index.with_name(SINGLE_NAME).is_file() else _weight_map(index)
    return None if weight_map is None else list(weight_map)


def _shards_of_index(index: Path) -> set[str] | None:
    weight_map = _weight_map(index)
    return None if weight_map is None else set(weight_map.values())


def _weight_map(index: Path) -> dict[str, str] | None:
    """Map tensor names to shard names; None if there is no index. Raises SourceError if the file is not an index."""
    if not index.is_file():
        return None
    weight_map = read_json_file(index, "the index of the shards").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise SourceError(
            f"{index}: expected a weight_map of tensor names to file names.", "Download the checkpoint's index again."
        )
    return weight_map
