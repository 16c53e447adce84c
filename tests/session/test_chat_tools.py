"""Tools in a conversation from Python and in `edgemoe chat`'s own object: calls, their results, files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgemoe.errors import EdgemoeError
from edgemoe.session.model import Model

NOW = {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}}
CALL = '<tool_call>\n{"name": "now", "arguments": {"zone": "UTC"}}\n</tool_call>'


def test_a_call_is_shown_and_the_next_message_is_its_result(make_model: Callable[..., Model], tmp_path: Path) -> None:
    chat = make_model(says=f"Look.\n{CALL}\n{CALL}", context_length=2048).chat()
    chat.tools = (NOW,)
    answer = chat.send("What time is it?")
    assert "".join(answer) == 'Look.\n\n[now]\n{"zone": "UTC"}'
    assert answer.call is not None
    assert (answer.call.name, json.loads(answer.call.arguments)) == ("now", {"zone": "UTC"})
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]
    call = chat.awaited_call
    assert call is not None
    assert call["function"] == {"name": "now", "arguments": {"zone": "UTC"}}
    chat.ask("noon")
    assert chat.messages[2] == {"role": "tool", "content": "noon", "tool_call_id": call["id"]}
    path = tmp_path / "talk.json"
    chat.save(path)
    messages = list(chat.messages)
    chat.reset()
    chat.load(path)
    assert chat.messages == messages
    assert chat.undo() == "noon"
    assert chat.awaited_call == call
    assert "".join(chat.retry()).startswith("Look.")
    chat.tools = ()
    assert CALL in chat.ask("12:00")  # a model that is offered no tools makes no calls


def test_an_answer_without_a_call_is_as_ever(make_model: Callable[..., Model]) -> None:
    chat = make_model(context_length=2048).chat()
    chat.tools = (NOW,)
    answer = chat.send("Hi")
    assert ("".join(answer), answer.call, chat.awaited_call) == ("Hello, world!", None, None)
    assert chat.messages[-1] == {"role": "assistant", "content": "Hello, world!"}


@pytest.mark.parametrize("calls", [5, [5], [{"id": 1, "function": {}}], [{"id": "a", "function": 3}]])
def test_damaged_calls_in_a_file_are_refused(make_model: Callable[..., Model], tmp_path: Path, calls: object) -> None:
    path = tmp_path / "talk.json"
    said = {"role": "assistant", "content": "x", "tool_calls": calls}
    messages = [{"role": "user", "content": "Hi"}, said]
    path.write_text(json.dumps({"edgemoe_chat": 1, "system": None, "messages": messages}))
    with pytest.raises(EdgemoeError, match="expected a conversation saved by edgemoe"):
        make_model().chat().load(path)
