"""Programs that people use, against the bundled model: packages of OpenAI and Anthropic, a suite of conformance."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edgemoe.engine.options import EngineOptions
from edgemoe.server.opening import open_to_serve
from edgemoe.server.server import Server
from edgemoe.server.settings import ServerSettings

pytestmark = pytest.mark.serve

GREEDY = {"temperature": 0}
"""Not every version of Anthropic's package has it as a parameter."""
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
STORY = [{"role": "user", "content": "Tell me a story."}]

WITHOUT = {
    "openai-chat": ("chat-image-input",),
    "anthropic": ("anth-image-input",),
    "open-responses": ("image-input",),
}
"""Tests of what the server does not do: pictures."""
TOOL = {"name": "weather", "description": "The weather of a city.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 40}}, "required": ["city"],
    "additionalProperties": False,
}}  # fmt: skip
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def bundled() -> Iterator[Server]:
    options, settings = EngineOptions(context_length=1024), ServerSettings(port=0, seed=0)
    with Server(lambda: open_to_serve(None, options), settings).start() as server:
        yield server  # whose answers are the same each time: one in twelve is cut off in a tool call without an end


@pytest.mark.parametrize(("form", "least"), [("openai-chat", 7), ("anthropic", 7), ("open-responses", 11)])
def test_the_suite_of_conformance_passes(bundled: Server, form: str, least: int) -> None:
    pytest.importorskip("llm_comply")
    command = [Path(sys.executable).with_name("llm-comply"), "--format", form, "-u", f"{bundled.url}/v1", "-k", "any"]
    done = subprocess.run([*command, "-m", "any", "--json"], capture_output=True, text=True, timeout=300)
    results = {result["id"]: result for result in json.loads(done.stdout)["results"]}
    failed = {name: one["errors"] for name, one in results.items() if one["status"] == "failed"}
    assert failed.keys() == set(WITHOUT[form]), failed
    assert sum(one["status"] == "passed" for one in results.values()) >= least


@pytest.fixture
def openai_client(bundled: Server) -> Any:
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{bundled.url}/v1", api_key="any", max_retries=0)


@pytest.fixture
def anthropic_client(bundled: Server) -> Any:
    anthropic = pytest.importorskip("anthropic")
    return anthropic.Anthropic(base_url=bundled.url, api_key="any", max_retries=0)


def test_openai_chats(openai_client: Any) -> None:
    create = openai_client.chat.completions.create
    whole = create(model="any", messages=QUESTION, temperature=0, max_tokens=30, logprobs=True, top_logprobs=2)
    text = whole.choices[0].message.content
    assert "Paris" in text
    assert "".join(entry.token for entry in whole.choices[0].logprobs.content) == text
    options = {"include_usage": True}
    stream = create(model="any", messages=QUESTION, temperature=0, max_tokens=30, stream=True, stream_options=options)
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_openai_calls_tools_and_keeps_to_schemas(openai_client: Any) -> None:
    create = openai_client.chat.completions.create
    settings = {"model": "any", "temperature": 0, "tools": [{"type": "function", "function": TOOL}]}
    whole = create(messages=WEATHER, tool_choice="required", parallel_tool_calls=False, **settings)
    (call,) = whole.choices[0].message.tool_calls
    assert (call.function.name, [*json.loads(call.function.arguments)]) == ("weather", ["city"])
    with openai_client.chat.completions.stream(
        messages=WEATHER, tool_choice="required", parallel_tool_calls=False, **settings
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.arguments == call.function.arguments
    result = {"role": "tool", "tool_call_id": call.id, "content": "18 degrees, sunny"}
    after = create(messages=[*WEATHER, whole.choices[0].message, result], max_tokens=30, **settings)
    assert after.choices[0].message.content
    assert after.usage.prompt_tokens_details.cached_tokens >= (whole.usage.total_tokens - 2) // 64 * 64
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": TOOL["parameters"], "strict": True}}
    told = create(model="any", messages=WEATHER, temperature=0, response_format=form)
    assert [*json.loads(told.choices[0].message.content)] == ["city"]


def test_openai_continues_texts_and_lists_models(openai_client: Any) -> None:
    whole = openai_client.completions.create(model="any", prompt="One, two,", temperature=0, max_tokens=8, echo=True)
    assert whole.choices[0].text.startswith("One, two,")
    (model,) = openai_client.models.list()
    assert openai_client.models.retrieve(model.id).id == model.id == "smollm2-135m-moe"


def test_openai_responds(openai_client: Any) -> None:
    create = openai_client.responses.create
    whole = create(model="any", input=QUESTION[0]["content"], temperature=0)
    assert "Paris" in whole.output_text
    events = list(create(model="any", input=QUESTION[0]["content"], temperature=0, stream=True))
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == whole.output_text
    next_one = create(model="any", input="And of Italy?", previous_response_id=whole.id, max_output_tokens=5)
    assert next_one.status in ("completed", "incomplete")


def test_openai_is_told_of_errors(openai_client: Any) -> None:
    import openai

    long = [{"role": "user", "content": "word " * 3000}]
    with pytest.raises(openai.BadRequestError) as raised:
        openai_client.chat.completions.create(model="any", messages=long)
    assert raised.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="tools"):
        openai_client.chat.completions.create(model="any", messages=QUESTION, tools=[{"type": "function"}])
    with pytest.raises(openai.InternalServerError, match="no embeddings"):
        openai_client.embeddings.create(model="any", input="x")


def test_anthropic_chats(anthropic_client: Any) -> None:
    create = anthropic_client.messages.create
    settings = {"model": "any", "max_tokens": 30, "messages": QUESTION, "system": "Be brief.", "extra_body": GREEDY}
    whole = create(**settings)
    assert "Paris" in whole.content[0].text
    with anthropic_client.messages.stream(**settings) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        final = stream.get_final_message()
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.stop_reason == whole.stop_reason == "end_turn"
    counted = anthropic_client.messages.count_tokens(model="any", messages=QUESTION, system="Be brief.")
    assert counted.input_tokens == whole.usage.input_tokens + whole.usage.cache_read_input_tokens


def test_anthropic_calls_tools(anthropic_client: Any) -> None:
    tools = [{"name": "weather", "description": TOOL["description"], "input_schema": TOOL["parameters"]}]
    settings = {"model": "any", "max_tokens": 100, "tools": tools, "extra_body": GREEDY}
    choice = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    whole = anthropic_client.messages.create(messages=WEATHER, tool_choice=choice, **settings)
    assert (whole.stop_reason, whole.content[-1].name) == ("tool_use", "weather")
    with anthropic_client.messages.stream(messages=WEATHER, tool_choice=choice, **settings) as stream:
        assert stream.get_final_message().content[-1].input == whole.content[-1].input
    result = {"type": "tool_result", "tool_use_id": whole.content[-1].id, "content": "18 degrees"}
    talk = [*WEATHER, {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
    assert anthropic_client.messages.create(messages=talk, **settings).content[0].text


def test_anthropic_is_told_of_errors(anthropic_client: Any) -> None:
    import anthropic

    long = [{"role": "user", "content": "word " * 3000}]
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: .* tokens > 1024 maximum"):
        anthropic_client.messages.create(model="any", max_tokens=9, messages=long)


def test_langchain_chats(bundled: Server) -> None:
    langchain = pytest.importorskip("langchain_openai")
    settings = {"model": "any", "api_key": "any", "max_retries": 0, "temperature": 0}
    chat = langchain.ChatOpenAI(base_url=f"{bundled.url}/v1", max_tokens=30, **settings)
    whole = chat.invoke(QUESTION)
    assert "Paris" in whole.content
    assert whole.usage_metadata["output_tokens"] > 0
    assert "".join(piece.content for piece in chat.stream(QUESTION)) == whole.content
    assert [one.content for one in chat.batch([QUESTION, QUESTION])] == [whole.content] * 2
    responding = langchain.ChatOpenAI(base_url=f"{bundled.url}/v1", use_responses_api=True, **settings)
    assert "Paris" in responding.invoke(QUESTION).text


def test_langchain_chats_in_the_manner_of_anthropic(bundled: Server) -> None:
    langchain = pytest.importorskip("langchain_anthropic")
    chat = langchain.ChatAnthropic(base_url=bundled.url, api_key="any", model="any", max_tokens=30, temperature=0)
    whole = chat.invoke(QUESTION)
    assert "Paris" in whole.text
    assert "".join(piece.text for piece in chat.stream(QUESTION)) == whole.text


def test_pydantic_ai_runs_an_agent_without_tools(bundled: Server) -> None:
    pytest.importorskip("pydantic_ai")
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel("any", provider=OpenAIProvider(base_url=f"{bundled.url}/v1", api_key="any"))
    agent = Agent(model, instructions="Be brief.", model_settings={"temperature": 0, "max_tokens": 30})
    first = agent.run_sync(QUESTION[0]["content"])
    assert "Paris" in first.output
    second = agent.run_sync("And of Italy?", message_history=first.all_messages())
    assert second.usage.input_tokens > first.usage.input_tokens > 0


def test_instructor_makes_objects(bundled: Server) -> None:
    instructor = pytest.importorskip("instructor")
    from openai import OpenAI
    from pydantic import BaseModel, Field

    class Weather(BaseModel):
        city: str = Field(max_length=40)

    client = OpenAI(base_url=f"{bundled.url}/v1", api_key="any", max_retries=0)
    settings = {"model": "any", "temperature": 0, "max_tokens": 100, "messages": WEATHER, "max_retries": 0}
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        asking = instructor.from_openai(client, mode=mode).chat.completions
        found, raw = asking.create_with_completion(response_model=Weather, **settings)
        assert isinstance(found, Weather)
        assert raw.usage.completion_tokens > 0
        *_, last = asking.create_partial(response_model=Weather, **settings)
        assert last.model_dump() == found.model_dump()


def test_all_interfaces_at_once_say_what_each_says_alone(openai_client: Any, anthropic_client: Any) -> None:
    def ask(number: int) -> str:
        sampling = {"seed": number, "temperature": 1.0}
        settings: dict[str, Any] = {"model": "any", "max_tokens": 16, "extra_body": sampling}
        if number % 3 == 0:
            return str(anthropic_client.messages.create(messages=STORY, **settings).content[0].text)
        if number % 3 == 1:
            return str(openai_client.chat.completions.create(messages=STORY, **settings).choices[0].message.content)
        return str(openai_client.completions.create(prompt="Once upon a time", **settings).choices[0].text)

    alone = [ask(number) for number in range(30)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(30))) == alone
    assert len(set(alone)) > 20
