"""Anthropic's interface: whole answers, the events of a stream, counts of tokens, errors."""

from __future__ import annotations

from typing import Any

from tests.server.client import Client
from tests.support.every_case import every_case

PATH = "/v1/messages"
HELLO = [{"role": "user", "content": "Hello"}]
SAMPLED = {"temperature": 1.0, "seed": 5, "max_tokens": 12}
PROMPT_TOKENS = len("u:Hello\na:")


def openai_s(client: Client, messages: Any = HELLO, **body: Any) -> str:
    reply = client.post("/v1/chat/completions", messages=messages, **SAMPLED, **body)
    return str(reply.json["choices"][0]["message"]["content"])


def test_a_whole_answer_is_that_of_openai_s_interface(client: Client) -> None:
    found = client.post(PATH, messages=HELLO, **SAMPLED).json
    assert (found["type"], found["role"], found["model"]) == ("message", "assistant", "letters")
    assert found["content"] == [{"type": "text", "text": openai_s(client), "citations": None}]
    assert (found["stop_reason"], found["stop_sequence"]) == ("max_tokens", None)
    counts = [found["usage"][f"{name}_tokens"] for name in ("input", "output", "cache_read_input")]
    assert counts == [PROMPT_TOKENS, 12, 0]
    stop = openai_s(client)[3:5]
    stopped = client.post(PATH, messages=HELLO, stop_sequences=[stop], **SAMPLED).json
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", stop)


def test_a_stream_has_each_event_in_its_place(client: Client) -> None:
    frames = client.stream(PATH, messages=HELLO, **SAMPLED)
    names = [frame.name for frame in frames]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(names[2:-3]) == {"content_block_delta"}
    assert all(frame.json["type"] == frame.name for frame in frames)
    start, end = frames[0].json["message"], frames[-2].json
    assert start["usage"]["input_tokens"] == end["usage"]["input_tokens"] == PROMPT_TOKENS
    assert (end["delta"]["stop_reason"], end["usage"]["output_tokens"]) == ("max_tokens", 12)
    deltas = [frame.json["delta"] for frame in frames if frame.name == "content_block_delta"]
    assert "".join(delta["text"] for delta in deltas) == openai_s(client)


def test_the_system_message_in_both_forms_and_without_a_line_that_changes(client: Client) -> None:
    expected = openai_s(client, [{"role": "system", "content": "Be brief"}, *HELLO])
    billing = {"type": "text", "text": "x-anthropic-billing-header: cch=abc123;\nBe brief"}
    for system in ("Be brief", [{"type": "text", "text": "Be brief", "cache_control": {}}], [billing]):
        assert client.post(PATH, messages=HELLO, system=system, **SAMPLED).json["content"][0]["text"] == expected


def test_thoughts_of_earlier_turns_are_left_out(client: Client) -> None:
    said = [{"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "Hi"}]
    messages = [*HELLO, {"role": "assistant", "content": said}, {"role": "user", "content": "More"}]
    plain = [*HELLO, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "More"}]
    assert client.post(PATH, messages=messages, **SAMPLED).json["content"][0]["text"] == openai_s(client, plain)


def test_tokens_are_counted_also_of_what_does_not_fit(client: Client) -> None:
    counted = client.post(f"{PATH}/count_tokens", messages=HELLO, model="any")
    assert counted.json == {"input_tokens": PROMPT_TOKENS}
    long = [{"role": "user", "content": "x" * 1000}]
    assert client.post(f"{PATH}/count_tokens", messages=long).json == {"input_tokens": 1000 + len("u:\na:")}


@every_case(
    ("body", "says"),
    [
        ({"tools": [{"name": ""}]}, "tools[0].name: expected a name"),
        ({"tools": [{"name": "x", "type": "bash_20250124"}]}, "tools[0]: this server has no tool of type bash"),
        ({"tool_choice": {"type": "any"}}, "tool_choice: expected tools beside it"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name: expected the name of a tool"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema: expected a JSON schema"),
        ({"max_tokens": 0}, "max_tokens: expected a whole number, 1 or more"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "a part of type text, found image"),
        ({"system": 5}, "system: expected text"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "prompt is too long: 305 tokens > 256 maximum"),
    ],
)
def test_errors_have_anthropic_s_form(client: Client, body: Any, says: str) -> None:
    reply = client.post(PATH, **{"messages": HELLO, **SAMPLED, **body})
    assert (reply.status, reply.json["type"], reply.error["type"]) == (400, "error", "invalid_request_error")
    assert says in reply.error["message"]
    assert reply.json["request_id"].startswith("req_")


def test_thinking_has_no_effect_without_a_variable_of_the_template(client: Client) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    reply = client.post(PATH, messages=HELLO, thinking=thinking, **SAMPLED)
    assert reply.status == 200
    assert "thinking has no effect" in reply.headers["x-edgemoe-warning"]
