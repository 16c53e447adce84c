"""The page says what stands in the way: an older server, a key, an error, a server that is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from edgemoe.server.settings import ServerSettings
from tests.server.browser.opened import Opened
from tests.server.client import Client

if TYPE_CHECKING:
    from playwright.sync_api import Route

pytestmark = pytest.mark.serve

EFFECTS_COME_LATE = """
const later = setTimeout;
window.setTimeout = (done, ms = 0) => later(done, ms + 300);
window.requestAnimationFrame = (done) => later(done, 300);
"""


def test_what_changes_before_a_part_listens_is_drawn(open_page: Callable[..., Opened]) -> None:
    """The server's first answer comes between the drawing of a part and its effects, as on a busy machine."""
    opened = open_page()
    opened.page.add_init_script(EFFECTS_COME_LATE)
    opened.page.route("**/edgemoe/about", lambda route: route.fulfill(status=404, body="{}"))
    opened.go().get_by_text("This page is newer than the server").wait_for()


OLDER = [{"status": 404, "body": "{}"}, {"status": 200, "body": '{"interface": 0, "version": "0.0.9"}'}]


@pytest.mark.parametrize("reply", OLDER)
def test_an_older_server_is_named(open_page: Callable[..., Opened], reply: dict[str, Any]) -> None:
    opened = open_page()

    def answer(route: Route) -> None:
        route.fulfill(**reply)

    opened.page.route("**/edgemoe/about", answer)
    page = opened.go()
    page.get_by_text("This page is newer than the server").wait_for()
    assert page.get_by_role("button", name="Send").is_disabled()


def test_errors_come_in_words(open_page: Callable[..., Opened], serve: Callable[..., Client]) -> None:
    opened = open_page(serve(ServerSettings(port=0, api_keys=("secret",))))
    page = opened.go()
    page.get_by_text("This server asks for a key.").wait_for()
    page.get_by_label("API key").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_text("The server does not know this key.").wait_for()
    page.get_by_label("API key").fill("secret")
    page.keyboard.press("Enter")
    page.wait_for_function("!document.querySelector('.send').disabled")
    opened.say("x" * 400)
    page.get_by_text("maximum context length is 256 tokens").wait_for()
    opened.client.server.close()
    page.get_by_role("button", name="Retry").click()
    page.get_by_text("The server does not answer. Is edgemoe serve still running?").wait_for()
