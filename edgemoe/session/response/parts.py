"""The parts of an answer, in the order in which they become certain."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Said:
    """Text for the person."""

    text: str


@dataclass(frozen=True)
class Thought:
    """Text that the model says to itself."""

    text: str


@dataclass(frozen=True)
class CallBegun:
    """The name of a tool that is called; its arguments follow."""

    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of the arguments of the call that was begun last, which together are a JSON object."""

    json: str


@dataclass(frozen=True)
class CallEnded:
    """The end of the call that was begun last."""

    whole: bool = True
    """False where the answer was cut, or went on otherwise than a call does: the arguments are no JSON then."""


Part = Said | Thought | CallBegun | CallArguments | CallEnded


@dataclass
class Call:
    """The call of a tool."""

    name: str
    arguments: str = ""
    """A JSON object, as the model wrote it."""
    whole: bool = True


@dataclass
class Message:
    """An answer, put together from its parts."""

    said: str = ""
    thought: str = ""
    calls: list[Call] = field(default_factory=list)

    def add(self, parts: Iterable[Part]) -> None:
        """Add what parts bring."""
        for part in parts:
            if isinstance(part, Said):
                self.said += part.text
            elif isinstance(part, Thought):
                self.thought += part.text
            elif isinstance(part, CallBegun):
                self.calls.append(Call(part.name))
            elif isinstance(part, CallArguments):
                self.calls[-1].arguments += part.json
            else:
                self.calls[-1].whole = part.whole


class Shown:
    """An answer as text for a person, in which thoughts and calls stand under headers, as channels do."""

    def __init__(self) -> None:
        self._header = ""
        self._any = False

    def text(self, parts: Iterable[Part]) -> str:
        """The text of further parts."""
        return "".join(self._text(part) for part in parts)

    def _text(self, part: Part) -> str:
        if isinstance(part, CallEnded):
            return ""
        if isinstance(part, CallArguments):
            return part.json
        if isinstance(part, CallBegun):
            return self._under(f"[{part.name}]", "")
        return self._under("[thinking]" if isinstance(part, Thought) else "", part.text)

    def _under(self, header: str, text: str) -> str:
        gap = ""
        if header != self._header or not text:
            gap = "\n\n" * self._any + (f"{header}\n" if header else "")
        self._header, self._any = header, True
        return gap + text
