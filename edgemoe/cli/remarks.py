"""Lines about an answer that its text does not show: why it ends where it does, and published settings left out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from edgemoe.cli.screen import printable

if TYPE_CHECKING:
    from edgemoe.session.model import Model


def cut_remark(finish_reason: str | None, tokens: int, other_way: str = "") -> str | None:
    """The line about an answer that was cut, with the way to a longer one; None for any other answer."""
    if finish_reason == "length":
        return f"the answer was cut at {tokens} tokens: --max-tokens N{other_way} allows more"
    if finish_reason == "context":
        return f"the answer was cut at {tokens} tokens, where the context is full: --context N may allow more"
    return None


def defaults_remark(model: Model) -> str | None:
    """The line about settings that the model publishes and that are not carried out; None where there are none."""
    left_out = model.generation_defaults.not_honoured
    if not left_out:
        return None
    settings = ", ".join(f"{name} ({_shortened(str(value))})" for name, value in left_out.items())
    return f"generation_config.json of this model asks for what edgemoe does not do: {settings}"


def tell(remark: str | None) -> None:
    """Write a line to stderr where there is one."""
    if remark is not None:
        print(printable(remark), file=sys.stderr, flush=True)


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"
