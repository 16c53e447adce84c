"""Chats on the page: asked, edited, tried again, stopped, kept, found and carried away; nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.server.browser.opened import Opened, until
from tests.server.client import Client

pytestmark = pytest.mark.serve


def answer_to(client: Client, *texts: str) -> str:
    """The server's answer to a conversation."""
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
    reply = client.post("/v1/chat/completions", messages=messages, temperature=0, max_tokens=60)
    content: str = reply.json["choices"][0]["message"]["content"]
    return content


def test_a_chat(open_page: Callable[..., Opened], client: Client) -> None:
    opened = open_page()
    page = opened.go()
    opened.say("Hello")
    opened.wait()
    opened.say("And then?")
    opened.wait(2)
    asked, first, again, second = opened.messages()
    assert (asked["text"], again["text"]) == ("Hello", "And then?")
    assert first["text"] == answer_to(client, "Hello")
    assert second["text"] == answer_to(client, "Hello", first["text"], "And then?")
    assert page.title() == "Hello · edgemoe"
    assert opened.faults == []


def test_edits_retries_and_branches_lose_nothing(open_page: Callable[..., Opened], client: Client) -> None:
    opened = open_page()
    page = opened.go()
    opened.say("Hello")
    opened.wait()
    page.locator("article.user").hover()
    page.locator("article.user").get_by_role("button", name="Edit").click()
    page.get_by_label("Edit the message").fill("Good day")
    page.get_by_role("button", name="Ask this instead").click()
    page.locator("article.user .branches", has_text="2 / 2").wait_for()
    opened.wait()
    page.locator("article.assistant").get_by_role("button", name="Retry").click()
    page.locator("article.assistant .branches", has_text="2 / 2").wait_for()
    page.locator("article.user").get_by_label("The version before").click()
    page.locator("article.user .plain", has_text="Hello").wait_for()
    texts = [one["text"] for one in opened.messages()]
    day = answer_to(client, "Good day")
    assert texts == ["Hello", answer_to(client, "Hello"), "Good day", day, day]
    page.locator("article.assistant").get_by_role("button", name="Branch").click()
    page.wait_for_function("document.querySelectorAll('.side li').length === 2")
    page.reload()
    page.locator("article.user .plain", has_text="Hello").wait_for()
    assert sorted(len(one["messages"]) for one in opened.kept()) == [2, 5]


def test_a_reload_in_the_middle_of_an_answer_loses_nothing(open_page: Callable[..., Opened], slow: Client) -> None:
    opened = open_page(slow)
    page = opened.go()
    opened.say("Hello")
    page.locator("article.assistant .markdown > *").first.wait_for()
    page.wait_for_timeout(300)
    (_, begun) = opened.messages()
    page.reload()
    opened.wait()
    (_, answer) = opened.messages()
    assert begun["state"] == "writing"
    assert answer["state"] == "done"
    assert answer["text"] == answer_to(slow, "Hello") != begun["text"]


def test_an_answer_stops_and_goes_on(open_page: Callable[..., Opened], slow: Client) -> None:
    opened = open_page(slow)
    page = opened.go()
    opened.say("Hello")
    page.locator("article.assistant .markdown > *").first.wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    until(lambda: slow.server.service.engine.running == 0)
    (_, stopped) = opened.messages()
    assert stopped["state"] == "stopped"
    assert slow.server.engine.scheduler.totals.cancelled == 1
    page.reload()
    page.get_by_role("button", name="Continue").click()
    opened.wait()
    (_, answer) = opened.messages()
    assert answer["text"].startswith(stopped["text"])
    assert len(answer["text"]) > len(stopped["text"])


def test_chats_are_found_exported_and_imported(open_page: Callable[..., Opened], tmp_path: Path) -> None:
    opened = open_page(accept_downloads=True)
    page = opened.go()
    opened.say("Where is the lighthouse?")
    opened.wait()
    page.get_by_role("button", name="New chat").click()
    opened.say("Something else")
    opened.wait()
    page.get_by_label("Search chats").fill("LIGHTHOUSE")
    page.wait_for_function("document.querySelectorAll('.side li .pick').length === 1")
    page.get_by_label("Search chats").fill("")
    before = opened.kept()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export all").click()
    download.value.save_as(tmp_path / "chats.json")
    other = open_page()
    page = other.go()
    page.locator(".side input[type=file]").set_input_files(tmp_path / "chats.json")
    page.get_by_text("2 chats imported.").wait_for()

    def shown(chats: list[dict[str, Any]]) -> list[Any]:
        return sorted((one["title"], one["created"], [m["text"] for m in one["messages"].values()]) for one in chats)

    assert shown(other.kept()) == shown(before)
    (tmp_path / "plain.json").write_text(json.dumps([{"role": "user", "content": "Plain"}]))
    page.locator(".side input[type=file]").set_input_files(tmp_path / "plain.json")
    page.get_by_text("1 chat imported.").wait_for()
    (tmp_path / "bad.json").write_text('{"a": 1}')
    page.locator(".side input[type=file]").set_input_files(tmp_path / "bad.json")
    page.get_by_text("That file cannot be imported: it holds no conversations.").wait_for()
