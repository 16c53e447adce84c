"""Answers of all families are read alike however they are cut, and no text of them is lost."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgemoe.errors import StoreError
from edgemoe.session.response.builtin import MARKERS, TABLE, builtin, builtin_name
from edgemoe.session.response.form import ResponseForm
from edgemoe.session.response.parts import Call, CallArguments, CallBegun, CallEnded, Message, Said, Thought
from edgemoe.session.response.reader import ResponseReader
from tests.support.every_case import every_case
from tests.support.examples import examples
from tests.support.written_answers import BARE, TOOLS, TWO, WRITTEN


def read(name: str, before: str, pieces: list[str], cut: bool = False, **more: Any) -> Message:
    reader = ResponseReader(builtin(name), before, more.pop("tools", TOOLS), **more)
    message = Message()
    for piece in pieces:
        message.add(reader.push(piece))
    message.add(reader.finish(cut))
    return message


def cut_at(text: str, places: list[float]) -> list[str]:
    ends = sorted({int(place * len(text)) for place in places} | {0, len(text)})
    return [text[begin:end] for begin, end in itertools.pairwise(ends)]


@every_case("name", sorted({**WRITTEN, **BARE}))
def test_the_answers_of_a_family_say_what_they_mean_however_they_are_cut(name: str) -> None:
    before, text = {**WRITTEN, **BARE}[name]
    for eager in (False, True):
        for pieces in ([text], [*text], cut_at(text, [0.1, 0.37, 0.5, 0.61, 0.83])):
            found = read(name, "earlier " + before, pieces, eager=eager)
            assert [(call.name, json.loads(call.arguments), call.whole) for call in found.calls] == [
                (*one, True) for one in TWO
            ]
            assert (found.thought, found.said) == (("", "") if name in BARE else ("hm", "Look:"))


def test_every_form_of_the_table_has_an_example_and_a_mark() -> None:
    assert {*WRITTEN, *BARE, "think"} == {*TABLE} == {name for name, _ in MARKERS}


@settings(deadline=None, max_examples=examples(60))
@given(
    name=st.sampled_from(sorted({**WRITTEN, **BARE})),
    order=st.lists(st.integers(0, 10**6), max_size=12),
    places=st.lists(st.floats(0, 1), max_size=6),
    cut=st.booleans(),
)
@example("hermes", [3, 9], [0.2], False)
def test_no_cut_changes_what_a_damaged_answer_says(name: str, order: list[int], places: list[float], cut: bool) -> None:
    before, text = {**WRITTEN, **BARE}[name]
    pieces = cut_at(text, [number % 97 / 97 for number in order])
    random.Random(sum(order) % 3).shuffle(pieces)
    shuffled = "".join(pieces)
    whole = read(name, before, [shuffled], cut)
    assert read(name, before, cut_at(shuffled, places), cut) == whole == read(name, before, [*shuffled], cut)
    streamed = read(name, before, [shuffled], cut, eager=True)
    assert read(name, before, [*shuffled], cut, eager=True) == streamed
    assert streamed.thought == whole.thought
    if "".join(shuffled.split()) and not whole.calls and not whole.thought:
        assert whole.said.strip()
    for call in [*whole.calls, *(call for call in streamed.calls if call.whole)]:
        assert isinstance(json.loads(call.arguments), dict)


@settings(deadline=None, max_examples=examples(50))
@given(st.sampled_from(sorted(WRITTEN)), st.text(max_size=40))
def test_text_without_markers_is_said_as_it_stands(name: str, text: str) -> None:
    reader = ResponseReader(builtin(name), "", TOOLS)
    message = Message()
    message.add([*reader.push(text), *reader.finish()])
    assert message == Message(text)


def test_malformed_calls_become_text_and_the_next_call_is_read() -> None:
    text = 'A <tool_call>{"name": "now", nonsense}</tool_call> B <tool_call>{"name": "now"}</tool_call>'
    found = read("hermes", "", [text])
    assert found == Message('A <tool_call>{"name": "now", nonsense}</tool_call> B', "", [Call("now", "{}")])
    assert read("hermes", "", ["<tool_call>no"]).said == "<tool_call>no"
    assert read("hermes", "", ['<tool_call>{"name": "now"}'], cut=True).said == '<tool_call>{"name": "now"}'
    assert read("hermes", "", ['<tool_call>{"name": "now"}']).calls == [Call("now", "{}")]


def test_markers_within_strings_are_text() -> None:
    inside = "</tool_call> and <tool_call>"
    call = f'<tool_call>{{"name": "now", "arguments": {{"a": "{inside}"}}}}</tool_call>'
    assert json.loads(read("hermes", "", [call]).calls[0].arguments) == {"a": inside}
    unclosed = '<tool_call>{"name": "now", "arguments": {"a": "x}}</tool_call> said'
    assert read("hermes", "", [unclosed]) == Message(unclosed)


def test_names_that_nobody_offered_are_calls_only_where_a_marker_says_so() -> None:
    bare = '{"name": "other", "parameters": {}}'
    assert read("llama-json", "", [bare]).said == bare
    assert read("llama-json", "", [bare], eager=True) == Message(bare)
    marked = '<tool_call>{"name": "other", "arguments": {}}</tool_call>'
    assert read("hermes", "", [marked]).calls == [Call("other", "{}")]


def test_without_tools_there_are_no_calls() -> None:
    _, text = WRITTEN["hermes"]
    found = read("hermes", "", [text], tools=None)
    assert found.calls == []
    assert found.said.startswith("Look:\n<tool_call>")


def test_arguments_go_out_as_they_are_written() -> None:
    reader = ResponseReader(builtin("qwen-xml"), "", TOOLS, eager=True)
    parts = [part for piece in ("<function=weather>\n<parameter=city>\nZü", "rich\n</par", "ameter>\n", "</function>")
             for part in reader.push(piece)]  # fmt: skip
    assert parts == [
        CallBegun("weather"), CallArguments('{"city": "'), CallArguments("Zü"), CallArguments("rich"),
        CallArguments('"'),
    ]  # fmt: skip
    assert reader.finish() == [CallArguments("}"), CallEnded()]


def test_an_answer_may_end_with_its_first_call() -> None:
    for name in ("hermes", "mistral-list", "granite"):
        before, text = WRITTEN[name]
        reader = ResponseReader(builtin(name), before, TOOLS, most_calls=1)
        message = Message()
        message.add([*reader.push(text), *reader.finish()])
        assert [call.name for call in message.calls] == ["weather"]
        assert reader.full


def test_thoughts_and_text_of_a_prompt_that_is_continued_are_not_told_again() -> None:
    reader = ResponseReader(builtin("hermes"), "<|im_start|>assistant\n<think>\nalready", TOOLS)
    assert reader.in_thought
    assert reader.push(" more</think>\n\nsaid") == [Thought(" more"), Said("said")]


def test_the_mark_of_a_template_names_its_form() -> None:
    assert builtin_name("{{ '<tool_call>' }}<function=x>") == "qwen-xml"
    assert builtin_name("{{ '<tool_call>' }}") == "hermes"
    assert builtin_name("plain") is None


@every_case(
    "damaged",
    [None, {}, {"version": 2, "fields": {}, "start_anchor": "x"}, {"fields": {"content": {}}},
     {"start_anchor": "x", "fields": {"a": {}, "b": {}}}, {"start_anchor": "x", "fields": {"a": {"open_pattern": "("}}},
     {"start_anchor": "x", "fields": {"a": {"content": "yaml"}}}, {"start_anchor": "", "fields": {"a": {}}},
     {"start_anchor": "x", "fields": {"a": {"content": "xml-inline"}}},
     {"start_anchor": "x", "fields": {"a": {"content": "xml-inline", "content_args": {"tag_pattern": "(?P<value>"}}}},
     {"start_anchor": "x", "fields": {"a": {"strange": 1}}}],
)  # fmt: skip
def test_damaged_forms_are_refused(damaged: Any) -> None:
    with pytest.raises(StoreError, match="response_template"):
        ResponseForm.read(damaged)


def test_a_pattern_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemoe.session.response.scan.LIMIT_SECONDS", 0.01)
    form = ResponseForm.read({"start_anchor": "x", "fields": {"tool_calls": {"open_pattern": r"(?:a|aa)+b"}}})
    reader = ResponseReader(form, "", TOOLS)
    with pytest.raises(StoreError, match="too long"):
        reader.push("a" * 100 + "!")
