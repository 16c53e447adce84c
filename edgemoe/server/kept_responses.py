"""The latest responses, in memory, under their ids, each with the conversation that it ended."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from edgemoe.server.messages import Message, text_of
from edgemoe.server.refusals import RefusalError

MOST_RESPONSES = 256
MOST_CHARACTERS = 4 << 20

Messages = list[Message]


@dataclass(frozen=True)
class Kept:
    """A response, and the messages of the conversation up to its end."""

    messages: Messages
    resource: dict[str, Any]


class KeptResponses:
    """Responses by their ids; the one that was not used for the longest time makes way."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def add(self, name: str, kept: Kept) -> None:
        """Keep a response."""
        self._kept[name] = kept
        while len(self._kept) > MOST_RESPONSES or (len(self._kept) > 1 and self._characters() > MOST_CHARACTERS):
            self._kept.popitem(last=False)

    def find(self, name: str, param: str | None = None) -> Kept:
        """The response of an id. Raises RefusalError for an unknown one, naming the field that had it."""
        if name not in self._kept:
            raise RefusalError(
                f"{'' if param is None else f'{param}: '}there is no response {name[:80]!r} here.",
                "The server keeps the latest ones, until it is stopped: send the whole conversation.",
                404,
                f"{param or 'response_id'}_not_found".replace("_id_", "_"),
                param,
            )
        self._kept.move_to_end(name)
        return self._kept[name]

    def remove(self, name: str) -> None:
        """Forget a response. Raises RefusalError for an unknown one."""
        self.find(name)
        del self._kept[name]

    def _characters(self) -> int:
        return sum(len(text_of(kept.messages)) for kept in self._kept.values())
