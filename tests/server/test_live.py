"""The live picture's stream: its rows are those of a trace, and it costs no answer a bit."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemoe.engine.options import EngineOptions
from edgemoe.lab.recorder import recording
from edgemoe.lab.replay import Replay
from edgemoe.lab.trace import read_trace
from edgemoe.lab.trace_rows import COLUMNS
from edgemoe.model.sampling import SamplingOptions
from edgemoe.server import live, running
from edgemoe.server import watch as watch_module
from edgemoe.server.settings import ServerSettings
from edgemoe.session.model import load
from tests.server.client import Client, frames
from tests.server.test_speculation import Oracle

TEXT = "Once upon a time there was a sea"
ASKED = {"prompt": TEXT, "max_tokens": 9, "temperature": 0, "seed": 1}
RESIDENT, READ, GUESSED = watch_module.RESIDENT, watch_module.READ, watch_module.GUESSED


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FRAME_SECONDS", 0.01)
    monkeypatch.setattr(live, "STATUS_SECONDS", 0.05)


class Watcher:
    """Hears the live stream of a server."""

    def __init__(self, client: Client) -> None:
        connection = client.connect()
        connection.request("GET", "/edgemoe/live", headers=client._headers)
        self._response = connection.getresponse()
        assert self._response.status == 200
        self._frames = frames(self._response)
        self._connection = connection
        self.model = self.next("model")

    def next(self, name: str) -> Any:
        """The data of the next event of a name."""
        return next(frame.json for frame in self._frames if frame.name == name)

    def steps_of(self, tokens: int) -> list[Any]:
        """The next steps, until they have so many tokens."""
        found: list[Any] = []
        while sum(len(span["token_ids"]) for step in found for run in step["runs"] for span in run["spans"]) < tokens:
            found += self.next("steps")
        return found

    def close(self) -> None:
        self._response.close()
        self._connection.close()


@contextmanager
def watching(client: Client) -> Iterator[Watcher]:
    watcher = Watcher(client)
    try:
        yield watcher
    finally:
        watcher.close()


def decoded(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def rows_of(model: Any, steps: list[Any]) -> list[tuple[Any, ...]]:
    """The rows of steps, each with the columns of a trace, as the documentation of the stream says them."""
    rows = []
    for run in (run for step in steps for run in step["runs"]):
        tokens = [
            (span["answer"], span["phase"], span["step"] + number)
            for span in run["spans"]
            for number in range(len(span["token_ids"]))
        ]
        kinds = {"experts": "<i2", "weights": "<f4", "flags": "u1"}
        columns = zip(*(decoded(run[name], kind) for name, kind in kinds.items()), strict=True)
        for layer in model["layers"]:
            for token in tokens:
                for slot in range(layer["used"]):
                    expert, weight, flags = next(columns)
                    if expert >= 0:
                        size = layer["expert_bytes"] * bool(flags & READ)
                        rows.append((*token, layer["layer"], slot, expert, weight, bool(flags & RESIDENT), size))
        assert next(columns, None) is None
    return rows


def recorded(store: Path, tmp_path: Path, ram: str | None) -> list[tuple[Any, ...]]:
    """The rows of a trace of the same prompt and answer, alone."""
    path = tmp_path / "alone.trace"
    options = EngineOptions(ram=ram, context_length=256, sequences=3)
    with load(store, options) as model, recording(model.engine, path):
        for _ in model.stream(model.encode(TEXT), 9, SamplingOptions(temperature=0.0, seed=1)):
            pass
    trace = read_trace(path)
    return list(zip(*(getattr(trace, name).tolist() for name in COLUMNS), strict=True))


def same(rows: list[tuple[Any, ...]], others: list[tuple[Any, ...]], columns: slice = slice(1, None)) -> None:
    assert [row[columns] for row in rows] == [row[columns] for row in others]


@pytest.mark.parametrize("ram", [None, "floor"])
def test_rows_are_those_of_a_trace(
    serve: Callable[..., Client], letters_store: Path, tmp_path: Path, ram: str | None
) -> None:
    expected = recorded(letters_store, tmp_path, ram)
    client = serve(ram=ram)
    with watching(client) as watcher:
        reply = client.post("/v1/completions", **ASKED)
        steps = watcher.steps_of(len(TEXT) + 8)
        status = watcher.next("status")
        while status["generated_tokens"] < 9:
            status = watcher.next("status")
    rows = rows_of(watcher.model, steps)
    same(rows, expected)
    texts = [text for step in steps for run in step["runs"] for span in run["spans"] for text in span["texts"]]
    assert "".join(texts) == (TEXT + reply.json["choices"][0]["text"])[:-1]  # the last token was not read any more
    names = {span["request"] for step in steps for run in step["runs"] for span in run["spans"]}
    assert names == {reply.json["id"].removeprefix("cmpl-")}
    if ram == "floor":
        assert any(not row[7] for row in rows)
        assert status["misses"] > 0
        assert sum(sum(step["waits_us"]) for step in steps) > 0
        assert sum(step["read_bytes"] for step in steps) == sum(row[8] for row in rows) == status["read_bytes"]
    for step in steps:
        assert sum(step["parts_us"].values()) <= step["us"]
        assert sum(step["waits_us"]) <= step["parts_us"].get("disk_wait", 0)


def test_several_answers_in_one_step_are_told_apart(serve: Callable[..., Client]) -> None:
    client = serve()
    wanted = {**ASKED, "prompt": [TEXT, "x" * 40]}
    with watching(client) as watcher:
        client.post("/v1/completions", **wanted)
        together = rows_of(watcher.model, watcher.steps_of(len(TEXT) + 40 + 16))
    parts = {answer: [row for row in together if row[0] == answer] for answer in sorted({row[0] for row in together})}
    for prompt, rows in zip(wanted["prompt"], parts.values(), strict=True):
        fresh = serve()
        with watching(fresh) as watcher:
            fresh.post("/v1/completions", **{**ASKED, "prompt": prompt})
            alone = rows_of(watcher.model, watcher.steps_of(len(prompt) + 8))
        by_token = sorted(rows, key=lambda row: row[2:5])
        same(by_token, sorted(alone, key=lambda row: row[2:5]), slice(1, 7))  # the same experts and weights, to the bit


def test_drafts_that_are_right_are_rows_like_others(
    serve: Callable[..., Client], letters_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = recorded(letters_store, tmp_path, None)
    client = serve(speculate=7)
    model = client.server.service.model
    Oracle.before, Oracle.wrong_every = model.encode(TEXT), 2
    Oracle.answer = model.encode(client.post("/v1/completions", **ASKED).json["choices"][0]["text"])
    monkeypatch.setattr(running, "Drafts", Oracle)
    with watching(client) as watcher:
        client.post("/v1/completions", **ASKED)
        steps = watcher.steps_of(len(TEXT) + 8)
        status = watcher.next("status")
        while status["generated_tokens"] < 18:
            status = watcher.next("status")
    totals = client.server.engine.scheduler.totals
    assert 0 < totals.accepted_tokens < totals.draft_tokens  # right ones and wrong ones
    assert len(steps) < 9
    same(
        sorted(rows_of(watcher.model, steps), key=lambda row: row[2:5]),
        sorted(expected, key=lambda row: row[2:5]),
        slice(1, 8),
    )


def test_nobody_watching_costs_nothing_and_changes_nothing(serve: Callable[..., Client]) -> None:
    client = serve(ram="floor")
    engine, watch = client.server.service.model.engine, client.server.engine.scheduler.watch
    before = client.post("/v1/completions", **ASKED).json["choices"]
    assert (engine.recorder, engine.ledger, list(watch.kept)) == (None, None, [])
    with watching(client) as watcher:
        assert client.post("/v1/completions", **ASKED).json["choices"] == before
        assert engine.recorder is watch
        watcher.steps_of(9)
    deadline = time.monotonic() + 10
    while watch.watchers and time.monotonic() < deadline:
        time.sleep(0.01)
    assert client.post("/v1/completions", **ASKED).json["choices"] == before
    assert (engine.recorder, engine.ledger) == (None, None)


def test_who_comes_late_sees_what_is_kept(serve: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve()
    with watching(client) as watcher:
        client.post("/v1/completions", **ASKED)
        steps = watcher.steps_of(len(TEXT) + 8)
        with watching(client) as late:
            assert late.steps_of(len(TEXT) + 8) == steps
        used = sum(layer["used"] for layer in watcher.model["layers"])
        monkeypatch.setattr(watch_module, "KEPT_ROWS", 3 * used)
        client.post("/v1/completions", **ASKED)
        with watching(client) as late:
            assert len(late.next("steps")) <= 3


def test_places_say_where_experts_are(serve: Callable[..., Client]) -> None:
    client = serve(ram="floor")
    client.post("/v1/completions", **ASKED)
    engine = client.server.service.model.engine
    with watching(client) as watcher:
        packed = decoded(watcher.next("places")["packed"], "u1")
    places = (packed[:, None] >> np.array([0, 2, 4, 6])) & 3
    resident = engine.resident_experts()
    assert (places.reshape(-1)[: resident.size].reshape(resident.shape) == 2).tolist() == resident.tolist()


def test_a_guess_is_told_as_right_or_wrong(serve: Callable[..., Client]) -> None:
    client = serve(ram="floor", prefetch="on")
    with watching(client) as watcher:
        client.post("/v1/completions", **ASKED)
        steps = watcher.steps_of(len(TEXT) + 8)
        status = watcher.next("status")
        while status["generated_tokens"] < 9:
            status = watcher.next("status")
    runs = [run for step in steps for run in step["runs"] if run["spans"][0]["phase"]]
    right = sum(int(np.count_nonzero(decoded(run["flags"], "u1") & GUESSED)) for run in runs)
    assert right == status["guessed_uses"] > 0
    named = sum(len(run["wrong_guesses"]) for run in runs) + right
    layers = len(watcher.model["layers"]) - 1  # nobody guesses at the first layer
    assert named == len(runs) * layers * watcher.model["layers"][0]["used"]


def test_few_may_watch_at_a_time(serve: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve()
    client.server.engine.scheduler.watch.watchers += 8
    reply = client.get("/edgemoe/live")
    assert (reply.status, reply.headers["retry-after"]) == (429, "10")


def test_the_guard_stands_before_the_page_s_paths(serve: Callable[..., Client]) -> None:
    client = serve(ServerSettings(port=0, api_keys=("secret",)))
    for path in ("/edgemoe/live", "/edgemoe/about", "/edgemoe/trace", "/edgemoe/what-if"):
        assert client.get(path).status == 401
        assert client.get(path, host="evil.example").status == 403
    assert client.get("/", host="evil.example").status == 403


def test_a_trace_of_the_session_can_be_had(serve: Callable[..., Client], tmp_path: Path) -> None:
    client = serve()
    assert client.get("/edgemoe/trace").status == 409
    with watching(client) as watcher:
        client.post("/v1/completions", **ASKED)
        rows = rows_of(watcher.model, watcher.steps_of(len(TEXT) + 8))
    (tmp_path / "got.trace").write_bytes(client.get("/edgemoe/trace").body)
    trace = read_trace(tmp_path / "got.trace")
    same(list(zip(*(getattr(trace, name).tolist() for name in COLUMNS), strict=True)), rows)


@pytest.mark.serve
def test_what_if_is_a_replay(serve: Callable[..., Client], tmp_path: Path) -> None:
    client = serve(ram="floor")
    with watching(client) as watcher:
        client.post("/v1/completions", **ASKED)
        watcher.steps_of(len(TEXT) + 8)
    (tmp_path / "got.trace").write_bytes(client.get("/edgemoe/trace").body)
    replay = Replay(read_trace(tmp_path / "got.trace"))
    curve = client.get("/edgemoe/what-if").json
    memory = client.server.service.model.engine.memory
    assert curve["now_percent"] == 100 * memory.slots / memory.total_experts
    for point in curve["points"]:
        result = replay.run("lru", point["capacity_percent"])
        optimum = replay.run("belady", point["capacity_percent"])
        assert (point["slots"], point["hit_rate"]) == (result.slots, result.hit_rate)
        assert point["optimum_hit_rate"] == optimum.hit_rate
        assert point["bytes_per_decode_token"] == result.bytes_per_decode_token
        assert point["tokens_per_s"] > 0
    at_hand = [point["budget_bytes"] for point in curve["points"] if point["slots"] == memory.slots]
    assert at_hand == [memory.planned_bytes]
