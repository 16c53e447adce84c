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
