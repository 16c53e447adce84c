"""Calls that are demanded: the grammar of each family allows them, and its form reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from edgemoe.session.constraint import Constraint, Grammars, Structure
from edgemoe.session.response.builtin import builtin
from edgemoe.session.response.parts import Message
from edgemoe.session.response.reader import ResponseReader
from edgemoe.session.response.shapes import SHAPES, Shape, call_grammar, spelled, thought_grammar
from edgemoe.session.tokenizer import Tokenizer
from tests.support.every_case import every_case

TOOLS: dict[str, dict[str, Any]] = {
    "weather": {
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"type": "string", "enum": ["c", "f"]},
                "days": {"type": "integer"},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        }
    },
    "now": {"parameters": {"type": "object", "properties": {}}},
}
FORMS = ("hermes", "qwen-xml", "lfm2")
"""Families whose shapes have JSON, tags, and names with values."""
ARGUMENTS = {"city": "Zürich <b>", "unit": "c", "days": 3}


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    """Grammars over a vocabulary of bytes, and one token that is a marker."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = tokenizers.Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    library.add_special_tokens(["</think>"])
    return Grammars(Tokenizer(library, len(letters) + 1, frozenset()))


def written(shape: Shape, calls: list[tuple[str, dict[str, Any]]]) -> str:
    return spelled(shape, [{"name": name, "arguments": arguments} for name, arguments in calls])


def allowed(grammars: Grammars, constraint: Constraint, text: str) -> tuple[int, int]:
    """The number of tokens of a text that a constraint allows, and of all."""
    ids = grammars._tokenizer.encode(text)
    return int(constraint._matcher.validate_tokens(ids)), len(ids)


@every_case("name", FORMS)
def test_what_a_grammar_allows_is_read_as_the_calls_that_it_demands(grammars: Grammars, name: str) -> None:
    reads_what_it_allows(grammars, name)


@pytest.mark.slow
@every_case("name", sorted(SHAPES))
def test_so_it_is_in_every_family(grammars: Grammars, name: str) -> None:
    reads_what_it_allows(grammars, name)
    allows_nothing_else(grammars, name)


def reads_what_it_allows(grammars: Grammars, name: str) -> None:
    shape = SHAPES[name]
    calls: list[tuple[str, dict[str, Any]]] = [("weather", ARGUMENTS), ("now", {})]
    for wanted in (calls[:1], calls[1:], *([calls] if shape.several else [])):
        grammar = Structure({"lark_grammar": call_grammar(shape, TOOLS, {}, True)}, "tools")
        text = written(shape, wanted)
        fits, tokens = allowed(grammars, grammars.compile(grammar), text)
        assert fits == tokens, text.encode()[:fits].decode("utf-8", "replace")
        reader = ResponseReader(builtin(name), "", TOOLS)
        message = Message()
        message.add([*reader.push(text), *reader.finish()])
        assert [(one.name, json.loads(one.arguments)) for one in message.calls] == wanted, text
        assert not message.said.strip()


@every_case("name", FORMS)
def test_a_grammar_allows_nothing_else(grammars: Grammars, name: str) -> None:
    allows_nothing_else(grammars, name)


def allows_nothing_else(grammars: Grammars, name: str) -> None:
    shape = SHAPES[name]
    constraint = grammars.compile(Structure({"lark_grammar": call_grammar(shape, TOOLS, {}, False)}, "tools"))
    for wrong in (
        written(shape, [("other", {})]),
        written(shape, [("weather", {"city": "B", "unit": "k", "days": 3})]),
        written(shape, [("weather", {"city": "B", "days": "three"})]),
        written(shape, [("now", {}), ("now", {})]),
        "Hello",
    ):
        fits, tokens = allowed(grammars, constraint, wrong)
        assert fits < tokens, wrong


@every_case(("closing", "markers"), [("</think>", {"</think>": 256}), ("</thought>", {})])
def test_a_thought_may_stand_before_or_must_end(grammars: Grammars, closing: str, markers: dict[str, int]) -> None:
    structure = Structure.of_pattern("[0-9]+", "regex")

    def complete(begun: bool, text: str) -> bool:
        constraint = grammars.compile(structure, thought_grammar(("<think>", closing), markers, begun))
        matcher = constraint._matcher
        return bool(matcher.consume_tokens(grammars._tokenizer.encode(text)) and matcher.is_accepting())

    assert complete(False, "12")
    assert complete(False, f"<think>hm{closing}\n\n12")
    assert not complete(False, f"hm{closing}12")
    assert complete(True, f"hm{closing} 12")
    assert not complete(True, "12")
