"""The special tokens that the files of a model folder name beside its tokenizer.json."""

from __future__ import annotations

from pathlib import Path

from edgemoe.session.model_files import read_json_object
from edgemoe.store.tokenizer_config import CONFIG_NAME, MAP_NAME, SpecialTokens


def read_special_tokens(folder: Path) -> SpecialTokens:
    """Read the special tokens from a folder's files. Raises StoreError for a damaged file."""
    return SpecialTokens.of(
        read_json_object(folder / CONFIG_NAME, required=False),
        read_json_object(folder / MAP_NAME, required=False),
    )
