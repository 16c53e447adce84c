"""The conversation loop: reads messages and commands, shows answers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgemoe.cli.interrupts import on_interrupt
from edgemoe.cli.parameters import with_flags
from edgemoe.cli.remarks import cut_remark, prompt_remark
from edgemoe.cli.slash import COMMANDS, resembled
from edgemoe.cli.terminal.figures import statistics_line
from edgemoe.cli.terminal.heatmap import HeatMap, fold
from edgemoe.cli.terminal.screen import Screen
from edgemoe.errors import EdgemoeError, UsageError
from edgemoe.session.chat import Answer, ChatSession
from edgemoe.session.generate import Generation
from edgemoe.session.model import Model

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Repl:
    """A conversation on a screen. If `interactive`, errors are shown and the loop goes on; else they end it."""

    def __init__(self, model: Model, chat: ChatSession, screen: Screen, interactive: bool) -> None:
        self.model = model
        self.chat = chat
        self.screen = screen
        self.ended = False
        self.live_map = False
        self.last_generation: Generation | None = None
        self.last_uses: npt.NDArray[np.int64] | None = None
        """How often each expert was routed to in the last answer, `(layers, E)`."""
        self._interactive = interactive

    def run(self, read: Callable[[], str | None]) -> None:
        """Read and answer until `read` returns None or the person quits."""
        while not self.ended:
            text = read()
            if text is None:
                break
            if text.strip():
                self.handle(text)

    def handle(self, text: str) -> None:
        """Handle one input: a command (`/name`), or a message.

        A message may begin with a slash, as `/no_think` does: only commands and words that resemble one are not sent.
        `//` begins a message whose text starts with one slash, whatever the word after it.
        """
        try:
            name, _, argument = text.removeprefix("/").strip().partition(" ")
            if not text.startswith("/") or text.startswith("//"):
                self.answer(self.chat.send(text.removeprefix("/") if text.startswith("//") else text))
            elif name in COMMANDS:
                COMMANDS[name].action(self, argument.strip())
            elif meant := resembled(name):
                raise UsageError(
                    f"there is no command /{name}: did you mean /{meant}?",
                    f"/help lists the commands; //{name} sends it as a message.",
                )
            else:
                self.answer(self.chat.send(text))
        except EdgemoeError as error:
            if not self._interactive:
                raise
            self.screen.error(with_flags(str(error)))
        except OSError as error:  # a failing disk or terminal must not end the conversation
            if not self._interactive:
                raise
            self.screen.error(f"{error.strerror or error}. The conversation is still here: /save keeps it.")
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            self.screen.note("stopped")

    def answer(self, answer: Answer) -> None:
        """Show an answer as it is generated, then remarks about it."""
        if answer.newly_forgotten_turns:
            self.screen.note(f"the context is full: the oldest {_turns(answer.newly_forgotten_turns)} forgotten")
        generation = self.last_generation = answer.generation
        uses_before = self.model.engine.expert_uses.copy()

        def current_map(rows: int, columns: int) -> HeatMap | None:
            self.last_uses = self.model.engine.expert_uses - uses_before
            return self.map(rows, columns)

        generation.on_long_prompt = lambda estimate: self.screen.note(prompt_remark(estimate))
        # always closed, so that a stopped answer joins the conversation as far as it went
        with on_interrupt(answer.stop), contextlib.closing(iter(answer)) as pieces:
            self.screen.stream(pieces, current_map if self.live_map else None)
        if generation.finish_reason == "interrupted" and not self._interactive:
            raise KeyboardInterrupt
        self.last_uses = self.model.engine.expert_uses - uses_before
        if self.live_map and (heat_map := self.map(*self.screen.map_size)):
            self.screen.heat_map(heat_map)
        if generation.finish_reason == "interrupted":
            self.screen.note(
                "stopped; the text so far is kept"
                if answer.joined
                else "stopped before the answer began; the message is removed"
            )
        else:
            if remark := cut_remark(generation.finish_reason, len(generation.token_ids), " or /set max_tokens N"):
                self.screen.remark(remark)
            if not answer.joined:
                self.screen.remark("the model ended without an answer to you; the message is removed")
        if answer.call is not None:
            self.screen.remark(f"the model calls {answer.call.name}: your next message is the result")
        if generation.statistics:
            line = statistics_line(generation.statistics, len(generation.token_ids), self.model.engine.memory)
            self.screen.note(line)

    def map(self, rows: int, columns: int) -> HeatMap | None:
        """The map of the last answer's expert uses, None if there is none."""
        if self.last_uses is None:
            return None
        return fold(self.last_uses, self.model.engine.resident_experts(), rows, columns)


def _turns(count: int) -> str:
    return "turn is" if count == 1 else f"{count} turns are"
