"""A coding agent's session: every turn computes what is new in it, whatever else the agent asks in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from edgemoe.kernels.operations import PAGE_TOKENS
from edgemoe.server.server import Server
from edgemoe.server.settings import ServerSettings
from tests.server.client import Client
from tests.server.conftest import loader
from tests.support.scripted import scripted

pytestmark = pytest.mark.serve

MESSAGES = "/v1/messages"
TURNS = 12
TOOLS = [
    {
        "name": name,
        "description": f"{name} a file.",
        "input_schema": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    }
    for name in ("read", "edit")
]
CALL = 'I look.<tool_call>\n{"name": "read", "arguments": {"path": "a.py"}}\n</tool_call>'


def system(turn: int) -> list[dict[str, Any]]:
    """The system message, whose first line is another one with each request."""
    return [
        {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.0; cch={turn:05x};"},
        {
            "type": "text",
            "text": "You are a careful agent that edits code. " * 4,
            "cache_control": {"type": "ephemeral"},
        },
    ]


def asked(client: Client, body: dict[str, Any]) -> tuple[int, int, int, list[Any]]:
    """The tokens of a prompt that were computed, those of all of it, those of the answer, and the answer."""
    reply = client.post(MESSAGES, **body, max_tokens=200)
    assert reply.status == 200, reply.body
    usage = reply.json["usage"]
    prompt = usage["input_tokens"] + usage["cache_read_input_tokens"]
    return usage["input_tokens"], prompt, usage["output_tokens"], reply.json["content"]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def test_every_turn_computes_its_new_tokens_also_after_a_restart(
    tool_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE_DIR", str(tmp_path))
    messages: list[dict[str, Any]] = []
    held = 0
    for turn in range(TURNS):
        if turn in (0, TURNS // 2):  # the second server finds on disk what the first one has computed
            stack.close()
            load = loader(tool_store, context_length=4096, prefix_disk="64MiB")
            client = Client(stack.enter_context(Server(load, ServerSettings(port=0))))
            tokenizer = client.server.service.model.tokenizer
        content: Any = f"Step {turn}: go on, please."
        if messages:
            calls = [one for one in messages[-1]["content"] if one["type"] == "tool_use"]
            content = [{"type": "tool_result", "tool_use_id": one["id"], "content": "x = 1"} for one in calls] + [
                {"type": "text", "text": content}
            ]
        messages.append({"role": "user", "content": content})
        with scripted(tokenizer) as script:
            script.say(CALL if turn % 3 == 1 else f"Done with step {turn}.", "A title")
            body = {"system": system(turn), "tools": TOOLS, "messages": messages}
            computed, prompt, written, answer = asked(client, body)
            if turn:
                assert computed <= prompt - held + PAGE_TOKENS
            held = prompt + written
            messages.append({"role": "assistant", "content": answer})
            title = {"system": "Make a title of this.", "messages": [{"role": "user", "content": str(messages)[:400]}]}
            asked(client, title)
    assert held > 20 * PAGE_TOKENS
