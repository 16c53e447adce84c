"""Calls of tools and thoughts in all dialects, whole and streamed, by a scripted model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.client import Client, Frame
from tests.support.scripted import Script

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"name": "weather", "description": "The weather.", "parameters": SCHEMA}
TOOLS = [{"type": "function", "function": FUNCTION}, {"type": "function", "function": {"name": "now"}}]
HELLO = [{"role": "user", "content": "Hi"}]
ARGUMENTS = '{"city":  "Bern", "days": 2}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
ANSWER = f'<think>\nhm\n</think>\n\nLook:\n{CALL}\n<tool_call>\n{{"name": "now"}}\n</tool_call>'


def deltas(frames: list[Frame]) -> list[dict[str, Any]]:
    return [one.json["choices"][0]["delta"] for one in frames if one.data != "[DONE]" and one.json["choices"]]


def test_chat_completions_tell_calls_and_thoughts(tool_client: Client, script: Script) -> None:
    script.say(ANSWER, ANSWER)
    choice = tool_client.post(CHAT, messages=HELLO, tools=TOOLS).json["choices"][0]
    message = choice["message"]
    assert (message["content"], message["reasoning_content"], choice["finish_reason"]) == ("Look:", "hm", "tool_calls")
    calls = [(one["function"]["name"], one["function"]["arguments"]) for one in message["tool_calls"]]
    assert calls == [("weather", ARGUMENTS), ("now", "{}")]
    assert all(one["type"] == "function" and len(one["id"]) == 9 for one in message["tool_calls"])
    frames = tool_client.stream(CHAT, messages=HELLO, tools=TOOLS)
    told = deltas(frames)
    assert "".join(one.get("content") or "" for one in told) == "Look:"
    assert "".join(one.get("reasoning_content", "") for one in told) == "hm"
    parts = [part for one in told for part in one.get("tool_calls", ())]
    assert [part["index"] for part in parts if "id" in part] == [0, 1]
    assert [part["function"]["name"] for part in parts if "id" in part] == ["weather", "now"]
    written = "".join(part["function"]["arguments"] for part in parts if part["index"] == 0)
    assert written == ARGUMENTS
    assert sum(part["index"] == 0 for part in parts) > 5  # they come as they are written
    assert frames[-2].json["choices"][0]["finish_reason"] == "tool_calls"


def test_messages_tell_calls_and_thoughts(tool_client: Client, script: Script) -> None:
    script.say(ANSWER, ANSWER)
    tools = [{"name": "weather", "input_schema": SCHEMA}, {"name": "now", "input_schema": {"type": "object"}}]
    body = {"messages": HELLO, "tools": tools, "max_tokens": 500}
    found = tool_client.post(MESSAGES, **body).json
    assert [part["type"] for part in found["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert found["content"][2]["input"] == json.loads(ARGUMENTS)
    assert found["stop_reason"] == "tool_use"
    frames = tool_client.stream(MESSAGES, **body)
    begun = [one.json["content_block"] for one in frames if one.name == "content_block_start"]
    assert [block["type"] for block in begun] == ["thinking", "text", "tool_use", "tool_use"]
    assert begun[2]["input"] == {}
    pieces = [one.json for one in frames if one.name == "content_block_delta" and one.json["index"] == 2]
    assert "".join(one["delta"]["partial_json"] for one in pieces) == ARGUMENTS
    assert [one.json["index"] for one in frames if one.name == "content_block_stop"] == [0, 1, 2, 3]
    assert frames[-2].json["delta"]["stop_reason"] == "tool_use"


def test_responses_tell_calls_and_thoughts(tool_client: Client, script: Script) -> None:
    script.say(ANSWER, ANSWER)
    tools = [{"type": "function", **FUNCTION}, {"type": "custom", "name": "now"}, {"type": "web_search"}]
    reply = tool_client.post(RESPONSES, input="Hi", tools=tools)
    assert "no tool of type web_search" in reply.headers["x-edgemoe-warning"]
    items = reply.json["output"]
    kinds = ["reasoning", "message", "function_call", "custom_tool_call"]
    assert [item["type"] for item in items] == kinds
    assert (items[2]["name"], items[2]["arguments"]) == ("weather", ARGUMENTS)
    frames = tool_client.stream(RESPONSES, input="Hi", tools=tools)
    assert [one.json["item"]["type"] for one in frames if one.name == "response.output_item.added"] == kinds
    done = [one.json for one in frames if one.name == "response.output_item.done"]
    assert [one["output_index"] for one in done] == [0, 1, 2, 3]
    assert [one["item"] for one in done] == frames[-1].json["response"]["output"]
    pieces = [one.json["delta"] for one in frames if one.name == "response.function_call_arguments.delta"]
    assert "".join(pieces) == ARGUMENTS
    assert [one.json["sequence_number"] for one in frames] == list(range(len(frames)))


def prompt_of(client: Client, **body: Any) -> str:
    found = client.post("/apply-template", **body).json["prompt"]
    assert isinstance(found, str)
    return found


def test_earlier_calls_and_results_reach_the_template_in_every_dialect(tool_client: Client, script: Script) -> None:
    called = {"id": "abc", "type": "function", "function": {"name": "weather", "arguments": '{"city": "B"}'}}
    chat = [
        *HELLO,
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "abc", "content": "sun"},
    ]
    text = prompt_of(tool_client, messages=chat, tools=TOOLS)
    assert "<think>\nhm\n</think>" in text
    assert '"arguments": {"city": "B"}}\n</tool_call>' in text
    assert "<|im_start|>tool\nsun<|im_end|>" in text
    tokens = len(text)
    for path, body in (
        (f"{MESSAGES}", {
            "messages": [
                *HELLO,
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm"},
                    {"type": "tool_use", "id": "abc", "name": "weather", "input": {"city": "B"}},
                ]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "abc", "content": "sun"}]},
            ],
            "max_tokens": 5,
        }),
        (RESPONSES, {
            "input": [
                *HELLO,
                {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}], "summary": []},
                {"type": "function_call", "call_id": "abc", "name": "weather", "arguments": '{"city": "B"}'},
                {"type": "function_call_output", "call_id": "abc", "output": "sun"},
            ],
        }),
    ):  # fmt: skip
        script.say("fine")
        found = tool_client.post(path, **body).json
        without = prompt_of(tool_client, messages=chat)
        ids = tool_client.post("/tokenize", content=without).json["tokens"]
        usage = found["usage"]
        assert usage["input_tokens"] + usage.get("cache_read_input_tokens", 0) == len(ids) < tokens


def test_an_earlier_answer_is_replayed_as_the_same_tokens(tool_client: Client, script: Script) -> None:
    script.say(ANSWER)
    first = tool_client.post(CHAT, messages=HELLO, tools=TOOLS).json
    message = first["choices"][0]["message"]
    results = [{"role": "tool", "tool_call_id": one["id"], "content": "ok"} for one in message["tool_calls"]]
    script.say("Done.")
    second = tool_client.post(CHAT, messages=[*HELLO, message, *results], tools=TOOLS).json
    # all tokens of the first prompt and its answer but the last one, which was never run, are there
    usage = first["usage"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= (usage["total_tokens"] - 2) // 64 * 64
    replayed = tool_client.server.service._tools.replays  # type: ignore[union-attr]
    kept = next(reversed(replayed._kept.values()))
    assert len(kept.ids) == usage["total_tokens"]
    # said otherwise, it is another text
    changed = {**message, "content": "Listen:"}
    script.say("Done.")
    third = tool_client.post(CHAT, messages=[*HELLO, changed, *results], tools=TOOLS).json
    assert third["usage"]["prompt_tokens"] != second["usage"]["prompt_tokens"]


def test_one_call_at_a_time_where_asked(tool_client: Client, script: Script) -> None:
    script.say(ANSWER)
    reply = tool_client.post(CHAT, messages=HELLO, tools=TOOLS, parallel_tool_calls=False).json["choices"][0]
    assert [one["function"]["name"] for one in reply["message"]["tool_calls"]] == ["weather"]
    assert reply["finish_reason"] == "tool_calls"


def test_calls_that_are_none_become_text(tool_client: Client, script: Script) -> None:
    broken = '<tool_call>\n{"name": "weather", oh no}\n</tool_call>'
    script.say(broken, CALL, CALL)
    assert tool_client.post(CHAT, messages=HELLO, tools=TOOLS).json["choices"][0]["message"]["content"] == broken
    for more in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = tool_client.post(CHAT, messages=HELLO, **more).json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
    script.say(CALL)
    cut = tool_client.post(CHAT, messages=HELLO, tools=TOOLS, max_tokens=30).json["choices"][0]
    assert (cut["message"]["content"], cut["finish_reason"]) == (CALL[: len(CALL) - len(CALL[30 + 10 :])], "length")


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}], ids=["required", "named"]
)
def test_a_demanded_call_is_made_by_any_weights(tool_client: Client, choice: Any) -> None:
    for seed in range(3):
        body = {"messages": HELLO, "tools": TOOLS, "tool_choice": choice, "temperature": 1.5, "seed": seed}
        found = tool_client.post(CHAT, **body, max_tokens=600).json["choices"][0]
        if found["finish_reason"] == "length":
            continue
        calls = found["message"]["tool_calls"]
        assert calls
        for one in calls:
            assert one["function"]["name"] in ("weather", "now")
            arguments = json.loads(one["function"]["arguments"])
            if one["function"]["name"] == "weather":
                assert isinstance(arguments["city"], str)
        assert not found["message"]["content"]
        return
    raise AssertionError("no answer came to its end")


def test_a_template_without_tools_is_told_of_them_in_the_system_message(client: Client) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "Be brief."}, *HELLO,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "noon"},
    ]  # fmt: skip
    text = prompt_of(client, messages=messages, tools=TOOLS)
    assert text.startswith("s:Be brief.\n\nYou can call functions.")
    assert 'a:<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n' in text
    assert text.endswith("u:<tool_response>\nnoon\n</tool_response>\na:")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('Roles must alternate!') }}", "Roles must alternate!"),
        ("{{ messages[0].content + messages | length }}", 'can only concatenate str (not "int") to str'),
    ],
    ids=["refuses", "fails"],
)
def test_a_template_that_takes_no_such_conversation_is_told_in_its_words(
    client: Client, monkeypatch: pytest.MonkeyPatch, template: str, words: str
) -> None:
    monkeypatch.setattr(client.server.service.model.template, "source", template)
    for path, body in (
        (CHAT, {"messages": HELLO}),
        (CHAT, {"messages": HELLO, "stream": True}),
        (MESSAGES, {"messages": HELLO, "max_tokens": 5}),
        (f"{MESSAGES}/count_tokens", {"messages": HELLO}),
        (RESPONSES, {"input": "Hi"}),
        ("/apply-template", {"messages": HELLO}),
    ):
        reply = client.post(path, **body)
        assert (reply.status, reply.error["type"]) == (400, "invalid_request_error"), path
        assert words in reply.error["message"]
