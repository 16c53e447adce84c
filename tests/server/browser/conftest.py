from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.server.browser.opened import PREFERENCES, Opened
from tests.server.client import Client

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None and not os.environ.get("CI"):
        pytest.skip("there is no chromium here")
    assert found is not None, "CI installs chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        launched = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Browser, client: Client) -> Iterator[Callable[..., Opened]]:
    opened: list[Opened] = []

    def make(client: Client = client, preferences: dict[str, Any] = PREFERENCES, **options: Any) -> Opened:
        opened.append(Opened(browser, client, preferences, **options))
        return opened[-1]

    yield make
    for one in opened:
        one.context.close()


@pytest.fixture
def slow(serve: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> Client:
    """A server that takes a while for each token."""
    client = serve()
    engine = client.server.service.model.engine
    step = engine.step

    def later(*arguments: Any, **named: Any) -> Any:
        time.sleep(0.03)
        return step(*arguments, **named)

    monkeypatch.setattr(engine, "step", later)
    return client
