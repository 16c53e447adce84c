"""The live probe of canitoolcall, with a scripted model, against a whole server: template, reader, streams."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any
from unittest import mock

import pytest

import edgemoe
from edgemoe.server.server import Server
from tests.support.scripted import ScriptedSampler

pytestmark = pytest.mark.serve

EVENT = {
    "title": "Design review", "start": "2026-10-01T15:00:00Z",
    "attendees": [{"name": "Ana", "email": "ana@example.com"}, {"name": "Bo", "email": "bo@example.com"}],
    "location": {"city": "Berlin", "room": "4.12"},
}  # fmt: skip
NOTE = {"title": "Grüße aus Zürich", "body": "Café ☕ in 東京 — naïve résumé 🚀"}


def call(name: str, arguments: Any) -> str:
    spelled = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{spelled}\n</tool_call>"


ANSWERS = {
    "in Paris right now": call("get_weather", {"city": "Paris"}),
    "in Paris and in Tokyo": call("get_weather", {"city": "Paris"}) + "\n" + call("get_weather", {"city": "Tokyo"}),
    "17 + 25": "42",
    "Design review": call("create_event", EVENT),
    "Grüße": call("save_note", NOTE),
    "What time is it": call("get_server_time", {}),
    "Lisbon": call("get_weather", {"city": "Lisbon"}),
    "weather in Paris?": "It is 18 degrees in Paris.",
    "9.11 or 9.9": call("record_answer", {"answer": "9.9"}),
}
"""Answers of the model, by a part of the question."""


@pytest.fixture
def server() -> Iterator[Server]:
    with edgemoe.serve(context_length=1536) as started:
        tokenizer = started.service.model.tokenizer

        def sampler(_: Any, before: Sequence[int] = (), stop_ids: Collection[int] = frozenset()) -> ScriptedSampler:
            asked = tokenizer.decode(before)
            (answer,) = (said for part, said in ANSWERS.items() if part in asked)
            return ScriptedSampler([*tokenizer.encode(answer), min(stop_ids)])

        with mock.patch("edgemoe.session.continuation.Sampler", sampler):
            yield started


def test_every_scenario_of_the_probe_passes_whole_and_streamed(server: Server) -> None:
    pytest.importorskip("canitoolcall")
    from canitoolcall.probe import probe

    report = probe(f"{server.url}/v1", "any")
    assert len(report.outcomes) == 27
    failed = [(one.scenario_id, one.check, one.detail) for one in report.outcomes if one.status != "pass"]
    assert not failed
