"""Flags for parameters: errors below the command line name what Python calls it, a person typed a flag."""

from __future__ import annotations

import re

FLAGS = {"kv": "--kv", "ram": "--ram", "context_length": "--context", "threads": "--threads"}
"""The flag of each parameter that an error may tell a person to give another value."""

_GIVEN = re.compile(rf"\b({'|'.join(FLAGS)})='([^']*)'")


def with_flags(text: str) -> str:
    """The text with `--kv q8` where it says `kv='q8'`, and so for all of `FLAGS`."""
    return _GIVEN.sub(lambda given: f"{FLAGS[given[1]]} {given[2]}", text)
