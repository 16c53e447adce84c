"""Nothing in an answer, in an imported chat or in an error runs in the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.browser.opened import Opened

pytestmark = pytest.mark.serve

FORBIDDEN = "script, img, iframe, object, embed, form, svg script, base, meta, link, style, video, audio, math[href]"

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
