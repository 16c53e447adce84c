"""Conversations that were asked for before: where a new one departs from them, and so from the prefix cache.

A prefix that is not found again is nearly always one that has changed: a date in the system message, another list of
tools, an answer that the client has altered. Clients rarely show it, so the server names the first message that
differs. It keeps digests alone, and no text.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

MOST_KEPT = 64
DIGEST_BYTES = 8


class EarlierConversations:
    """The latest conversations, each as the digests of its messages after one of the template's variables."""

    def __init__(self) -> None:
        self._kept: deque[tuple[bytes, ...]] = deque(maxlen=MOST_KEPT)

    def note(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str | None:
        """Keep a conversation; returns where it departs from those before that it shares most with.

        `variables`: what the template reads beside the messages, tools included.

        None where it continues these or repeats a part of them, and for the first of all.
        """
        digests = tuple(_digest(one) for one in (dict(variables), *map(dict, messages)))
        longest = max((_shared(digests, other) for other in self._kept), default=0)
        nearest = [other for other in self._kept if _shared(digests, other) == longest]
        departs = [longest < min(len(digests), len(other)) for other in nearest]
        if digests in self._kept:
            self._kept.remove(digests)
        self._kept.append(digests)
        if not any(departs):
            return None
        if not longest:
            return "tools, or the template's variables"
        return f"messages[{longest - 1}] ({messages[longest - 1].get('role')})"


def _digest(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def _shared(some: Sequence[bytes], others: Sequence[bytes]) -> int:
    """How many digests two conversations share from the first one on."""
    length = 0
    for one, other in zip(some, others, strict=False):
        if one != other:
            break
        length += 1
    return length
