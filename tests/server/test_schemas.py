"""120 schemas, at a high temperature on random weights: answers are valid, or the schema is refused by name."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from edgemoe.engine.options import EngineOptions
from edgemoe.model.sampling import SamplingOptions
from edgemoe.session.constraint import Constraint, Grammars, Structure
from edgemoe.session.model import load
from tests.server.client import Client

pytestmark = pytest.mark.serve

STRING = {"type": "string", "maxLength": 6}
TREE = {
    "$defs": {"node": {"type": "object", "properties": {
        "name": STRING, "children": {"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/node"}},
    }, "required": ["name"], "additionalProperties": False}},
    "$ref": "#/$defs/node",
}  # fmt: skip
KNOWN: list[dict[str, Any]] = [
    TREE,
    {"type": "object", "properties": {"path": {"type": "string", "pattern": "^[a-z]{1,5}(/[a-z]{1,5})*$"}},
     "required": ["path"], "additionalProperties": False},
    {"type": "object", "properties": {"text": {"type": "string", "maxLength": 2000}}, "additionalProperties": False},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
    {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": -3, "maximum": 3}]},
    {"type": ["integer", "null"], "minimum": 0, "maximum": 5},
    {"const": {"a": [1, "x", None]}},
    {"enum": ["a", 1, None, True]},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"enum": ["x"]}], "items": False, "minItems": 2},
    {"allOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 7}]},
    {"type": "object", "properties": {"a": {"type": "number", "exclusiveMinimum": 0, "maximum": 1}}, "required": ["a"],
     "additionalProperties": False},
]  # fmt: skip
REFUSED: list[dict[str, Any]] = [
    {"type": "hiccup"},
    {"type": "object", "if": {}},
    {"type": "string", "pattern": "(?=a)b"},
    {"type": "string", "format": "wine"},
    {"type": "array", "uniqueItems": True, "contains": {"type": "integer"}},
]


def made(chance: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema whose texts are short."""
    kinds = ["string", "enum", "integer", "boolean", "null", "const", "pattern"] + ["object", "array", "any"] * (
        depth < 3
    )
    kind = chance.choice(kinds)
    if kind == "string":
        return {"type": "string", "minLength": chance.randint(0, 2), "maxLength": chance.randint(2, 8)}
    if kind == "enum":
        return {"enum": chance.sample(["red", "green", 5, None, 'b"lue', "x/y"], chance.randint(1, 4))}
    if kind == "integer":
        low = chance.randint(-50, 50)
        return {"type": "integer", "minimum": low, "maximum": low + chance.randint(0, 200)}
    if kind == "const":
        return {"const": chance.choice([1, "one", [1, 2], {"a": "b"}])}
    if kind == "pattern":
        return {"type": "string", "pattern": chance.choice(["^[0-9]{3}$", "^(ab|cd)+e$", "^x?y{1,3}$"])}
    if kind == "object":
        names = chance.sample(["a", "long name", "c_d", "e", "f"], chance.randint(0, 4))
        properties = {name: made(chance, depth + 1) for name in names}
        required = [name for name in names if chance.random() < 0.6]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if kind == "array":
        least = chance.randint(0, 2)
        return {"type": "array", "items": made(chance, depth + 1), "minItems": least, "maxItems": least + 1}
    if kind == "any":
        return {"anyOf": [made(chance, depth + 1), made(chance, depth + 1)]}
    return {"type": kind}


def test_accepted_schemas_give_valid_answers_and_others_are_refused(tool_client: Client) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    chance = random.Random(7)
    schemas = [*KNOWN, *REFUSED, *(made(chance) for _ in range(120 - len(KNOWN) - len(REFUSED)))]
    ended = refused = 0
    for seed, schema in enumerate(schemas):
        body = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 1.5, "seed": seed, "max_tokens": 1500}
        reply = tool_client.post("/v1/chat/completions", **body, json_schema=schema)
        if reply.status == 400:
            assert "`json_schema`: it cannot be enforced: " in reply.error["message"], reply.error
            assert schema not in KNOWN, (schema, reply.error)
            refused += 1
            continue
        assert schema not in REFUSED, reply.json
        choice = reply.json["choices"][0]
        if choice["finish_reason"] == "stop":
            jsonschema.validate(json.loads(choice["message"]["content"]), schema)
            ended += 1
    print(f"{ended} valid, {refused} refused, {len(schemas) - ended - refused} cut")
    assert ended + refused >= 0.97 * len(schemas)
    assert refused <= 1.2 * len(REFUSED)


def test_masks_take_little_of_the_processor_s_time(monkeypatch: pytest.MonkeyPatch) -> None:
    masks_s = 0.0

    def timed(method: Any) -> Any:
        def measured(*arguments: Any) -> Any:
            nonlocal masks_s
            began_s = time.thread_time()
            try:
                return method(*arguments)
            finally:
                masks_s += time.thread_time() - began_s

        return measured

    with load(None, EngineOptions(threads=1, context_length=512)) as model:  # the thread computes all by itself
        structure = Structure.of_schema({"type": "array", "items": {"enum": ["red", 7, None]}, "minItems": 30}, "x")
        constraint = Grammars(model.tokenizer).compile(structure)
        for name in ("apply", "add", "allows"):
            monkeypatch.setattr(Constraint, name, timed(getattr(Constraint, name)))
        options = SamplingOptions(temperature=1.5, seed=3)
        began_s = time.thread_time()
        for _ in (answer := model.stream(model.encode("Colours:"), 60, options, constraint=constraint)):
            pass
        whole_s = time.thread_time() - began_s
        assert len(answer.token_ids) == 60
    print(f"masks take {masks_s / whole_s:.1%}")
    assert masks_s <= 0.05 * whole_s
