"""The latest conversations, in memory, under the ids of the responses that ended them."""

from __future__ import annotations

from collections import OrderedDict

from edgemoe.server.messages import Message, text_of
from edgemoe.server.refusals import RefusalError

MOST_RESPONSES = 256
MOST_CHARACTERS = 4 << 20

Messages = list[Message]


class KeptResponses:
    """Conversations by their ids; the one that was not used for the longest time makes way."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Messages] = OrderedDict()

    def add(self, name: str, messages: Messages) -> None:
        """Keep a conversation."""
        self._kept[name] = messages
        while len(self._kept) > MOST_RESPONSES or (len(self._kept) > 1 and self._characters() > MOST_CHARACTERS):
            self._kept.popitem(last=False)

    def find(self, name: str | None) -> Messages:
        """The conversation up to a response; none without an id. Raises RefusalError for an unknown one."""
        if name is None:
            return []
        if name not in self._kept:
            raise RefusalError(
                f"previous_response_id: there is no response {name[:80]!r} here.",
                "The server keeps the latest ones, until it is stopped: send the whole conversation.",
                404,
                "previous_response_not_found",
                "previous_response_id",
            )
        self._kept.move_to_end(name)
        return list(self._kept[name])

    def _characters(self) -> int:
        return sum(len(text_of(messages)) for messages in self._kept.values())
