"""Diagnoses folders that are not, or not only, a whole checkpoint of safetensors files."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from edgemoe.errors import SourceError
from edgemoe.store.first_bytes import LFS_FOUND, LFS_WAY_OUT, is_lfs_pointer
from edgemoe.store.manifest import MANIFEST_NAME

CONFIG_NAME = "config.json"
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_SHARD_NAME = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAMES = ("adapter_model.safetensors", "adapter_model.bin")

_OF_XAI = "tokenizer.tok.json"
_GIVE_THE_FOLDER = "Give the folder that holds config.json and the weights."


def checkpoint_folder(folder: Path) -> Path:
    """The folder with the checkpoint's files: `folder` itself, or the snapshot of a repository in the hub's cache.

    A cached repository is a folder `models--owner--name` with `snapshots/COMMIT` and, for each branch, `refs/BRANCH`
    holding its commit. Raises SourceError if there are several snapshots and no main branch that names one.
    """
    try:
        names = sorted(path.name for path in (folder / "snapshots").iterdir() if path.is_dir())
    except (OSError, ValueError):
        return folder
    if (folder / CONFIG_NAME).exists() or not names:
        return folder
    try:
        with (folder / "refs" / "main").open(encoding="ascii") as file:
            main = file.read(100).strip()
    except (OSError, ValueError):
        main = ""
    if main in names or len(names) == 1:
        return folder / "snapshots" / (main if main in names else names[0])
    raise SourceError(
        f"{folder}: expected one snapshot in this repository of the hub's cache, found {len(names)}.",
        f"Give one of them, such as {folder / 'snapshots' / names[0]}",
    )


def refuse_store(folder: Path) -> None:
    """Raises SourceError for a folder that is already a store."""
    if (folder / MANIFEST_NAME).is_file():
        raise SourceError(
            f"{folder}: expected a checkpoint, found a store, which needs no conversion.",
            f"Use the store as it is: edgemoe chat {folder}",
        )


def adapter_error(where: object, found: str, adapter_config: dict[str, Any], beside_model: bool) -> SourceError:
    """The error for a LoRA adapter, whose weights are only meaningful when added to those of a model.

    `found` is the file that reveals it. transformers (with peft) applies an adapter that lies beside a whole model, so
    converting the model without it would give a different model.
    """
    base = adapter_config.get("base_model_name_or_path")
    of = f" of {base}" if isinstance(base, str) and 0 < len(base) < 200 else ""
    merge = (
        "Merge it with peft: AutoPeftModelForCausalLM.from_pretrained(ADAPTER).merge_and_unload()"
        ".save_pretrained(FOLDER); save the tokenizer there too, and convert FOLDER."
    )
    if beside_model:
        return SourceError(
            f"{where}: expected a checkpoint alone, found a LoRA adapter{of} beside it ({found}), which would be"
            " left out.",
            f"{merge} To have the model without the adapter, convert a copy of the folder without {found}.",
        )
    return SourceError(
        f"{where}: expected a whole model, found a LoRA adapter{of} ({found}), which holds only changes to one.", merge
    )


def missing_file(folder: Path, name: str) -> SourceError:
    """The error for a missing required file, with a description of what the folder holds instead."""
    path = folder / name
    if os.path.islink(path):  # noqa: PTH114 (returns False for an invalid file name)
        return SourceError(
            f"{folder}: {name} is missing: it is a link to {path.readlink()}, which does not exist.",
            "Put the file back where the link leads, or download it again.",
        )
    ggufs = sorted(file.name for file in folder.glob("*.gguf"))
    if ggufs and name == CONFIG_NAME:
        return _gguf_error(folder, ggufs)
    inside = sorted(config.parent for config in folder.glob(f"*/{CONFIG_NAME}"))
    if inside and name == CONFIG_NAME:
        return SourceError(f"{folder}: {name} is missing.", f"Is the checkpoint {inside[0]}? Give that folder.")
    return SourceError(f"{folder}: {name} is missing.", _GIVE_THE_FOLDER)


def no_weights(folder: Path) -> SourceError:
    """The error for a folder with a config.json but no readable weights; it describes what the folder holds instead."""
    ggufs = sorted(file.name for file in folder.glob("*.gguf"))
    if ggufs:
        return _gguf_error(folder, ggufs)
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        return SourceError(
            f"{folder}: expected .safetensors files, found only PyTorch pickles (.bin), which can run code"
            " when they are opened and are not read.",
            "Use the checkpoint's safetensors version, or load it with transformers and save_pretrained it again.",
        )
    return SourceError(f"{folder}: expected .safetensors files, found none.", _GIVE_THE_FOLDER)


def _gguf_error(folder: Path, names: list[str]) -> SourceError:
    found = (
        names[0] if len(names) == 1 else f"{len(names)} of them ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
    )
    return SourceError(
        f"{folder}: expected a checkpoint of .safetensors files, found GGUF: {found}.",
        f"Give the file itself: {folder / names[0]}",
    )


def refuse_lfs_pointer(path: Path) -> None:
    """Raises SourceError for a Git LFS pointer: a few lines of text in place of the file."""
    if is_lfs_pointer(path):
        raise SourceError(f"{path}: {LFS_FOUND}", LFS_WAY_OUT)


def single_before_shards(names: Collection[str]) -> list[str]:
    """Notice on which weights are used if the files `names` include both a single file and shards; else empty."""
    shards = sorted(name for name in names if _SHARD_NAME.fullmatch(name))
    if SINGLE_NAME not in names or not shards:
        return []
    return [
        f"{SINGLE_NAME} is converted, and not {shards[0]} and the other shards, which lie beside it: transformers does"
        " the same. If the shards are the newer ones, convert a copy without the single file."
    ]


def no_tokenizer(names: Iterable[str]) -> str:
    """Explain the consequence of a missing tokenizer.json, and how to make one. `names` are the checkpoint's files."""
    names = list(names)
    slow = next((name for name in names if name == "vocab.json" or name.endswith(".tiktoken")), None)
    parts = ["The checkpoint has no tokenizer.json: the store will work with token ids only, from Python."]
    if _OF_XAI in names:
        parts = [
            f"The checkpoint has {_OF_XAI}, a format of xAI's own, but no tokenizer.json, the file that edgemoe reads:"
            " the store will work with token ids only, from Python.",
            "For Grok-2 the hub has one that was made from it, with its chat template: alvarobartt/grok-2-tokenizer"
            " (tokenizer.json, tokenizer_config.json, chat_template.jinja).",
        ]
    if slow is not None:
        parts = [
            f"The checkpoint has {slow} but no tokenizer.json, the file that edgemoe reads: the store will"
            " work with token ids only, from Python.",
            "Make one with transformers:"
            " AutoTokenizer.from_pretrained(CHECKPOINT, use_fast=True).save_pretrained(FOLDER).",
        ]
    parts.append(
        "Copy a tokenizer.json into the checkpoint now, or into the finished store later and run edgemoe update STORE:"
        " the weights are not converted again."
    )
    return " ".join(parts)
