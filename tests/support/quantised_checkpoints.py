"""Whole checkpoints whose matrices a scheme quantises."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgemoe.store.headers import build_header
from tests.support.bytes_source import DTYPES
from tests.support.checkpoints import read_tensors, write_checkpoint
from tests.support.quantised_writers import Writer


def write_quantised_checkpoint(
    folder: Path,
    config: Mapping[str, Any],
    writer: Writer,
    quantised: Callable[[str], bool],
    dtypes: Mapping[str, str],
    more: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> dict[str, np.ndarray[Any, Any]]:
    """Write a checkpoint whose matrices that `quantised` names are drawn by a writer; returns all as they are meant.

    `dtypes` are those of tensors of bytes by the ends of their names; `more` are tensors beside.
    """
    write_checkpoint(folder, config, dtype="F32")
    meant: dict[str, np.ndarray[Any, Any]] = read_tensors(folder)
    generator = np.random.default_rng(7)
    tensors: list[tuple[str, str, np.ndarray[Any, Any]]] = [
        (name, DTYPES[values.dtype.name], values) for name, values in (more or {}).items()
    ]
    for name, values in sorted(meant.items()):
        if quantised(name):
            made, meant[name] = writer(values.shape, generator)
            stem = name.removesuffix(".weight")
            for end, own in made.items():
                dtype = dtypes.get(end) if own.dtype == np.uint8 else None
                tensors.append((stem + end, dtype or DTYPES[own.dtype.name], own))
        else:
            tensors.append((name, "F32", values))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(build_header((name, dtype, values.shape, values.nbytes) for name, dtype, values in tensors))
        for _, _, values in tensors:
            file.write(np.ascontiguousarray(values).tobytes())
    (folder / "config.json").write_text(json.dumps(config))
    return meant
