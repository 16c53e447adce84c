"""The live picture tells the truth: its cells and its tables are the rows of the trace."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.browser.opened import PREFERENCES, Opened, until
from tests.server.client import Client
from tests.server.test_live import rows_of, watching

pytestmark = pytest.mark.serve

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


FRAMES = """() => {
  const asked = window.requestAnimationFrame.bind(window);
  window.frames_ms = [];
  window.requestAnimationFrame = callback => asked(time => {
    const began = performance.now();
    callback(time);
    if (document.querySelector(".map canvas[data-geometry]")) window.frames_ms.push(performance.now() - began);
  });
}"""
"""Notes how long the page takes for each of its frames."""
CHANGES = """() => new Promise(done => {
  let left = 30;
  const change = () => {
    document.documentElement.dataset.change = left;
    left-- ? setTimeout(change, 40) : done(window.frames_ms.filter(one => one > 1).sort((a, b) => a - b));
  };
  change();
})"""
"""Lets the map be drawn again and again; it draws less often than it may where nothing has changed."""


def test_a_map_of_many_experts_is_drawn_20_times_a_second(
    open_page: Callable[..., Opened], serve: Callable[..., Client]
) -> None:
    client = serve()
    with watching(client) as watcher:
        model = watcher.model
    layers = [{**model["layers"][0], "layer": layer, "experts": 256} for layer in range(76)]
    model |= {"layers": layers, "experts": 256, "total_experts": 76 * 256}
    events = {"model": model, "places": {"packed": base64.b64encode(bytes([0b01101100] * (76 * 64))).decode()}}
    body = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events.items())
    opened = open_page(client, {**PREFERENCES, "picture": True}, viewport={"width": 1400, "height": 1000})
    opened.page.add_init_script(f"({FRAMES})()")
    opened.page.route("**/edgemoe/live", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    page = opened.go()
    page.locator(".map canvas[data-geometry]").wait_for()
    frames_ms = page.evaluate(CHANGES)
    assert len(frames_ms) > 10
    assert frames_ms[len(frames_ms) // 4] < 50  # others may keep the processors busy


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
