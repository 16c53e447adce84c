"""Finding markers in a text that grows, as early as they are certain and never earlier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgemoe.errors import StoreError
from edgemoe.session.response.form import Marker

if TYPE_CHECKING:
    import regex

LIMIT_SECONDS = 2.0


def find(marker: Marker, text: str, begin: int, ended: bool) -> tuple[regex.Match[str] | None, int]:
    """The first match of a marker from a place on, if it is certain, and the place before which there is none.

    `ended`: whether no more text follows. Raises StoreError for a pattern that takes too long.
    """
    try:
        match = marker.pattern.search(text, begin, partial=not ended, timeout=LIMIT_SECONDS)
        if match is None:
            return None, len(text)
        if ended or not (match.partial or _may_change(marker, match, text)):
            return match, match.start()
        return None, match.start()
    except TimeoutError:
        raise _too_slow(marker) from None


def last_end(marker: Marker, text: str) -> int | None:
    """The end of the last match of a marker; None without one. Raises StoreError for a pattern that takes too long."""
    try:
        return max((match.end() for match in marker.pattern.finditer(text, timeout=LIMIT_SECONDS)), default=None)
    except TimeoutError:
        raise _too_slow(marker) from None


def _too_slow(marker: Marker) -> StoreError:
    return StoreError(
        f"tokenizer_config.json: response_template: the pattern {marker.pattern.pattern!r:.80} takes too long.",
        "It is broken or hostile: remove it.",
    )


def _may_change(marker: Marker, match: regex.Match[str], text: str) -> bool:
    """Whether more text may change a match, or take it away."""
    if match.end() == len(text):
        return not marker.literal or match.start() == match.end()
    if marker.literal:
        return False
    pattern, begin, limit_s = marker.pattern, match.start(), LIMIT_SECONDS
    if not marker.lazy and pattern.fullmatch(text, begin, partial=True, timeout=limit_s) is not None:
        return True
    longer = pattern.match(text + "\0", begin, timeout=limit_s)  # no end of a text, nor of a line, follows
    return longer is None or longer.span() != match.span() or longer.groupdict() != match.groupdict()


class JsonScanner:
    """Follows a JSON text as it grows: how deep it is, whether it is within a string, and where values begin and end.

    It does not tell whether the text is JSON.
    """

    def __init__(self) -> None:
        self.text = ""
        self.in_string = False
        self.values: dict[str, tuple[int, int | None]] = {}
        """Begin and end of the value of each key of the outermost object; an end is None until it is certain."""
        self.end: int | None = None
        """The end of the outermost value."""
        self.read = 0
        """The length of the text that has been followed."""
        self.failed = False
        """Whether the text begins as no object does, or goes on after its end."""
        self._depth = self._string = 0
        self._escaped = False
        self._key: str | None = None
        self._awaits: Literal["key", "value"] = "key"

    def push(self, piece: str) -> None:
        """Follow a further piece."""
        self.text += piece
        while self.read < len(self.text) and not self.failed:
            self._step(self.text[self.read])
            self.read += not self.failed

    def _step(self, character: str) -> None:
        if self.in_string:
            if self._escaped or character == "\\":
                self._escaped = not self._escaped
            elif character == '"':
                self.in_string = False
                if self._depth == 1 and self._awaits == "key":
                    self._key = self.text[self._string + 1 : self.read]
            return
        if self._depth == 0:
            if character == "{" and self.end is None:
                self._depth = 1
            else:
                self.failed = not character.isspace()
            return
        if self._depth == 1 and self._awaits == "value" and self._key not in self.values and not character.isspace():
            self.values[str(self._key)] = (self.read, None)
        if character == '"':
            self.in_string, self._string = True, self.read
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            if self._depth == 0:
                self._end_value()
                self.end = self.read + 1
        elif self._depth == 1 and character == ":":
            self._awaits = "value"
        elif self._depth == 1 and character == ",":
            self._end_value()
        if self._depth == 1 and character in "}]" and self._key in self.values:
            self.values[str(self._key)] = (self.values[str(self._key)][0], self.read + 1)

    def _end_value(self) -> None:
        begin, end = self.values.get(str(self._key), (self.read, None))
        self.values[str(self._key)] = (begin, self.read if end is None else end)
        self._awaits, self._key = "key", None
