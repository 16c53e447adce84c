"""Answers in a given structure, on random weights at a high temperature: they have it, or are refused by name."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.server.client import Client
from tests.support.every_case import every_case
from tests.support.scripted import Script

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hi"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["alpha", "beta"]},
        "count": {"type": "integer", "minimum": 10, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
    },
    "required": ["kind", "count", "tags"],
    "additionalProperties": False,
}
WILD = {"temperature": 1.5, "seed": 5, "max_tokens": 150}


def is_wanted(text: str) -> bool:
    found = json.loads(text)
    assert found.keys() == SCHEMA["properties"].keys()
    tags = found["tags"]
    return found["kind"] in ("alpha", "beta") and 10 <= found["count"] <= 99 and all(len(one) <= 3 for one in tags)


@every_case(
    ("path", "body"),
    [
        (CHAT, {"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}),
        (CHAT, {"messages": HELLO, "response_format": {"type": "json_object", "schema": SCHEMA}}),
        (CHAT, {"messages": HELLO, "json_schema": SCHEMA}),
        ("/v1/messages", {"messages": HELLO, "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
        ("/v1/messages", {"messages": HELLO, "output_format": {"type": "json_schema", "schema": SCHEMA}}),
        ("/v1/responses", {"input": "Hi", "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}}),
        ("/completion", {"prompt": "Hi", "json_schema": SCHEMA}),
        ("/v1/completions", {"prompt": "Hi", "json_schema": SCHEMA}),
    ],
)
def test_a_schema_is_kept_to_in_every_dialect(client: Client, path: str, body: Any) -> None:
    limits = {"/v1/responses": "max_output_tokens", "/completion": "n_predict"}
    sampled = {"temperature": 1.5, "seed": 5, limits.get(path, "max_tokens"): 150}
    found = client.post(path, **body, **sampled).json
    choice = found["choices"][0] if "choices" in found else {}
    parts = found["output"][0]["content"] if "output" in found else found.get("content")
    text = choice.get("message", {}).get("content") or choice.get("text") or parts
    assert is_wanted(text if isinstance(text, str) else text[0]["text"])


@every_case(
    ("body", "pattern"),
    [
        ({"regex": "[a-c]{3}/x+y"}, "[a-c]{3}/x+y"),
        ({"grammar": 'root ::= ("yes" | "no") " sir"'}, "(yes|no) sir"),
        ({"grammar": 'start: WORD "!"\nWORD: /[a-z]{2,4}/'}, "[a-z]{2,4}!"),
    ],
)
def test_grammars_are_kept_to(client: Client, body: Any, pattern: str) -> None:
    for path in (CHAT, "/completion"):
        found = client.post(path, **body, **WILD, messages=HELLO, prompt="Hi").json
        text = found["choices"][0]["message"]["content"] if "choices" in found else found["content"]
        assert re.fullmatch(pattern, text)


@every_case(
    ("body", "says"),
    [
        ({"json_schema": {"type": "hiccup"}}, "`json_schema`: it cannot be enforced: Invalid type: hiccup"),
        ({"json_schema": {"type": "object", "if": {}}}, 'it cannot be enforced: Unimplemented keys: ["if"]'),
        ({"json_schema": {"type": "string", "format": "wine"}}, "Unknown format: wine"),
        ({"regex": "(?=a)b"}, "`regex`: it cannot be enforced"),
        ({"grammar": "start: ("}, "`grammar`: it cannot be enforced"),
        ({"grammar": 'root ::= "a'}, "`grammar`: it is no grammar in GBNF or Lark"),
        ({"grammar": 'root ::= "a"', "regex": "a"}, "grammar: it excludes regex"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "hiccup"}}}}, "hiccup"),
        ({"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "hiccup"}}}],
          "tool_choice": "required"}, "failed to compile JSON schema: Invalid type: hiccup"),
        ({"tools": [{"type": "function", "function": {"name": "x"}}], "tool_choice": "required", "regex": "a"},
         "`regex`: an answer that must call a tool has no other structure"),
    ],
)  # fmt: skip
def test_what_cannot_be_enforced_is_refused_by_name(tool_client: Client, body: Any, says: str) -> None:
    reply = tool_client.post(CHAT, messages=HELLO, **body)
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    assert says in reply.error["message"]


def test_forced_tokens_run_together_and_change_nothing(client: Client) -> None:
    """With logprobs each token runs in a step of its own; the answer is the same to the bit."""
    scheduler = client.server.engine.scheduler
    assert scheduler is not None
    found = []
    for more in ({}, {"logprobs": True}):
        before = scheduler.totals.steps
        choice = client.post(CHAT, messages=HELLO, json_schema=SCHEMA, **WILD, **more).json["choices"][0]
        steps = scheduler.totals.steps - before
        found.append((choice["message"]["content"], steps))
        if more:
            assert "".join(one["token"] for one in choice["logprobs"]["content"]) == found[0][0]
    (text, together), (same, alone) = found
    assert text == same
    assert together < 0.6 * alone


def test_a_thought_may_come_before_the_structure(tool_client: Client, script: Script) -> None:
    script.say("<think>\nhm\n</think>\n\n12")
    message = tool_client.post(CHAT, messages=HELLO, regex="[0-9]{2}").json["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("12", "hm")
