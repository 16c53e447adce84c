"""The page on screens of all sizes, in light and dark, and for people who do not see it."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.server.browser.opened import PREFERENCES, Opened
from tests.support.forks import ROOT

pytestmark = pytest.mark.serve


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (390, "dark"), (1400, "dark")])
def test_nothing_is_wider_than_the_screen(open_page: Callable[..., Opened], width: int, scheme: str) -> None:
    preferences = {**PREFERENCES, "picture": width > 800, "side": width > 800}
    opened = open_page(preferences=preferences, viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = opened.go()
    opened.say("A" * 150)
    opened.wait()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width < 800:
        page.get_by_label("Live picture", exact=True).click()
        page.locator(".picture .map canvas").wait_for()
        page.get_by_label("Close the live picture").click()
        page.get_by_label("Chats", exact=True).click()
        page.get_by_role("button", name="New chat").click()
        page.locator(".welcome").wait_for()
    page.get_by_label("Settings").first.click()
    page.locator("dialog[open]").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.keyboard.press("Escape")
    page.locator("dialog[open]").wait_for(state="detached")
    assert opened.faults == []


AXE = ROOT / "edgemoe/server/page/node_modules/axe-core/axe.min.js"


@pytest.mark.skipif(not AXE.exists() and not os.environ.get("CI"), reason="make page brings axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible(open_page: Callable[..., Opened], scheme: str) -> None:
    opened = open_page(preferences={**PREFERENCES, "picture": True}, color_scheme=scheme)
    page = opened.go()
    opened.say("Hello")
    opened.wait()
    page.evaluate(AXE.read_text("utf-8"))
    for settings in (False, True):
        if settings:
            page.get_by_label("Settings").first.click()
        found = page.evaluate("part => axe.run(document.querySelector(part))", "dialog" if settings else "#app")
        serious = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
        assert [(one["id"], one["nodes"][0]["html"]) for one in serious] == []
