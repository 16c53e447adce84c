"""Reads what a person types for a model of the Hugging Face hub: `owner/name[@revision][:QUANT]`.

The hub's address may stand before it, as other programs want it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_HUB_ID = re.compile(
    r"((https://)?(hf\.co|huggingface\.co)/)?"
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(@(?P<revision>[\w./-]+))?"
    r"(:(?P<quantisation>[^\s:][^\0-\x1f:]*))?"
)


@dataclass(frozen=True)
class HubId:
    """A repository of the hub, a revision of it, and the quantisation of a GGUF file in it."""

    repository: str
    """`owner/name`"""
    revision: str | None = None
    """A branch, tag or commit; None for the main branch."""
    quantisation: str | None = None
    """A quantisation such as Q4_K_M, or a file's name; None for a checkpoint, or the usual one of GGUF files."""

    @classmethod
    def parse(cls, text: str) -> HubId | None:
        """The id that a text is; None where it is none. The name of a .gguf file is none, but after the colon."""
        match = _HUB_ID.fullmatch(text)
        if match is None or match["repository"].lower().endswith(".gguf"):
            return None
        return cls(**match.groupdict())

    @classmethod
    def of_model(cls, text: str) -> HubId | None:
        """The id that a text is; None also for a path that exists on this machine, which is never looked up there."""
        return None if os.path.lexists(os.path.expanduser(text)) else cls.parse(text)  # noqa: PTH111

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{self.repository}{revision}" + ("" if self.quantisation is None else f":{self.quantisation}")
