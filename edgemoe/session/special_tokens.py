"""The special tokens that the files of a model folder name beside its tokenizer.json, and those of channels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgemoe.session.model_files import read_json_object
from edgemoe.store.tokenizer_config import CONFIG_NAME, MAP_NAME, SpecialTokens

if TYPE_CHECKING:
    import tokenizers


class ChannelMarkers(NamedTuple):
    """The ids of the special tokens around messages with channels (`channels.py`)."""

    start: int
    channel: int
    message: int
    end: int
    stop: int
    """Ends the whole answer."""
    call: int
    """Ends the call of a tool, and so the answer."""

    @classmethod
    def of(cls, tokenizer: tokenizers.Tokenizer | None) -> ChannelMarkers | None:
        """The markers of a tokenizer; None for one that does not have all of them as special tokens."""
        if tokenizer is None:
            return None
        texts = [f"<|{name}|>" for name in ("start", "channel", "message", "end", "return", "call")]
        added = tokenizer.get_added_tokens_decoder()
        special = {token.content: number for number, token in added.items() if token.special}
        return cls(*(special[text] for text in texts)) if special.keys() >= set(texts) else None


def read_special_tokens(folder: Path) -> SpecialTokens:
    """Read the special tokens from a folder's files. Raises StoreError for a damaged file."""
    return SpecialTokens.of(
        read_json_object(folder / CONFIG_NAME, required=False),
        read_json_object(folder / MAP_NAME, required=False),
    )
