"""The hot list: the experts that were in RAM when a model was closed, hottest first, for its next start to read.

It is a note about the store (`store/note.py`), and so only a hint: it affects the speed of an answer, never its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgemoe.store.note import StoreNote

SUFFIX, KIND, VERSION = ".hot.json", "edgemoe_hot_list", 1
MOST_EXPERTS = 1 << 16

Key = tuple[int, int]
"""(layer, expert)"""


class HotList:
    """The hot list of one store. No method raises; a list that cannot be read or written is skipped."""

    def __init__(self, folder: Path, digest: str, experts_per_layer: Sequence[int]) -> None:
        """`digest` names the store; `experts_per_layer` has the number of experts of each layer."""
        self._note = StoreNote(folder, digest, SUFFIX, KIND, VERSION)
        self.path = self._note.path
        self._experts_per_layer = list(experts_per_layer)

    def read(self) -> list[Key]:
        """The experts, hottest first, each once; empty without a valid list of this store."""
        entries = self._note.read().get("experts")
        if not isinstance(entries, list) or len(entries) > MOST_EXPERTS or not all(map(self._is_key, entries)):
            return []
        return list(dict.fromkeys((layer, expert) for layer, expert in entries))

    def _is_key(self, entry: object) -> bool:
        return (
            isinstance(entry, list)
            and len(entry) == 2
            and all(type(number) is int for number in entry)
            and 0 <= entry[0] < len(self._experts_per_layer)
            and 0 <= entry[1] < self._experts_per_layer[entry[0]]
        )

    def write(self, experts: Sequence[Key]) -> None:
        """Replace the list by these experts, hottest first; the file is written whole or not at all."""
        self._note.write({"experts": list(experts[:MOST_EXPERTS])})
