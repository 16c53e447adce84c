"""A conversation with a model: keeps the messages, and reuses what the engine has already computed of them.

Every turn renders the whole conversation with the chat template; the ids that the engine already holds
from the turn before are kept, so only the new ones are computed.

When the context is full the oldest turns are forgotten (the system message stays) until the conversation
fills at most half of the context, so that it does not happen again at once. Forgotten turns are still
saved by `save`. An answer that was stopped stays in the conversation as far as it went; a message whose
answer had not begun is removed. A model's thoughts in a channel of their own do not stay, only the answer does: where
there is none (the model called a tool, or was cut short in its thoughts), the message is removed too.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from edgemoe.errors import EdgemoeError, StoreError, UsageError
from edgemoe.model.sampling import SamplingOptions
from edgemoe.session.conversation import ConversationEncoder, check_message
from edgemoe.session.generate import Generation, check_max_tokens, check_prompt_length, check_text_fits
from edgemoe.session.held_tokens import HeldTokens
from edgemoe.session.model_files import read_json_object
from edgemoe.session.response.parts import Call, Message, Shown
from edgemoe.session.template import ChatTemplate
from edgemoe.session.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgemoe.session.response.reader import ResponseReader
    from edgemoe.session.tools import ToolPrompt, ToolTexts

SAVE_VERSION = 1


class _Text(TypedDict):
    role: str
    content: str


class ChatMessage(_Text, total=False):
    """One message; role is `system`, `user`, `assistant` or `tool` (the result of a call, in place of the user's)."""

    tool_calls: list[dict[str, Any]]
    """The call that an answer ends with, in the form in which templates read it."""
    tool_call_id: str


class Answer:
    """An answer on its way: iterate over it for the pieces of text. It joins the conversation as it ends."""

    def __init__(
        self,
        chat: ChatSession,
        before: list[ChatMessage],
        question: ChatMessage,
        generation: Generation,
        forgotten: int,
        reader: ResponseReader | None = None,
    ) -> None:
        """`question`: the message that is answered; `reader` takes an answer apart that may call tools."""
        self.generation = generation
        self.newly_forgotten_turns = max(0, forgotten - chat.forgotten_turns)
        self._chat = chat
        self._before = before
        self._question = question
        self._forgotten = forgotten
        self._joined = False
        self._reader = reader
        self._said: str | None = None
        self.call: Call | None = None
        """The call of a tool with which the answer ended: the next message is its result."""

    def stop(self) -> None:
        """End after the token being computed; what was said so far stays."""
        self.generation.stop()

    @property
    def joined(self) -> bool:
        """Whether message and answer have joined the conversation: not where nothing was said to the person."""
        return self._joined

    def __iter__(self) -> Generator[str, None, None]:
        try:
            yield from self.generation if self._reader is None else self._read(self._reader)
        finally:
            answer = self.generation.answer if self._reader is None else self._said
            if answer is not None and (answer or self.generation.finish_reason not in (None, "interrupted")):
                said = ChatMessage(role="assistant", content=answer)
                if self.call is not None:
                    said["tool_calls"] = [_call(self.call, len(self._before))]
                self._chat.messages = [*self._before, self._question, said]
                self._chat.forgotten_turns = self._forgotten
                self._joined = True

    def _read(self, reader: ResponseReader) -> Generator[str, None, None]:
        """The pieces of an answer that may call a tool; it ends with the first call."""
        message = Message()
        shown = Shown()
        try:
            for piece in self.generation:
                parts = reader.push(piece)
                message.add(parts)
                if reader.full:
                    self.generation.end()
                if text := shown.text(parts):
                    yield text
            parts = reader.finish(self.generation.finish_reason != "stop")
            message.add(parts)
            if text := shown.text(parts):
                yield text
        finally:
            self.call = next((call for call in message.calls if call.whole), None)
            if message.said or self.call is not None or not message.thought:
                self._said = message.said


def _call(call: Call, place: int) -> dict[str, Any]:
    return {
        "id": f"call{place:05d}",  # nine letters and digits, which all templates accept
        "type": "function",
        "function": {"name": call.name, "arguments": json.loads(call.arguments)},
    }


class ChatSession:
    """A conversation: `messages` are its user and assistant turns, `system` stands before them."""

    def __init__(
        self,
        held: HeldTokens,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        options: SamplingOptions | None = None,
        max_tokens: int | None = None,
        system: str | None = None,
        template_variables: Mapping[str, Any] | None = None,
        literal: bool = False,
        tool_texts: Callable[[], ToolTexts] | None = None,
    ) -> None:
        """`max_tokens` limits each answer; None leaves it to the context. The next two are as in `Model.chat`.

        `tool_texts` makes the object that prompts with tools come from.
        """
        self.options = options or SamplingOptions()
        self.max_tokens = max_tokens
        self.system = system
        self.messages: list[ChatMessage] = []
        self.forgotten_turns = 0
        """Number of the oldest turns that the model no longer sees."""
        self._held = held
        self._tokenizer = tokenizer
        self._encoder = ConversationEncoder(tokenizer, template, template_variables, literal)
        self._variables = template_variables
        self._make_tool_texts = tool_texts
        self._tool_texts: ToolTexts | None = None
        self.tools: tuple[Mapping[str, Any], ...] = ()
        """Functions that the model may call, each with name, description and parameters."""

    def send(self, text: str) -> Answer:
        """The answer to a message. Raises UsageError for one that is no text, empty or does not fit the context."""
        check_message(text)
        if not text.strip() and self.awaited_call is None:
            raise UsageError("the message is empty: expected some text.", "Write something to answer.")
        return self._answer(list(self.messages), text)

    @property
    def awaited_call(self) -> dict[str, Any] | None:
        """The call whose result the next message is."""
        return _awaited(self.messages)

    def ask(self, text: str) -> str:
        """The whole answer to a message. Raises as `send`."""
        return "".join(self.send(text))

    def retry(self) -> Answer:
        """Answer the last message again, in place of the answer it has. Raises UsageError without one."""
        if not self.messages:
            raise UsageError("there is no answer to try again.", "Send a message first.")
        return self._answer(self.messages[:-2], self.messages[-2]["content"])

    def undo(self) -> str | None:
        """Take the last message and its answer back; returns the message, None where there is none."""
        if not self.messages:
            return None
        text = self.messages[-2]["content"]
        del self.messages[-2:]
        self.forgotten_turns = min(self.forgotten_turns, len(self.messages) // 2)
        return text

    def reset(self) -> None:
        """Forget all messages; the system message stays."""
        self.messages = []
        self.forgotten_turns = 0

    def save(self, path: Path) -> None:
        """Write the conversation as JSON, whole or not at all. Raises EdgemoeError where it cannot."""
        data = {"edgemoe_chat": SAVE_VERSION, "system": self.system, "messages": self.messages}
        if not path.name:
            raise EdgemoeError(f"{path}: expected the name of a file, found a folder.", "Such as talk.json.")
        temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            try:
                temporary.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise EdgemoeError(
                f"{path} cannot be written: {error.strerror}.", "Choose a folder that exists and is yours."
            ) from None

    def load(self, path: Path) -> None:
        """Load a saved conversation in place of this one. Raises EdgemoeError if the file is not one."""
        try:
            data = read_json_object(path)
        except StoreError as error:
            raise EdgemoeError(error.message, "Choose a file written by /save.") from None
        messages, system = data.get("messages"), data.get("system")
        valid = (
            data.get("edgemoe_chat") == SAVE_VERSION
            and (system is None or isinstance(system, str))
            and isinstance(messages, list)
            and len(messages) % 2 == 0
            and all(_is_message(m, (("user", "tool"), ("assistant",))[i % 2]) for i, m in enumerate(messages))
        )
        if not valid:
            raise EdgemoeError(
                f"{path}: expected a conversation saved by edgemoe (version {SAVE_VERSION}), found another file.",
                "Choose a file written by /save.",
            )
        self.messages = [_loaded(m) for m in data["messages"]]
        self.system = system
        self.forgotten_turns = 0

    @property
    def held_tokens(self) -> int:
        """Positions of the context that are in use."""
        return len(self._held.ids)

    @property
    def context_length(self) -> int:
        return self._held.engine.context_length

    def _answer(self, before: list[ChatMessage], text: str) -> Answer:
        check_max_tokens(self.max_tokens)
        check_text_fits(text, self._tokenizer, self.context_length)
        question = ChatMessage(role="user", content=text)
        if (call := _awaited(before)) is not None:
            question = ChatMessage(role="tool", content=text, tool_call_id=call["id"])
        prompt, forgotten = self._fit(before, question)
        reader = prompt.reader(eager=True)
        ids, spelled = prompt.ids, reader is not None
        generation = Generation(self._held, self._tokenizer, ids, self.options, self.max_tokens, spelled=spelled)
        return Answer(self, before, question, generation, forgotten, reader)

    def _fit(self, before: list[ChatMessage], question: ChatMessage) -> tuple[_Prompt | ToolPrompt, int]:
        """The prompt's ids with as many old turns as the context allows, and how many turns that leaves out."""
        turns = len(before) // 2
        forgotten = min(self.forgotten_turns, turns)
        prompt = self._prompt(before, question, forgotten)
        room_for_answer = min(self.max_tokens or self.context_length, self.context_length // 4)
        if len(prompt.ids) + room_for_answer > self.context_length and forgotten < turns:

            def fits(left_out: int) -> bool:
                return len(self._prompt(before, question, left_out).ids) <= self.context_length // 2

            # Each turn that is left out makes the prompt shorter.
            forgotten = bisect_left(range(turns), True, lo=forgotten + 1, key=fits)
            prompt = self._prompt(before, question, forgotten)
        check_prompt_length(len(prompt.ids), self.context_length)
        return prompt, forgotten

    def _prompt(self, before: list[ChatMessage], question: ChatMessage, forgotten: int) -> _Prompt | ToolPrompt:
        """The prompt without the oldest `forgotten` turns."""
        system = [ChatMessage(role="system", content=self.system)] if self.system else []
        messages = [*system, *before[2 * forgotten :], question]
        called = any(message["role"] == "tool" for message in messages)
        if self._make_tool_texts is None or not (self.tools or called):
            return _Prompt(self._encoder.encode(messages))
        if self._tool_texts is None:
            self._tool_texts = self._make_tool_texts()
        from edgemoe.session.tools import ToolWishes

        return self._tool_texts.prompt(messages, ToolWishes(self.tools, several=False), self._variables)


@dataclass(frozen=True)
class _Prompt:
    """A prompt without tools, whose answer is text."""

    ids: list[int]

    def reader(self, eager: bool) -> ResponseReader | None:
        return None


def _awaited(messages: Sequence[ChatMessage]) -> dict[str, Any] | None:
    """The call with which a conversation ends."""
    calls = messages[-1].get("tool_calls") if messages else None
    return calls[0] if calls else None


def _is_message(value: object, roles: Sequence[str]) -> bool:
    if not isinstance(value, dict) or value.get("role") not in roles or not isinstance(value.get("content"), str):
        return False
    calls = value.get("tool_calls", [])
    return isinstance(calls, list) and all(
        isinstance(call, dict) and isinstance(call.get("id"), str) and isinstance(call.get("function"), dict)
        for call in calls
    )


def _loaded(value: Mapping[str, Any]) -> ChatMessage:
    made = ChatMessage(role=value["role"], content=value["content"])
    if value.get("tool_calls"):
        made["tool_calls"] = value["tool_calls"]
    if isinstance(value.get("tool_call_id"), str):
        made["tool_call_id"] = value["tool_call_id"]
    return made
