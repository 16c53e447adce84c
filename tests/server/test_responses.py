"""OpenAI's newer interface: whole responses, the events of a stream, responses that continue others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgemoe.server.kept_responses import Kept, KeptResponses
from edgemoe.server.refusals import RefusalError
from tests.server.client import Client
from tests.support.every_case import every_case

PATH = "/v1/responses"
SAMPLED = {"temperature": 1.0, "seed": 5, "max_output_tokens": 12}


def chat_s(client: Client, *messages: tuple[str, str]) -> str:
    sent = [{"role": role, "content": text} for role, text in messages]
    reply = client.post("/v1/chat/completions", messages=sent, temperature=1.0, seed=5, max_tokens=12)
    return str(reply.json["choices"][0]["message"]["content"])


def text_of(response: Any) -> str:
    (item,) = response["output"]
    (part,) = item["content"]
    return str(part["text"])


def test_a_whole_response_is_that_of_a_chat(client: Client) -> None:
    found = client.post(PATH, input="Hello", **SAMPLED).json
    assert text_of(found) == chat_s(client, ("user", "Hello"))
    assert (found["object"], found["status"]) == ("response", "incomplete")
    assert found["incomplete_details"] == {"reason": "max_output_tokens"}
    assert found["usage"]["input_tokens"] == len("u:Hello\na:")
    assert found["usage"]["output_tokens"] == 12
    stopped = client.post(PATH, input="Hello", stop=[text_of(found)[4:6]], **SAMPLED).json
    assert (stopped["status"], stopped["incomplete_details"]) == ("completed", None)


def test_a_stream_has_each_event_in_its_place(client: Client) -> None:
    frames = client.stream(PATH, input="Hello", **SAMPLED)
    names = [frame.name for frame in frames]
    assert [name for name in names if name != "response.output_text.delta"] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    assert [frame.json["sequence_number"] for frame in frames] == list(range(len(frames)))
    assert all(frame.json["type"] == frame.name for frame in frames)
    deltas = [frame.json for frame in frames if frame.name == "response.output_text.delta"]
    last = frames[-1].json["response"]
    assert "".join(delta["delta"] for delta in deltas) == text_of(last) == chat_s(client, ("user", "Hello"))
    assert {delta["item_id"] for delta in deltas} == {last["output"][0]["id"]}


def test_items_instructions_and_roles(client: Client) -> None:
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief"}]},
        {"role": "user", "content": "Hello"},
        {"type": "reasoning", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]},
        {"type": "message", "role": "user", "content": "More"},
    ]
    found = client.post(PATH, input=items, instructions="Be kind", **SAMPLED).json
    expected = chat_s(
        client, ("system", "Be kind\n\nBe brief"), ("user", "Hello"), ("assistant", "Hi"), ("user", "More")
    )
    assert text_of(found) == expected


def test_a_response_continues_another(client: Client) -> None:
    first = client.post(PATH, input="Hello", instructions="Be kind", **SAMPLED).json
    second = client.post(PATH, input="More", previous_response_id=first["id"], **SAMPLED).json
    assert text_of(second) == chat_s(client, ("user", "Hello"), ("assistant", text_of(first)), ("user", "More"))
    assert second["previous_response_id"] == first["id"]
    streamed = client.stream(PATH, input="And", previous_response_id=second["id"], **SAMPLED)
    third = streamed[-1].json["response"]
    assert client.post(PATH, input="x", previous_response_id=third["id"], **SAMPLED).status == 200
    forgotten = client.post(PATH, input="Hello", store=False, **SAMPLED).json
    reply = client.post(PATH, input="More", previous_response_id=forgotten["id"], **SAMPLED)
    assert (reply.status, reply.error["code"]) == (404, "previous_response_not_found")


def test_the_conversation_that_was_not_used_longest_makes_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemoe.server.kept_responses.MOST_RESPONSES", 3)
    kept = KeptResponses()
    entries = {name: Kept([{"role": "user", "content": name}], {"id": name}) for name in "abcd"}
    for name in "abc":
        kept.add(name, entries[name])
    kept.find("a")
    kept.add("d", entries["d"])
    assert kept.find("a") == entries["a"]
    with pytest.raises(RefusalError, match="no response 'b'"):
        kept.find("b")
    monkeypatch.setattr("edgemoe.server.kept_responses.MOST_CHARACTERS", 10)
    kept.add("long", Kept([{"role": "user", "content": "x" * 100}], {}))
    assert kept.find("long")
    with pytest.raises(RefusalError):
        kept.find("d")


def test_a_response_is_told_again_until_it_is_deleted(client: Client) -> None:
    made = client.post(PATH, input="Hello", **SAMPLED).json
    place = f"{PATH}/{made['id']}"
    assert client.get(place).json == made
    assert client.ask("DELETE", place).json == {"id": made["id"], "object": "response.deleted", "deleted": True}
    for reply in (client.get(place), client.ask("DELETE", place)):
        assert (reply.status, reply.error["code"]) == (404, "response_not_found")
    assert client.post(PATH, input="Hello", previous_response_id=made["id"]).status == 404
    unkept = client.post(PATH, input="Hello", store=False, **SAMPLED).json
    assert client.get(f"{PATH}/{unkept['id']}").status == 404


def test_a_conversation_is_counted(client: Client) -> None:
    first = client.post(PATH, input="Hello", **SAMPLED).json
    more = {"input": "And then?", "instructions": "Be brief.", "previous_response_id": first["id"]}
    counted = client.post(f"{PATH}/input_tokens", **more).json["input_tokens"]
    assert counted == client.post(PATH, **more, **SAMPLED).json["usage"]["input_tokens"]


def test_a_stream_tells_progress_and_times_where_asked(client: Client) -> None:
    told = client.stream(PATH, input="p" * 100, return_progress=True, timings_per_token=True, **SAMPLED)
    progress = [frame.json["prompt_progress"]["processed"] for frame in told if "prompt_progress" in frame.json]
    assert progress[0] == 0
    assert progress[-1] == told[-1].json["response"]["usage"]["input_tokens"]
    counts = [frame.json["timings"]["predicted_n"] for frame in told if frame.name == "response.output_text.delta"]
    assert counts == sorted(counts)
    assert told[-1].json["timings"]["predicted_n"] == counts[-1]


def test_a_probe_is_answered(client: Client) -> None:
    for probe in ("", []):
        reply = client.post(PATH, input=probe, max_output_tokens=1)
        assert reply.status == 200


@every_case(
    ("body", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "wand", "name": "x"}]}, "tools[0].type"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"input": [{"type": "item_reference"}]}, "input[0]"),
        ({"input": 5}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_requests_that_cannot_be_honoured_are_refused_by_name(client: Client, body: Any, param: str) -> None:
    reply = client.post(PATH, **{"input": "Hello", **body})
    assert (reply.status, reply.error["param"]) == (400, param)


def test_an_error_in_the_middle_of_a_stream_ends_the_response(breaking: Callable[[int], Client]) -> None:
    last = breaking(4).stream(PATH, input="Hello", **SAMPLED)[-1]
    assert last.name == "response.failed"
    assert last.json["response"]["status"] == "failed"
    assert "a bug" in last.json["response"]["error"]["message"]
