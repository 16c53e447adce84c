"""Tools and schemas on the page: calls are shown, a person gives their results, answers keep to a schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.server.browser.opened import PREFERENCES, Opened
from tests.server.client import Client
from tests.support.scripted import Script

pytestmark = pytest.mark.serve

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"name": "weather", "parameters": SCHEMA}, {"type": "function", "function": {"name": "now"}}]
LONG = {**PREFERENCES, "sampling": {"max_tokens": 400}}
CALLS = [
    f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
    for name, arguments in (("weather", '{"city": "<b>Bern</b>"}'), ("now", "{}"))
]


def test_calls_are_shown_and_their_results_go_back(
    open_page: Callable[..., Opened], tool_client: Client, script: Script, tmp_path: Path
) -> None:
    opened = open_page(tool_client, LONG, accept_downloads=True)
    page = opened.go()
    page.get_by_label("Settings").first.click()
    page.get_by_label("Tools").fill('{"name": 1}')
    page.get_by_text("It cannot be used: expected functions").wait_for()
    page.get_by_label("Tools").fill(json.dumps(TOOLS))
    page.get_by_text("Functions that the model may call").wait_for()
    page.get_by_role("button", name="Done").click()
    script.say("<think>\nhm\n</think>\n\nLook:" + "\n".join(CALLS), "It rains.", "It snows.")
    opened.say("Hi")
    page.get_by_label("Result of weather").fill('{"sky": "grey"}')
    assert page.locator("article.assistant .call pre").all_inner_texts() == ['{\n  "city": "<b>Bern</b>"\n}', "{}"]
    page.get_by_label("Result of now").fill("noon")
    page.get_by_role("button", name="Send the results").click()
    page.get_by_text("It rains.").wait_for()
    opened.wait(2)
    assert page.locator("form.results").count() == 0
    page.locator("article.tool").first.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit the message").fill("white")
    page.get_by_role("button", name="Give this instead").click()
    page.get_by_text("It snows.").wait_for()
    opened.wait(2)
    _, called, *rest = opened.messages()
    assert [(one["name"], json.loads(one["arguments"])) for one in called["calls"]] == [
        ("weather", {"city": "<b>Bern</b>"}), ("now", {}),
    ]  # fmt: skip
    by_role = sorted((one["role"], one["text"]) for one in rest)
    assert by_role == [
        ("assistant", "It rains."), ("assistant", "It snows."),
        ("tool", "noon"), ("tool", "noon"), ("tool", "white"), ("tool", '{"sky": "grey"}'),
    ]  # fmt: skip
    page.reload()
    page.get_by_text("It snows.").wait_for()
    assert page.locator("article.tool pre").all_inner_texts() == ["white", "noon"]
    with page.expect_download() as download:
        page.get_by_role("button", name="Export all").click()
    download.value.save_as(tmp_path / "chats.json")
    other = open_page(tool_client)
    other.go()
    other.page.locator(".side input[type=file]").set_input_files(tmp_path / "chats.json")
    other.page.get_by_text("1 chat imported.").wait_for()
    assert other.messages()[1]["calls"] == called["calls"]
    assert opened.faults == other.faults == []


def test_results_stand_in_the_next_prompt(
    open_page: Callable[..., Opened], tool_client: Client, script: Script
) -> None:
    opened = open_page(tool_client, {**LONG, "tools": json.dumps(TOOLS)})
    sent: list[dict[str, Any]] = []
    opened.page.on("request", lambda one: sent.append(one.post_data_json) if one.method == "POST" else None)
    page = opened.go()
    script.say(CALLS[0], "Done.")
    opened.say("Hi")
    page.get_by_label("Result of weather").fill("sun")
    page.get_by_role("button", name="Send the result").click()
    opened.wait(2)
    first, second = sent
    assert [tool["function"]["name"] for tool in first["tools"]] == ["weather", "now"]
    user, called, result = second["messages"]
    (call,) = called["tool_calls"]
    assert (user["content"], call["function"]["name"]) == ("Hi", "weather")
    assert result == {"role": "tool", "tool_call_id": call["id"], "content": "sun"}
    figures = opened.messages()[-1]["figures"]
    assert figures["cache_n"] >= 64  # the call stands in the prompt as it was written


def test_answers_keep_to_a_schema(open_page: Callable[..., Opened]) -> None:
    opened = open_page()
    page = opened.go()
    page.get_by_label("Settings").first.click()
    schema = page.get_by_label("Answers in JSON")
    schema.fill("[]")
    page.get_by_text("It cannot be used: expected a JSON object.").wait_for()
    schema.fill(
        '{"type": "object", "properties": {"a": {"enum": [7]}}, "required": ["a"], "additionalProperties": false}'
    )
    page.get_by_role("button", name="Done").click()
    opened.say("Hi")
    opened.wait()
    assert opened.messages()[1]["text"] == '{"a": 7}'
    assert page.locator("pre.structured").inner_text() == '{\n  "a": 7\n}'
    page.get_by_label("Settings").first.click()
    schema.fill('{"type": "hiccup"}')
    page.get_by_role("button", name="Done").click()
    opened.say("Again")
    page.get_by_text("it cannot be enforced").wait_for()
    page.get_by_label("Settings").first.click()
    schema.fill("{")
    page.get_by_role("button", name="Done").click()
    page.get_by_role("button", name="Retry").last.click()
    page.locator("article.assistant .error", has_text="JSON").wait_for()
