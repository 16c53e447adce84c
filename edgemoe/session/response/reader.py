"""Reads an answer as it grows: its text comes in by pieces, and goes out as parts, by the form of the model's answers.

However the text was cut into pieces, the parts say the same. No text is lost: what looks like a call and is none is
said as it stands. White space around thoughts and calls is not part of what is said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgemoe.session.response.calls import Tools, Writer, writer_of
from edgemoe.session.response.form import Field, ResponseForm
from edgemoe.session.response.parts import CallBegun, CallEnded, Part, Said, Thought
from edgemoe.session.response.scan import find, last_end

if TYPE_CHECKING:
    import regex

BETWEEN_THOUGHTS = "\n"
MOST_EMPTY = 4


class ResponseReader:
    """Reads one answer."""

    def __init__(
        self,
        form: ResponseForm,
        before: str = "",
        tools: Tools | None = None,
        eager: bool = False,
        most_calls: int | None = None,
    ) -> None:
        """`before`: the end of the prompt, whose part after the last start of an answer belongs to the answer.

        Without `tools` there are no calls. `eager` calls go out as they are written, and cannot be taken back where
        they turn out to be none; others go out at their end. After `most_calls` nothing more is read.
        """
        self.full = False
        """Whether the answer has all the calls that it may have: it ends here."""
        self._tools = tools or {}
        self._eager = eager
        self._most_calls = most_calls
        self._fields = [one for one in form.fields if self._tools or not one.is_call]
        self._outside = form.outside
        self._text = ""
        self._at = 0
        """The place in the text up to which it has been read."""
        self._field = self._outside
        self._raw = ""
        """The text of a call so far, with the marker that opened it."""
        self._writer: Writer | None = None
        self._held: list[Part] = []
        """The parts of a call that are to go out at its end."""
        self._begun = False
        """Whether parts of this call have gone out."""
        self._calls = 0
        self._said_space = self._thought_space = ""
        """White space of which it is not known yet whether it is part of the text."""
        self._said = self._thought = self._marked = False
        self._empty = 0
        self._opened = 0
        """The place at which the marker begins that opened the field."""
        self._passed = False
        """Whether a closing marker was taken for text, as it stood within a string."""
        self._heeds_strings = True
        start = last_end(form.start, before)
        if start is not None:
            self.push(before[start:])

    @property
    def in_thought(self) -> bool:
        return self._field is not None and self._field.is_thought

    def push(self, piece: str) -> list[Part]:
        """The parts that have become certain with a piece of text."""
        self._text += piece
        return self._read(False)

    def finish(self, cut: bool = False) -> list[Part]:
        """The rest of the parts. `cut`: whether the answer was ended from outside, so that no open call is whole."""
        parts = self._read(True)
        if self._writer is not None and self._passed and not (cut or self._begun) and self._writer.in_string:
            # The string has no end: the closing marker was one after all.
            self._field, self._writer, self._at = self._outside, None, self._opened
            self._heeds_strings = self._passed = False
            return parts + self.finish()
        if self._field is not None and self._field.is_call:
            parts += self._broken() if cut else self._end_call()
        if self._said_space and not (self._marked or self.full):
            parts.append(Said(self._said_space))
        return parts

    def _read(self, ended: bool) -> list[Part]:
        parts: list[Part] = []
        while not self.full:
            hold, found = self._next(ended)
            if found is None:
                parts += self._pass_on(self._text[self._at : hold])
                self._at = hold
                return parts
            field, closes, match = found
            parts += self._pass_on(self._text[self._at : match.start()])
            text = match[0]
            self._at = match.end()
            self._empty = 0 if text else self._empty + 1
            if self._empty > MOST_EMPTY:  # markers without a text keep opening and closing here
                self._at += 1
                parts += self._pass_on(self._text[self._at - 1 : self._at])
                if self._at > len(self._text):
                    return parts
            elif closes and self._heeds_strings and self._writer is not None and self._writer.in_string:
                self._passed = True
                parts += self._pass_on(text)
            elif closes:
                parts += self._close(text)
            else:
                self._opened, self._passed = match.start(), False
                parts += self._close("") + self._open(field, text, match.groupdict())
        return parts

    def _next(self, ended: bool) -> tuple[int, tuple[Field, bool, regex.Match[str]] | None]:
        """The first marker that is certain, and the place up to which the text is certain to have none."""
        hold = len(self._text)
        best: tuple[tuple[int, int, bool], Field, regex.Match[str]] | None = None
        for field, closes in self._watched():
            marker = field.close if closes else field.open
            assert marker is not None
            match, place = find(marker, self._text, self._at, ended)
            if match is None:
                hold = min(hold, place)
                continue
            key = match.start(), -match.end(), closes
            if best is None or key < best[0]:
                best = key, field, match
        if best is None or (best[0][0] >= hold and hold < len(self._text)):
            return hold, None
        return hold, (best[1], best[0][2], best[2])

    def _watched(self) -> list[tuple[Field, bool]]:
        if self._field is not self._outside and self._field is not None:
            return [(self._field, True)] if self._field.close is not None else []
        opening = [(one, False) for one in self._fields if one.open is not None]
        closing = self._outside is not None and self._outside.close is not None
        return opening + [(self._outside, True)] * closing  # type: ignore[list-item]

    def _open(self, field: Field, text: str, captures: dict[str, str | None]) -> list[Part]:
        self._field, self._raw = field, text
        if field.is_thought:
            self._marked = True
            self._thought_space = BETWEEN_THOUGHTS if self._thought else ""
        if not field.is_call:
            return []
        self._held, self._begun = [], False
        try:
            self._writer = writer_of(field, {key: value for key, value in captures.items() if value}, self._tools)
        except ValueError:
            return self._broken()
        return []

    def _pass_on(self, text: str) -> list[Part]:
        """The parts that a text within the field brings."""
        field = self._field
        if not text:
            return []
        if field is not None and field.is_thought:
            return self._think(text)
        if field is None or not field.is_call:
            return self._say(text)
        if self._writer is None:  # it has turned out to be none
            return self._say(text)
        self._raw += text
        try:
            parts = self._written(self._writer.push(text))
        except RecursionError:
            return self._broken()
        return parts + self._broken() if self._writer.failed else parts

    def _close(self, text: str) -> list[Part]:
        field, parts = self._field, list[Part]()
        if field is not None and field.is_thought:
            self._thought_space = ""
        elif field is not None and field.is_call:
            if self._writer is None:
                parts = self._say(text)
            else:
                self._raw += text
                parts = self._end_call()
        self._field = self._outside
        return parts

    def _written(self, parts: list[Part]) -> list[Part]:
        """The parts of a call that may go out now."""
        self._held += parts
        name = next((one.name for one in self._held if isinstance(one, CallBegun)), None)
        field = self._field
        if not self._eager or (
            not self._begun and field is not None and field.offered_only and name not in self._tools
        ):
            return []
        gone, self._held = self._held, []
        if gone and not self._begun:
            self._begun = self._marked = True
        return gone

    def _end_call(self) -> list[Part]:
        """The rest of a call that ends here, or its text where it is none."""
        if self._writer is None:
            return []
        try:
            self._held += self._writer.finish()
            begun = [one.name for one in self._held if isinstance(one, CallBegun)]
            if self._field is not None and self._field.offered_only and not {*begun} <= {*self._tools}:
                raise ValueError("no tool has this name")
        except (ValueError, RecursionError):
            return self._broken()
        parts, self._held, self._writer = self._held, [], None
        self._marked = True
        self._calls += sum(isinstance(one, CallEnded) for one in parts)
        self.full = self._most_calls is not None and self._calls >= self._most_calls
        if self.full and self._most_calls is not None and self._calls > self._most_calls:
            ends = [place for place, one in enumerate(parts) if isinstance(one, CallEnded)]
            parts = parts[: ends[self._most_calls - self._calls - 1] + 1]
        return parts

    def _broken(self) -> list[Part]:
        """The text of what seemed to be a call."""
        if self._writer is None and not self._raw:
            return []
        self._writer, self._held = None, []
        raw, self._raw = self._raw, ""
        ended: list[Part] = [CallEnded(False)] if self._begun else []
        self._begun = False
        return ended + self._say(raw)

    def _say(self, text: str) -> list[Part]:
        text = self._said_space + text
        shown = text.rstrip()
        self._said_space = text[len(shown) :]
        if not shown:
            return []
        if not self._said and self._marked:
            shown = shown.lstrip()
        self._said = True
        return [Said(shown)]

    def _think(self, text: str) -> list[Part]:
        text = self._thought_space + text
        shown = text.rstrip()
        self._thought_space = text[len(shown) :]
        if not shown:
            return []
        if not self._thought:
            shown = shown.lstrip()
        self._thought = True
        return [Thought(shown)]
