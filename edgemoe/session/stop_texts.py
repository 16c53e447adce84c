"""Texts that end an answer where they appear."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Passes a growing text on, up to the first of some texts; holds back what may still become one of them.

    The text that is complete first counts, and of two that are complete at once the longer: so the result does not
    depend on how the growing text was cut into pieces.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.first: str | None = None
        """The text that has appeared: nothing more is passed on."""
        self._texts = texts
        self._held = ""

    def push(self, piece: str) -> str:
        """The text that has become certain with this piece; may be empty."""
        if not self._texts or self.first is not None:
            return piece if self.first is None else ""
        text = self._held + piece
        places = [(place + len(stop), place, stop) for stop in self._texts if (place := text.find(stop)) >= 0]
        if places:
            _, certain, self.first = min(places)
        else:
            certain = len(text) - self._possible_beginning(text)
        self._held = text[certain:] if self.first is None else ""
        return text[:certain]

    def finish(self) -> str:
        """The text that is still held back when no more comes."""
        held, self._held = self._held, ""
        return held

    def _possible_beginning(self, text: str) -> int:
        """The length of the longest end of `text` that one of the texts begins with."""
        longest = max(len(stop) for stop in self._texts) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._texts):
                return length
        return 0
