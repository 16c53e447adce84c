"""Checkpoints whose matrices are MXFP4, as compressed-tensors writes them, and what their bytes stand for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from tests.support.checkpoints import read_tensors, write_checkpoint

E2M1 = (0, 0.5, 1, 1.5, 2, 3, 4, 6)


def mxfp4_weights(codes: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Weights `(..., columns)` of bytes `(..., columns / 2)` and `(..., columns / 32)`, by the specification.

    Minus zero becomes zero.
    """
    numbers = np.array([*E2M1, *(-number for number in E2M1)])
    pairs = numbers[np.stack([codes % 16, codes // 16], axis=-1)]
    blocks = pairs.reshape(*scales.shape, 32) * 2.0 ** (scales[..., None].astype(float) - 127)
    return blocks.reshape(*codes.shape[:-1], -1).astype(np.float32)


def random_mxfp4(shape: tuple[int, ...], generator: np.random.Generator) -> tuple[npt.NDArray[np.uint8], ...]:
    """Every code, minus zero too, and scales for weights of about a tenth."""
    codes = generator.integers(0, 256, (*shape[:-1], shape[-1] // 2), np.uint8)
    return codes, generator.integers(119, 125, (*shape[:-1], shape[-1] // 32)).astype(np.uint8)


def write_packed_checkpoint(
    folder: Path, config: Mapping[str, Any], packed: Callable[[str], bool], *, apart: bool = False
) -> dict[str, np.ndarray[Any, Any]]:
    """A checkpoint with MXFP4 pairs in place of the matrices that `packed` names; returns all tensors as floats.

    `apart`: codes and scales of each pair lie in two shards.
    """
    write_checkpoint(folder, config, dtype="F32")
    meant = read_tensors(folder)
    (folder / "model.safetensors").unlink()
    method = {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized", "ignore": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": method}))
    shards: list[dict[str, np.ndarray[Any, Any]]] = [{}, {}]
    generator = np.random.default_rng(7)
    for number, (name, values) in enumerate(sorted(meant.items())):
        if packed(name):
            codes, scales = random_mxfp4(values.shape, generator)
            meant[name] = mxfp4_weights(codes, scales)
            first = number % 2 if apart else 0
            shards[first][f"{name}_packed"] = codes
            shards[1 - first if apart else 0][f"{name}_scale"] = scales
        else:
            shards[number % 2 if apart else 0][name] = values
    names = [f"model-{number}-of-2.safetensors" for number in (1, 2)]
    for name, tensors in zip(names, shards, strict=True):
        if tensors:
            save_file(tensors, folder / name)
    index = {name: shard for shard, tensors in zip(names, shards, strict=True) for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return meant
