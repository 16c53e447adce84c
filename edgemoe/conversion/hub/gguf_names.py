"""Finds the GGUF file that a quantisation's name means among the files of a repository.

People write `org/Model-GGUF:Q4_K_M`. The name stands in the file's name, or in that of its folder, in letters of either
case; a model may be one file, or the parts of a split one (`-00001-of-0000N.gguf`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from edgemoe.errors import SourceError
from edgemoe.sizes import format_size

DEFAULT_QUANTISATION = "Q4_K_M"
"""The one that is meant where none is named, as in llama.cpp and Ollama."""

_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_QUANTISATION = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:(?:IQ|TQ|Q)\d+(?:_\w+)*|BF16|FP?16|FP?32|(?:MX|NV)FP4(?:_MOE)?)(?![^\W_]))", re.IGNORECASE
)
_BESIDE_MODELS = re.compile(r"mmproj|imatrix|(?:^|/)(?:mtp|eagle3|dflash|dspark)[-/]", re.IGNORECASE)
"""Projectors of images, statistics of quantisers, and small models that draft tokens: no models by themselves."""
_MOST_SHOWN = 30


@dataclass(frozen=True)
class GgufModel:
    """One model among GGUF files, by its files in order."""

    stem: str
    """The path of its file, or of its parts, without what differs between parts and without .gguf."""
    files: tuple[str, ...]
    missing: tuple[str, ...] = ()
    """Parts that are not there."""

    @property
    def quantisation(self) -> str:
        """The name after which it can be asked for: what its file's name, or its folder's, ends with."""
        for part in reversed(PurePosixPath(self.stem).parts):
            if matches := list(_QUANTISATION.finditer(part)):
                return part[matches[-1].start(1) :]
        return PurePosixPath(self.stem).name

    def names(self, text: str) -> bool:
        """Whether a quantisation's or file's name is that of this model."""
        files = {_without_suffix(path) for file in self.files for path in (file, PurePosixPath(file).name)}
        stems = {self.stem.lower(), PurePosixPath(self.stem.lower()).name}
        return _without_suffix(text) in {self.quantisation.lower(), *stems, *files}

    def mentions(self, text: str) -> bool:
        """Whether a name is a part of this model's path."""
        part = re.escape(_without_suffix(text))
        return re.search(rf"(?:^|[-._/]){part}(?:[-./]|$)", self.stem.lower()) is not None


def _without_suffix(name: str) -> str:
    return name.lower().removesuffix(".gguf")


def gguf_models(names: Iterable[str]) -> list[GgufModel]:
    """The models among files of these names, in order."""
    parts: dict[tuple[str, int], dict[int, str]] = {}
    for name in sorted(names):
        if not name.lower().endswith(".gguf") or _BESIDE_MODELS.search(name):
            continue
        split = _SPLIT.fullmatch(name)
        if split is None:
            parts[name[: -len(".gguf")], 1] = {1: name}
        else:
            parts.setdefault((split["stem"], int(split["count"])), {})[int(split["number"])] = name
    models = []
    for (stem, count), found in parts.items():
        missing = tuple(f"{stem}-{n:05d}-of-{count:05d}.gguf" for n in range(1, count + 1) if n not in found)
        models.append(GgufModel(stem, tuple(found.values()), () if count == 1 else missing))
    return models


def is_gguf_repository(names: Iterable[str]) -> bool:
    """Whether GGUF files are all the weights that these files hold."""
    names = list(names)
    return bool(gguf_models(names)) and not any(name.endswith(".safetensors") for name in names)


def choose_model(where: object, sizes: Mapping[str, int | None], quantisation: str | None) -> GgufModel:
    """The model that a quantisation names among files with these sizes; `where` they are, for messages.

    Without a name it is the usual quantisation, or the only model. Raises SourceError, which says what there is.
    """
    models = gguf_models(sizes)
    found = best_matches(models, quantisation or DEFAULT_QUANTISATION)
    if quantisation is None and not found and len(models) == 1:
        found = models
    if len(found) == 1:
        (model,) = found
        if model.missing:
            raise SourceError(
                f"{where}: {model.missing[0]}: missing; the model is split into several files.",
                f"Choose another quantisation: {list_models(models, sizes)}.",
            )
        return model
    if not models:
        raise SourceError(f"{where}: expected GGUF files, found none.", "Leave out what stands after the colon.")
    if found:
        raise SourceError(
            f"{where}: {quantisation or DEFAULT_QUANTISATION} names {len(found)} files.",
            f"Give the name of one after the colon: {list_models(found, sizes, whole=True)}.",
        )
    asked = f"no {quantisation}" if quantisation else f"several quantisations, and no {DEFAULT_QUANTISATION}"
    raise SourceError(
        f"{where}: found {asked} among its GGUF files.",
        f"Name one of these after a colon: {list_models(models, sizes)}.",
    )


def list_models(models: Iterable[GgufModel], sizes: Mapping[str, int | None], whole: bool = False) -> str:
    """Names of models with their sizes, the smallest first; with `whole` the names of their files."""
    known = [(sum(sizes[file] or 0 for file in model.files), model) for model in models]
    known.sort(key=lambda entry: entry[0])
    shown = [f"{model.stem if whole else model.quantisation} ({format_size(size)})" for size, model in known]
    return ", ".join(shown[:_MOST_SHOWN]) + (f" and {len(shown) - _MOST_SHOWN} more" * (len(shown) > _MOST_SHOWN))


def best_matches(models: list[GgufModel], text: str) -> list[GgufModel]:
    """The models that a quantisation's or file's name means: those that it names exactly, else by a part."""
    exact = [model for model in models if model.names(text)]
    return exact or [model for model in models if model.mentions(text)]
