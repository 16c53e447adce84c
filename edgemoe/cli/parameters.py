"""Flags of parameters: library errors name a parameter in backticks, but a person typed a flag."""

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
"""Flags that differ from the parameter's name."""

_PARAMETER = re.compile(r"`([a-z_]+)(?:=([^`]*))?`")


def flag(parameter: str) -> str:
    """The flag that sets a parameter."""
    return FLAGS.get(parameter, f"--{parameter.replace('_', '-')}")


def with_flags(text: str) -> str:
    """Replace parameters in an error's text by flags: `--kv q8` for `kv=q8` in backticks, and `--kv` for `kv`."""

    def spelled(named: re.Match[str]) -> str:
        return flag(named[1]) if named[2] is None else f"{flag(named[1])} {named[2]}"

    return _PARAMETER.sub(spelled, text)
