"""Small text files of a model folder, read with a limit on their size and with errors that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgemoe.errors import StoreError

JSON_LIMIT_BYTES = 16 << 20
MEND = "Put the original model's file in its place; if the folder is a store, run edgemoe update on it afterwards."
"""The remedy for a text file of a model that cannot be used."""


def read_text(path: Path, limit_bytes: int) -> str:
    """The UTF-8 text of a file. Raises StoreError where it is missing, larger than the limit, or not UTF-8."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would block until a process writes to it
            raise StoreError(
                f"{path}: expected a file, found something else.",
                MEND,
            )
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
        if len(data) > limit_bytes:
            raise StoreError(
                f"{path}: expected at most {limit_bytes >> 10} KiB, found more.",
                MEND,
            )
        return data.decode("utf-8")
    except FileNotFoundError:
        raise StoreError(f"{path} is missing.", MEND) from None
    except UnicodeDecodeError as error:
        raise StoreError(
            f"{path}: expected UTF-8 text, found other bytes at {error.start}.",
            MEND,
        ) from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}.", "Check the folder's permissions.") from None


def read_json_object(path: Path, required: bool = True, limit_bytes: int = JSON_LIMIT_BYTES) -> dict[str, Any]:
    """The JSON object in a file; empty where the file is missing and not required. Raises StoreError."""
    if not required and not path.exists():
        return {}
    try:
        value = json.loads(read_text(path, limit_bytes))
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"{path}: it is not valid JSON ({error}).",
            MEND,
        ) from None
    if not isinstance(value, dict):
        raise StoreError(
            f"{path}: expected a JSON object, found {type(value).__name__}.",
            MEND,
        )
    return value
