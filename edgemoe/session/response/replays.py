"""Earlier calls as the same tokens: what a model wrote before goes into the next prompt as it was written.

A template spells an earlier call anew, and may do so otherwise than the model did (other spaces, or other escapes).
Then all tokens from there on would be others, and what was computed of them would be lost. So an answer with calls is
kept by the ids of its calls, and stands in later prompts as it was, where the template says the same in other words.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgemoe.session.conversation import ConversationEncoder
from edgemoe.session.response.calls import Tools
from edgemoe.session.response.form import ResponseForm
from edgemoe.session.response.parts import Message
from edgemoe.session.response.reader import ResponseReader
from edgemoe.session.tokenizer import Tokenizer

MOST_ANSWERS = 256
MOST_TOKENS = 2 << 20


@dataclass(frozen=True)
class _Kept:
    text: str
    """The prompt's text."""
    before: str
    ids: tuple[int, ...]
    """The ids of prompt and answer."""
    message: Message


class Replays:
    """The latest answers with calls; the one not used for the longest time makes way. For any number of threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def keep(
        self, names: Sequence[str], text: str, before: str, prompt_ids: Sequence[int], ids: Sequence[int], said: Message
    ) -> None:
        """Keep an answer by the ids of its calls."""
        if not names or not text or _meaning(said) is None:
            return
        with self._lock:
            self._kept[names[0]] = _Kept(text, before, (*prompt_ids, *ids), said)
            while len(self._kept) > MOST_ANSWERS or sum(len(one.ids) for one in self._kept.values()) > MOST_TOKENS:
                self._kept.popitem(last=False)

    def _find(self, name: str) -> _Kept | None:
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
            return self._kept.get(name)

    def ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        text: str,
        encoder: ConversationEncoder,
        form: ResponseForm,
        tools: Tools,
        tokenizer: Tokenizer,
    ) -> list[int] | None:
        """The ids of a conversation whose text this is, with the last answer that is kept as it was; None without one.

        Raises EdgemoeError as the template does.
        """
        for place in range(len(messages) - 1, -1, -1):
            calls = messages[place].get("tool_calls") or ()
            kept = self._find(str(calls[0].get("key", calls[0].get("id")))) if calls else None
            if kept is not None:
                break
        else:
            return None
        past = encoder.render_past(messages[: place + 1])
        if not (text.startswith(past) and past.startswith(kept.text)):
            return None
        told = past[len(kept.text) :]
        library = tokenizer.require()
        ends = [told.rfind(name) for one in tokenizer.stop_ids if (name := library.id_to_token(one))]
        end = max(ends, default=-1)
        if end < 0:
            return None
        reader = ResponseReader(form, kept.before, tools)
        said = Message()
        said.add([*reader.push(told[:end]), *reader.finish()])
        if _meaning(said) != _meaning(kept.message):
            return None
        return [*kept.ids, *tokenizer.encode(text[len(kept.text) + end :])]


def _meaning(message: Message) -> Any:
    """The meaning of a message, whatever white space is around it, and however its arguments are spelled."""
    try:
        calls = [(call.name, json.loads(call.arguments)) for call in message.calls]
    except ValueError:
        return None
    return message.said.strip(), message.thought.strip(), calls
