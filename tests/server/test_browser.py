"""The page in a real browser: chat that loses nothing, answers that run nothing, and a picture that tells the truth."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edgemoe.server.settings import ServerSettings
from tests.server.client import Client
from tests.server.test_live import rows_of, watching
from tests.support.forks import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

pytestmark = pytest.mark.serve

PREFERENCES = {"sampling": {"temperature": 0, "max_tokens": 60}, "picture": False, "side": True}
KEPT = """() => new Promise((done, failed) => {
  const opened = indexedDB.open("edgemoe", 1);
  opened.onerror = () => failed(opened.error);
  opened.onsuccess = () => {
    const all = opened.result.transaction("conversations").objectStore("conversations").getAll();
    all.onsuccess = () => { opened.result.close(); done(all.result); };
  };
})"""
TABLE = """all => all.map(row => [...row.cells].map((cell, place) =>
  place === 3 ? Number(cell.dataset.weight) : place === 4 ? cell.textContent === "yes" : Number(cell.textContent)))"""
PIXELS = """experts => {
  const canvas = document.querySelector(".map canvas");
  const { cellWidth, cellHeight, left } = JSON.parse(canvas.dataset.geometry);
  const { data, width } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const found = [];
  for (let y = 0; y * cellHeight < canvas.height; y++) {
    found.push([]);
    for (let x = 0; x < experts; x++) {
      const row = y * cellHeight + (cellHeight >> 1);
      const at = 4 * (row * width + left + x * cellWidth + (cellWidth >> 1));
      found[y].push([...data.slice(at, at + 3)]);
    }
  }
  return [found, JSON.parse(canvas.dataset.colours)];
}"""
"""The colours in the middle of all cells, and those of hits and misses."""
FORBIDDEN = "script, img, iframe, object, embed, form, svg script, base, meta, link, style, video, audio, math[href]"


@pytest.fixture(scope="module")
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


def answer_to(client: Client, *texts: str) -> str:
    """The server's answer to a conversation."""
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
    reply = client.post("/v1/chat/completions", messages=messages, temperature=0, max_tokens=60)
    content: str = reply.json["choices"][0]["message"]["content"]
    return content


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


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


CORPUS = [
    "<script>window.ran=1</script>",
    "<img src=x onerror=window.ran=1>",
    "<svg onload=window.ran=1><script>window.ran=1</script></svg>",
    "<iframe srcdoc='<script>parent.ran=1</script>'></iframe>",
    "[a](javascript:window.ran=1) [b](JaVaScRiPt:window.ran=1) [c](data:text/html,<script>window.ran=1</script>)",
    "[d](java\tscript:window.ran=1) <a href='javascript:window.ran=1'>e</a>",
    "![f](x\" onerror=\"window.ran=1)\n\n![g](javascript:window.ran=1)",
    "```html\n<script>window.ran=1</script><img src=x onerror=window.ran=1>\n```",
    "```\"><img src=x onerror=window.ran=1>\ncode\n```",
    "`<img src=x onerror=window.ran=1>`",
    r"$\href{javascript:window.ran=1}{x}$ $$\style{background:url(javascript:window.ran=1)}{y}$$",
    r"\( <img src=x onerror=window.ran=1> \) \[ \class{markdown}{z} \url{javascript:window.ran=1} \]",
    "<details open ontoggle=window.ran=1><summary>h</summary></details>",
    "<math><mtext><table><mglyph><style><!--</style><img title=\"--&gt;&lt;img src=1 onerror=window.ran=1&gt;\">",
    "<form><math><mtext></form><form><mglyph><style></math><img src onerror=window.ran=1>",
    "| <img src=x onerror=window.ran=1> | b |\n| --- | --- |\n| <svg/onload=window.ran=1> | [x](vbscript:ran=1) |",
    "<https://a.example/\"onmouseover=\"window.ran=1> <style>*{display:none}</style>",
    "<base href='https://evil.example/'><meta http-equiv=refresh content='0;url=javascript:window.ran=1'>",
    "&lt;img src=x onerror=window.ran=1&gt; &#x6A;avascript:window.ran=1",
    "[i]: javascript:window.ran=1\n\n[i] <noscript><p title=\"</noscript><img src=x onerror=window.ran=1>\">",
]  # fmt: skip


def test_nothing_in_an_answer_runs(open_page: Callable[..., Opened]) -> None:
    whole = "\n\n".join(CORPUS)
    said = [{"reasoning_content": whole}, *({"content": whole[place : place + 7]} for place in range(0, len(whole), 7))]
    chunks = [{"id": "chatcmpl-x", "choices": [{"index": 0, "delta": delta}]} for delta in said]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    opened = open_page()
    opened.page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream")
    )
    page = opened.go()
    for count, text in enumerate(("<img src=x onerror=window.ran=1><script>window.ran=1</script>", whole), 1):
        opened.say(text)
        opened.wait(count)
    page.wait_for_timeout(500)  # formulas and code are set
    page.reload()
    page.locator("article.assistant").first.wait_for()
    page.locator("summary").first.click()
    page.wait_for_timeout(500)
    assert page.evaluate("window.ran") is None
    assert page.locator(".column").locator(FORBIDDEN).count() == 0
    links = page.eval_on_selector_all("main a[href]", "all => all.map(one => one.protocol)")
    assert set(links) <= {"http:", "https:", "mailto:"}
    handlers = "all => all.flatMap(one => one.getAttributeNames()).filter(name => name.startsWith('on'))"
    assert page.eval_on_selector_all("body *", handlers) == []
    assert page.locator("math").count() > 0
    assert page.locator("[class^=hljs-]").count() > 0
    assert opened.faults == []  # no violation of the policy either


def test_imported_chats_and_errors_run_nothing(open_page: Callable[..., Opened], tmp_path: Path) -> None:
    evil = CORPUS[1]
    message = {"id": evil, "parent": None, "role": "assistant", "text": evil, "at": 1, "state": "cut", "error": evil}
    chat = {"id": "x", "title": evil, "messages": {"y": message}, "leaf": evil, "figures": evil}
    data = {"form": "edgemoe conversations", "version": 1, "conversations": [chat]}
    (tmp_path / "evil.json").write_text(json.dumps(data))
    opened = open_page()
    page = opened.go()
    page.locator(".side input[type=file]").set_input_files(tmp_path / "evil.json")
    page.locator(".side li .pick").click()
    page.locator("article.assistant .error").wait_for()
    assert page.locator("article.assistant .error").inner_text() == evil
    assert page.evaluate("window.ran") is None
    assert opened.faults == []


def test_the_picture_is_the_trace(
    open_page: Callable[..., Opened], serve: Callable[..., Client], tmp_path: Path
) -> None:
    client = serve(ram="floor")
    opened = open_page(client, {**PREFERENCES, "picture": True}, viewport={"width": 1400, "height": 1000})
    page = opened.go()
    with watching(client) as watcher:
        page.locator(".map canvas[data-geometry]").wait_for()
        until(lambda: client.server.engine.scheduler.watch.watchers == 2)
        opened.say("Hello")
        opened.wait()
        page.locator("button.token.written").nth(50).wait_for(state="attached")
        rows = rows_of(watcher.model, watcher.steps_of(page.locator("button.token").count()))
    layers, experts = watcher.model["layers"], watcher.model["experts"]
    steps = sorted({row[2] for row in rows})
    assert any(not row[7] for row in rows)
    for step in (steps[0], steps[-1]):
        expected = [row[3:] for row in rows if row[2] == step]
        page.locator(f"button.token >> nth={step}").click()
        if page.get_by_role("button", name="Its experts as a table").count():
            page.get_by_role("button", name="Its experts as a table").click()
        shown = page.eval_on_selector_all(".table tbody tr", TABLE)
        assert [tuple(row) for row in shown] == [
            (layer, slot, int(expert), float(weight), resident, size)
            for layer, slot, expert, weight, resident, size in expected
        ]
        page.mouse.move(0, 0)
        page.wait_for_timeout(200)
        pixels, colours = page.evaluate(PIXELS, experts)
        wanted = {(row[0], int(row[2])): "hit" if row[4] else "miss" for row in expected}
        names = {tuple(colour): name for name, colour in colours.items()}
        drawn = {
            (layer["layer"], expert): names[tuple(pixels[place][expert])]
            for place, layer in enumerate(layers)
            for expert in range(layer["experts"])
            if tuple(pixels[place][expert]) in names
        }
        assert drawn == wanted
    assert opened.faults == []


def test_an_expert_shows_its_tokens(open_page: Callable[..., Opened], serve: Callable[..., Client]) -> None:
    client = serve()
    opened = open_page(client, {**PREFERENCES, "picture": True}, viewport={"width": 1400, "height": 1000})
    page = opened.go()
    with watching(client) as watcher:
        until(lambda: client.server.engine.scheduler.watch.watchers == 2)
        opened.say("Hello")
        opened.wait()
        page.locator("button.token.written").nth(50).wait_for(state="attached")
        rows = rows_of(watcher.model, watcher.steps_of(page.locator("button.token").count()))
    canvas = page.locator(".map canvas")
    canvas.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    marked = page.eval_on_selector_all("button.token.user", "all => all.map(one => Number(one.dataset.place))")
    first = watcher.model["layers"][0]["layer"]
    used = [row for row in rows if (row[3], row[5]) == (first, 1)]
    assert marked == sorted({row[2] for row in used}) != []
    read = page.locator(".readout").inner_text()
    assert f"Layer {first}, expert 1 is in RAM. Used {len(used)} times" in read


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
