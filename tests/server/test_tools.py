"""Calls of tools and thoughts in all dialects, whole and streamed, by a scripted model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgemoe.server.responses_input import TEXT
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


def test_tools_of_namespaces_are_called_by_their_names_there(tool_client: Client, script: Script) -> None:
    now = {"type": "custom", "name": "now"}
    sky = [{"type": "function", **FUNCTION}, now]
    space = {"type": "namespace", "name": "mcp__sky__", "description": "Of the sky.", "tools": sky}
    tools = [space, now, {"type": "namespace", "name": "empty", "tools": []}]
    names = ("mcp__sky__weather", "now", "mcp__sky__now")
    calls = [f'<tool_call>\n{{"name": "{name}", "arguments": {{"input": "x"}}}}\n</tool_call>' for name in names]
    script.say(*2 * ["\n".join(calls)])
    reply = tool_client.post(RESPONSES, input="Hi", tools=tools).json
    items = reply["output"]
    assert [(one["type"], one.get("namespace"), one["name"]) for one in items] == [
        ("function_call", "mcp__sky__", "weather"),
        ("custom_tool_call", None, "now"),
        ("custom_tool_call", "mcp__sky__", "now"),
    ]
    frames = tool_client.stream(RESPONSES, input="Hi", tools=tools)
    (done,) = (one.json for one in frames if one.name == "response.function_call_arguments.done")
    assert done["name"] == "weather"
    unnamed = {"id": "", "call_id": ""}
    assert [{**one, **unnamed} for one in frames[-1].json["response"]["output"]] == [
        {**one, **unnamed} for one in items
    ]
    script.say("Done.")
    results = [{"type": "function_call_output", "call_id": one["call_id"], "output": "ok"} for one in items]
    after = tool_client.post(RESPONSES, input=[*HELLO, *items, *results], tools=tools).json["usage"]
    # the calls stand in the next prompt as the model wrote them
    assert after["input_tokens_details"]["cached_tokens"] >= (reply["usage"]["total_tokens"] - 2) // 64 * 64
    described = {**FUNCTION, "description": "Of the sky.\n\nThe weather."}
    flat = [("mcp__sky__weather", described), ("now", {}), ("mcp__sky__now", {})]
    text = {"parameters": TEXT}
    given = [{"type": "function", "function": {**text, **tool, "name": name}} for name, tool in flat[:1]]
    given += [{"type": "function", "function": {"name": name, **text}} for name in ("mcp__sky__now",)]
    told = tool_client.post(f"{RESPONSES}/input_tokens", input="Hi", tools=[space]).json["input_tokens"]
    assert told == tool_client.post(f"{CHAT}/input_tokens", messages=HELLO, tools=given).json["input_tokens"]
    for wrong in ({"type": "namespace"}, {**space, "tools": [*sky, now]}):
        assert tool_client.post(RESPONSES, input="Hi", tools=[wrong]).status == 400


def test_tokens_of_thoughts_are_counted_in_every_dialect(tool_client: Client, script: Script) -> None:
    script.say(*6 * ["<think>\nhm\n</think>\n\nHello"])
    thought = len(["<think>", *"\nhm\n", "</think>"])
    usage = tool_client.post(CHAT, messages=HELLO).json["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": thought}
    assert usage["completion_tokens"] == thought + len("\n\nHello")
    last = tool_client.stream(CHAT, messages=HELLO, stream_options={"include_usage": True})[-2].json["usage"]
    assert last["completion_tokens_details"] == {"reasoning_tokens": thought}
    body = {"messages": HELLO, "max_tokens": 50}
    for found in (tool_client.post(MESSAGES, **body), tool_client.stream(MESSAGES, **body)[-2]):
        assert found.json["usage"]["output_tokens_details"] == {"thinking_tokens": thought}
    for response in (
        tool_client.post(RESPONSES, input="Hi").json,
        tool_client.stream(RESPONSES, input="Hi")[-1].json["response"],
    ):
        assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": thought}


def test_a_thought_ends_with_its_budget(tool_client: Client) -> None:
    """A model that opens a thought with every token ends each one once all tokens for them are used."""
    think, end = (tool_client.post("/tokenize", content=one).json["tokens"][0] for one in ("<think>", "</think>"))
    greedy = {"temperature": 0, "max_tokens": 14, "logit_bias": {str(think): 100}}
    for most in (0, 1, 5):
        body = {"messages": HELLO, **greedy, "thinking_budget_tokens": most}
        choice = tool_client.post(CHAT, **body, logprobs=True).json["choices"][0]
        tokens = [one["token"] for one in choice["logprobs"]["content"]]
        assert tokens == ["<think>"] * max(0, most - 1) + (["<think>", "</think>"] * 7)[: 14 - max(0, most - 1)]
        plain = tool_client.post(CHAT, **body).json  # tokens that are certain are run together then
        assert plain["choices"][0]["message"] == choice["message"]
        assert plain["usage"]["completion_tokens_details"]["reasoning_tokens"] == 14
    body = {**greedy, "max_output_tokens": 6, "thinking_budget_tokens": 3}
    item = tool_client.post(RESPONSES, input="Hi", **body).json["output"][0]
    assert item["content"][0]["text"] == "<think><think>"
    reply = tool_client.post(MESSAGES, messages=HELLO, **greedy, thinking={"type": "enabled", "budget_tokens": 3})
    assert reply.json["content"][0]["thinking"].startswith("<think><think>")
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes"]}}}
    bias = {str(think): 100, str(end): -100}
    body = {"messages": HELLO, "logit_bias": bias, "temperature": 0, "max_tokens": 60, "response_format": form}
    found = tool_client.post(CHAT, **body, thinking_budget_tokens=9).json
    assert found["choices"][0]["message"]["content"] == '"yes"'
    assert found["usage"]["completion_tokens_details"]["reasoning_tokens"] == 10
    assert tool_client.post(CHAT, **body, thinking_budget_tokens=-1).json["choices"][0]["finish_reason"] == "length"


def test_wishes_about_thoughts_without_effect_are_remarked(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def remark(**body: Any) -> str:
        return str(client.post(CHAT, messages=HELLO, max_tokens=1, **body).headers["x-edgemoe-warning"])

    assert remark(thinking_budget_tokens=4) == "a limit of thoughts has no effect with this model's chat template"
    assert remark(reasoning_effort="none") == "reasoning_effort has no effect with this model's chat template"
    source = "{{ 'no thoughts' if not enable_thinking | default(true) else 'thoughts' }}"
    monkeypatch.setattr(client.server.service, "_read_variables", {})
    monkeypatch.setattr(client.server.service.model.template, "source", source)
    assert prompt_of(client, messages=HELLO, reasoning_effort="none") == "no thoughts"
    assert prompt_of(client, messages=HELLO, reasoning_effort="low") == "thoughts"
    lengths = [
        client.post(f"{MESSAGES}/count_tokens", messages=HELLO, thinking={"type": kind}).json["input_tokens"]
        for kind in ("disabled", "adaptive")
    ]
    assert lengths == [len("no thoughts"), len("thoughts")]


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
