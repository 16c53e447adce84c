"""The hot list: the experts that were in RAM when a model was closed, hottest first, for its next start to read.

One small file for each store, named by the digest of its manifest, in the user's cache. It is only a hint: it affects
the speed of an answer, never its tokens. A missing, damaged, foreign or huge file is ignored.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

VERSION = 1
MOST_BYTES = 1 << 20
MOST_EXPERTS = 1 << 16
MOST_LISTS = 16
"""The most files that are kept; the oldest are deleted."""
SUFFIX = ".hot.json"

Key = tuple[int, int]
"""(layer, expert)"""


class HotList:
    """The hot list of one store. No method raises; a list that cannot be read or written is skipped."""

    def __init__(self, folder: Path, digest: str, experts_per_layer: Sequence[int]) -> None:
        """`digest` names the store; `experts_per_layer` has the number of experts of each layer."""
        self.path = folder / f"{digest[:32]}{SUFFIX}"
        self._digest = digest
        self._experts_per_layer = list(experts_per_layer)

    def read(self) -> list[Key]:
        """The experts, hottest first, each once; empty without a valid list of this store."""
        try:
            with self.path.open("rb") as file:
                text = file.read(MOST_BYTES + 1)
            data = json.loads(text) if len(text) <= MOST_BYTES else None
        except (OSError, ValueError, RecursionError):
            return []
        if not isinstance(data, dict) or data.get("edgemoe_hot_list") != VERSION or data.get("store") != self._digest:
            return []
        entries = data.get("experts")
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
        data = {"edgemoe_hot_list": VERSION, "store": self._digest, "experts": list(experts[:MOST_EXPERTS])}
        text = json.dumps(data, separators=(",", ":")).encode()
        if len(text) > MOST_BYTES:
            return
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with contextlib.suppress(OSError, ValueError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(text)
                temporary.replace(self.path)
            finally:
                temporary.unlink(missing_ok=True)
            _keep_few(self.path.parent)


def _keep_few(folder: Path) -> None:
    lists = sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in lists[MOST_LISTS:]:
        path.unlink(missing_ok=True)
