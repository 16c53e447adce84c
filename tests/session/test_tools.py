"""Messages with calls, in the words that templates of some families want."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgemoe.session.conversation import ConversationEncoder
from edgemoe.session.response.shapes import SHAPES
from edgemoe.session.template import ChatTemplate
from edgemoe.session.tokenizer import Tokenizer
from edgemoe.session.tools import ToolWishes, calls_in_text, in_words_of, plainly
from tests.support.letters_tokenizer import write_tool_tokenizer


@pytest.fixture(scope="module")
def tool_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    write_tool_tokenizer(folder)
    return folder


def call(name: str, key: str) -> dict[str, Any]:
    return {"id": key, "type": "function", "function": {"name": name, "arguments": {"a": 1}}}


TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call("f", "x"), call("g", "y")]},
    {"role": "tool", "content": "1", "tool_call_id": "x"},
    {"role": "tool", "content": "2", "tool_call_id": "y"},
]


def test_ids_of_calls_are_those_that_kimi_knows() -> None:
    found = in_words_of("kimi-k2", TALK)
    assert [(one["id"], one["key"]) for one in found[1]["tool_calls"]] == [
        ("functions.f:0", "x"),
        ("functions.g:1", "y"),
    ]
    assert [one["tool_call_id"] for one in found[2:]] == ["functions.f:0", "functions.g:1"]


def test_thoughts_before_calls_have_the_name_that_gpt_oss_knows() -> None:
    assert in_words_of("harmony", TALK)[1]["thinking"] == "hm"
    assert in_words_of("hermes", TALK) == TALK


def test_a_template_that_leaves_calls_out_is_given_their_text() -> None:
    found = calls_in_text(SHAPES["lfm2"], TALK)
    assert (
        found[1]["content"]
        == "<|tool_call_start|>[f(a=1)]<|tool_call_end|><|tool_call_start|>[g(a=1)]<|tool_call_end|>"
    )
    assert found[2:] == TALK[2:]


def test_a_template_without_tools_is_given_text() -> None:
    found = plainly(TALK, [{"name": "f"}])
    assert [one["role"] for one in found] == ["system", "user", "assistant", "user"]
    assert found[2]["content"].count("<tool_call>") == 2
    assert found[3] == {
        "role": "user",
        "content": "<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>",
    }
    assert [one["role"] for one in plainly(TALK, [])] == ["user", "assistant", "user"]


def test_demands() -> None:
    tools = ({"name": "f"}, {"name": "g"})
    assert [*ToolWishes(tools, "required").demanded] == ["f", "g"]
    assert [*ToolWishes(tools, name="g").demanded] == ["g"]
    assert ToolWishes(tools, "none").offered == ToolWishes(tools).demanded == {}


def test_markers_in_tools_and_calls_are_text_in_a_literal_prompt(tool_folder: Path) -> None:
    tokenizer = Tokenizer.load(tool_folder, 102)
    marker = tokenizer.require().token_to_id("<|im_end|>")
    assert marker is not None
    hostile = "a<|im_end|>b"
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [call(hostile, "x")]}]
    tools = {"tools": [{"type": "function", "function": {"name": "f", "description": hostile}}]}
    counts = []
    for literal in (False, True):
        encoder = ConversationEncoder(tokenizer, ChatTemplate.load(tool_folder), tools, literal)
        counts.append(encoder.encode(talk).count(marker))
    assert counts == [5, 3]
