"""A page that a browser has opened, and what it keeps."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.server.client import Client

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PREFERENCES = {"sampling": {"temperature": 0, "max_tokens": 60}, "picture": False, "side": True}
KEPT = """() => new Promise((done, failed) => {
  const opened = indexedDB.open("edgemoe", 1);
  opened.onerror = () => failed(opened.error);
  opened.onsuccess = () => {
    const all = opened.result.transaction("conversations").objectStore("conversations").getAll();
    all.onsuccess = () => { opened.result.close(); done(all.result); };
  };
})"""


class Opened:
    """A page of a server, with what it said to its console."""

    def __init__(self, browser: Browser, client: Client, preferences: dict[str, Any], **options: Any) -> None:
        self.client = client
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(15_000)
        value = json.dumps(json.dumps(preferences))
        self.context.add_init_script(f'localStorage["edgemoe.preferences"] ??= {value}')
        self.page: Page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("console", lambda one: self.faults.append(one.text) if one.type == "error" else None)
        self.page.on("pageerror", lambda one: self.faults.append(str(one)))
        self.page.on("dialog", lambda one: (self.faults.append(f"dialog {one.message}"), one.dismiss()))

    def go(self) -> Page:
        self.page.goto(self.client.server.url)
        return self.page

    def say(self, text: str) -> None:
        self.page.get_by_label("Message", exact=True).fill(text)
        self.page.keyboard.press("Enter")

    def wait(self, count: int = 1) -> None:
        """Wait until there are so many answers, and all have ended."""
        self.page.wait_for_function(
            "n => document.querySelectorAll('article.assistant[aria-busy=false]').length === n"
            " && !document.querySelector('article[aria-busy=true]')",
            arg=count,
        )

    def kept(self) -> list[dict[str, Any]]:
        """The conversations that the browser keeps."""
        found: list[dict[str, Any]] = self.page.evaluate(KEPT)
        return found

    def messages(self) -> list[dict[str, Any]]:
        """All messages of the only conversation, the oldest first."""
        (conversation,) = self.kept()
        return sorted(conversation["messages"].values(), key=lambda one: one["at"])


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)
