"""Channels: what a model says to itself, to the person, and to tools, in messages with headers (gpt-oss, "harmony").

    <|channel|>analysis<|message|>a thought<|end|><|start|>assistant<|channel|>final<|message|>the answer<|return|>

The markers are special tokens, which have no text, while the words of a header are plain tokens: as plain text this
would be `analysisa thoughtassistantfinalthe answer`. Here a header becomes a line of its own, such as `[analysis]`;
that of the final channel has none.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgemoe.session.special_tokens import ChannelMarkers
from edgemoe.session.spelled_texts import SpelledTexts
from edgemoe.session.tokenizer import Detokeniser, Tokenizer

LONGEST_HEADER = 64
"""Tokens of a header; more are no header but text."""
FINAL = ("", "final")
"""Headers of what is said to the person."""
_ROLE = "assistant"


def texts_of(
    tokenizer: Tokenizer, before: Sequence[int], spelled: bool = False
) -> Detokeniser | ChannelTexts | SpelledTexts:
    """Make the object that turns an answer's ids into text, with or without channels. `before`: the prompt's ids.

    `spelled`: special tokens stand by their names, for those who read the form of answers themselves.
    """
    if spelled:
        return SpelledTexts(tokenizer, before)
    markers = tokenizer.channel_markers
    return Detokeniser(tokenizer, before) if markers is None else ChannelTexts(tokenizer, markers, before)


class ChannelTexts:
    """As `Detokeniser`, for answers with channels: the pieces are the texts of the messages, under their headers."""

    def __init__(self, tokenizer: Tokenizer, markers: ChannelMarkers, before: Sequence[int] = ()) -> None:
        """`before`: the ids that stand before the first one. They may end within a header."""
        self.final_start: int | None = None
        """The place among the characters that were returned at which the final channel begins; None before it."""
        self._tokenizer = tokenizer
        self._markers = markers
        self._length = 0
        self._header: list[int] | None = None  # ids of the header that is being read; None within a message
        self._given = 0  # ids of the header that `before` ends with; 0 once a marker has come
        self._role = ""
        self._gap = ""
        opened = max((n for n, token in enumerate(before) if token in (markers.start, markers.channel)), default=None)
        if opened is None or markers.message in before[opened:] or markers.end in before[opened:]:
            self._body = Detokeniser(tokenizer, before)
            self.final_start = 0
            return
        self._body = Detokeniser(tokenizer)
        for token in before[opened:]:
            self.push(token)
        self._given = len(self._header or ())

    def push(self, token: int) -> str:
        """The text that this token completes; may be empty."""
        markers = self._markers
        if token in (markers.start, markers.channel):
            ended = self._end_message()
            self._role = "" if token == markers.start else self._read_header()
            self._header, self._given = [], 0
            return ended
        if token == markers.end:
            return self._end_message()
        if self._header is None:
            return self._said(self._body.push(token))
        if token == markers.message:
            return self._begin_message()
        self._header.append(token)
        return self._flush_header() if len(self._header) > LONGEST_HEADER else ""

    def finish(self) -> str:
        """The text of what is still held back."""
        held = self._flush_header() if self._header else ""
        return held + self._said(self._body.finish())

    def _read_header(self) -> str:
        """The text of the header so far, without the role `assistant`, which every answer has."""
        text = self._tokenizer.decode(self._header or []).strip()
        return " ".join(filter(None, (self._role, "" if text == _ROLE else text)))

    def _begin_message(self) -> str:
        name = self._read_header()
        self._header, self._role, self._body = None, "", Detokeniser(self._tokenizer)
        if name in FINAL:
            gap, self._gap = self._gap, ""
            self._length += len(gap)
            if self.final_start is None:
                self.final_start = self._length
            return gap
        return self._said(f"[{name}]\n")

    def _end_message(self) -> str:
        """The rest of the message, after which another may come."""
        if self._header is not None:
            return ""
        rest = self._said(self._body.finish())
        self._body = Detokeniser(self._tokenizer)
        self._gap = "\n\n" if self._length else ""
        return rest

    def _flush_header(self) -> str:
        """The text that seemed to be a header."""
        ids, self._header = self._header or [], None
        if self._given:  # the answer goes on from the prompt without any channel
            self.final_start = self._length
        self._body = Detokeniser(self._tokenizer, ids[: self._given])
        pieces = [self._body.push(token) for token in ids[self._given :]]
        return self._said("".join(pieces))

    def _said(self, piece: str) -> str:
        if piece:
            piece, self._gap = self._gap + piece, ""
            self._length += len(piece)
        return piece
