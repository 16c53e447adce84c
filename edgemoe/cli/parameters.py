"""Flags for parameters: errors below the command line name a parameter in backticks, a person typed a flag."""

from __future__ import annotations

import re

FLAGS = {
    "context_length": "--context",
    "room_tokens": "--context",
    "prompt_tokens": "--prompt",
    "decode_tokens": "--decode",
    "prefill_tokens": "--prefill",
    "peer_decode_tokens": "--peer-decode",
    "repetition_penalty": "--repeat-penalty",
}
"""Flags that are not simply the parameter's name."""

_PARAMETER = re.compile(r"`([a-z_]+)(?:=([^`]*))?`")


def flag(parameter: str) -> str:
    """The flag that sets a parameter."""
    return FLAGS.get(parameter, f"--{parameter.replace('_', '-')}")


def with_flags(text: str) -> str:
    """The text of an error with `--kv q8` where it says `kv=q8` in backticks, and `--kv` for `kv`."""

    def spelled(named: re.Match[str]) -> str:
        return flag(named[1]) if named[2] is None else f"{flag(named[1])} {named[2]}"

    return _PARAMETER.sub(spelled, text)
