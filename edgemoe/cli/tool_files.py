"""Files that a person gives with tools, or with the structure of an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgemoe.cli.text_files import read_text_file
from edgemoe.errors import UsageError


def read_tools(path: Path) -> tuple[Mapping[str, Any], ...]:
    """The functions of a JSON file: a list of tools as OpenAI's interface takes them, or of functions alone.

    Raises UsageError for another file; OSError.
    """
    data = _read_json(path, "/tools")
    listed = data if isinstance(data, list) else [data]
    found = [one.get("function", one) if isinstance(one, dict) else one for one in listed]
    for one in found:
        named = isinstance(one, dict) and isinstance(one.get("name"), str) and one["name"].strip()
        if not named or not isinstance(one.get("parameters", {}), dict):
            raise UsageError(
                f"/tools: {path}: expected functions with name, description and parameters (a JSON schema),"
                f" found {json.dumps(one)[:80]}.",
                'Such as [{"name": "now", "description": "The time.", "parameters": {"type": "object"}}].',
            )
    names = [one["name"] for one in found]
    if len(set(names)) < len(names):
        raise UsageError(f"/tools: {path}: a name stands twice.", "Give each tool its own.")
    return tuple({"parameters": {"type": "object", "properties": {}}, **one} for one in found)


def read_schema(path: Path) -> Mapping[str, Any]:
    """The JSON schema of a file. Raises UsageError for another file; OSError."""
    data = _read_json(path, "--schema")
    if not isinstance(data, dict):
        raise UsageError(f"--schema: {path}: expected a JSON schema (an object).", 'Such as {"type": "object"}.')
    return data


def _read_json(path: Path, flag: str) -> Any:
    try:
        return json.loads(read_text_file(path, flag))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{flag}: {path}: expected JSON, found another text ({error}).", "Correct it.") from None
