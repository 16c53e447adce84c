"""Answers, streams and errors against the schemas that the interfaces' owners publish, as llm-comply has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.server.client import Client
from tests.server.test_tools import ANSWER, CHAT, FUNCTION, HELLO, MESSAGES, RESPONSES, SCHEMA, TOOLS
from tests.support.scripted import Script

pytestmark = pytest.mark.serve


@pytest.fixture(scope="module")
def specs() -> dict[str, Any]:
    """The published schemas of each interface."""
    package = pytest.importorskip("llm_comply")
    pytest.importorskip("jsonschema")
    from llm_comply.schema import SpecLoader

    folder = Path(package.__file__).parent / "specs"
    return {name: SpecLoader(str(folder / f"{name}.json")) for name in ("openai_chat", "anthropic", "openresponses")}


def check(spec: Any, schema: str, found: list[Any]) -> None:
    assert found
    for one in found:
        assert spec.validate(one, schema) == [], one


def without_null(chunk: dict[str, Any]) -> dict[str, Any]:
    """A chunk before its answer's end: the schema allows null there in its words alone."""
    choices = [{**one, "finish_reason": one["finish_reason"] or "stop"} for one in chunk["choices"]]
    return {name: value for name, value in {**chunk, "choices": choices}.items() if value is not None}


def test_openai_s_chats_and_texts(tool_client: Client, script: Script, specs: dict[str, Any]) -> None:
    spec = specs["openai_chat"]
    for body in ({"tools": TOOLS}, {"logprobs": True, "top_logprobs": 2, "n": 2}, {"tools": TOOLS, "n": 2}):
        script.say(*[ANSWER] * 4)
        asked: dict[str, Any] = {"messages": HELLO, "max_tokens": 500, **body}
        check(spec, "CreateChatCompletionResponse", [tool_client.post(CHAT, **asked).json])
        *chunks, _ = tool_client.stream(CHAT, **asked, stream_options={"include_usage": True})
        script.clear()
        check(spec, "CreateChatCompletionStreamResponse", [without_null(one.json) for one in chunks])
    script.say(*["one and two"] * 6)
    asked = {"prompt": ["Hi", "Ho"], "max_tokens": 20, "logprobs": 2}
    check(spec, "CreateCompletionResponse", [tool_client.post("/v1/completions", **asked).json])
    *chunks, _ = tool_client.stream("/v1/completions", **asked)
    check(spec, "CreateCompletionResponse", [one.json for one in chunks if one.json["choices"][0]["finish_reason"]])
    wrong = [tool_client.post(CHAT, messages="Hi"), tool_client.post(CHAT, messages=HELLO, temperature=-1)]
    check(spec, "ErrorResponse", [one.json for one in wrong])


def test_anthropic_s_messages(tool_client: Client, script: Script, specs: dict[str, Any]) -> None:
    spec = specs["anthropic"]
    asked = {"messages": HELLO, "max_tokens": 500, "tools": [{"name": "weather", "input_schema": SCHEMA}]}
    script.say(ANSWER, ANSWER)
    check(spec, "Message", [tool_client.post(MESSAGES, **asked).json])
    events = [one.json for one in tool_client.stream(MESSAGES, **asked)]
    check(spec, "MessageStreamEvent", [one for one in events if one["type"] != "ping"])
    check(spec, "CountMessageTokensResponse", [tool_client.post(f"{MESSAGES}/count_tokens", **asked).json])
    check(spec, "ErrorResponse", [tool_client.post(MESSAGES, messages=HELLO, max_tokens=-1).json])


def test_responses(tool_client: Client, script: Script, specs: dict[str, Any]) -> None:
    """Events of thoughts have OpenAI's names, which Open Responses lacks."""
    from llm_comply.schema import SSE_EVENT_TO_SCHEMA

    spec = specs["openresponses"]
    for body in ({"tools": [{"type": "function", **FUNCTION}]}, {"max_output_tokens": 30}):
        script.say(ANSWER, ANSWER)
        asked: dict[str, Any] = {"input": "Hi", **body}
        whole = tool_client.post(RESPONSES, **asked).json
        check(spec, "ResponseResource", [whole, tool_client.get(f"{RESPONSES}/{whole['id']}").json])
        events = [one for one in tool_client.stream(RESPONSES, **asked) if one.name in SSE_EVENT_TO_SCHEMA]
        assert len(events) > 5
        for one in events:
            assert spec.validate_sse_event(one.name, one.json) == [], one
