"""The types that a tool's schema gives its arguments, for forms that write them as plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgemoe.session.response.values import strict_json

Types = tuple[str, ...]


def argument_types(tool: Mapping[str, Any] | None, argument: str) -> Types:
    """The types that an argument of a tool may have; none where nothing is said."""
    properties = (tool or {}).get("parameters", {})
    properties = properties.get("properties") if isinstance(properties, Mapping) else None
    schema = properties.get(argument) if isinstance(properties, Mapping) else None
    return tuple(dict.fromkeys(_types(schema, 0)))


def _types(schema: Any, depth: int) -> list[str]:
    if not isinstance(schema, Mapping) or depth > 8:
        return []
    declared = schema.get("type")
    found = [declared] if isinstance(declared, str) else [*declared] if isinstance(declared, list) else []
    for union in ("anyOf", "oneOf", "allOf"):
        choices = schema.get(union)
        for choice in choices if isinstance(choices, list) else []:
            found += _types(choice, depth + 1)
    if "enum" in schema and not found and isinstance(schema["enum"], list):
        found += ["string" for one in schema["enum"] if isinstance(one, str)]
    return found + ["null"] * bool(schema.get("nullable"))


def typed(text: str, types: Types) -> Any:
    """The value of a text as one of some types; the text itself where none fits."""
    stripped = text.strip()
    for name in sorted(types, key=lambda one: one == "string"):  # a text fits everything, so it comes last
        try:
            if name == "boolean" and stripped.lower() in ("true", "false"):
                return stripped.lower() == "true"
            if name == "null" and stripped.lower() in ("null", "none"):
                return None
            if name in ("integer", "number"):
                number = float(stripped)
                if name == "integer" or ("." not in stripped and "e" not in stripped.lower()):
                    return int(stripped) if stripped.lstrip("+-").isdigit() else int(strict_integer(number))
                strict_json(repr(number))
                return number
            if name in ("object", "array"):
                found = strict_json(stripped)
                if isinstance(found, dict if name == "object" else list):
                    return found
        except (ValueError, OverflowError):
            continue
    return text


def strict_integer(number: float) -> float:
    """A number without a fraction. Raises ValueError for one with."""
    if not number.is_integer():
        raise ValueError("a fraction")
    return number
