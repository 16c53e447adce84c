"""Answers with channels: each message under its header, the final one plain, and only that stays in a conversation."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from edgemoe.model.sampling import SamplingOptions
from edgemoe.session.channels import LONGEST_HEADER, ChannelTexts, texts_of
from edgemoe.session.chat import ChatSession
from edgemoe.session.generate import Generation
from edgemoe.session.held_tokens import HeldTokens
from edgemoe.session.special_tokens import ChannelMarkers
from edgemoe.session.template import ChatTemplate
from edgemoe.session.tokenizer import Detokeniser, Tokenizer, stop_ids
from tests.support.every_case import every_case
from tests.support.fake_engine import FakeEngine
from tests.support.small_tokenizer import small_tokenizer

MARKERS = [f"<|{name}|>" for name in ("start", "channel", "message", "end", "return", "call", "constrain")]
TEMPLATE = """\
{%- macro system() %}
    {{- 'Current date: ' + strftime_now('%Y-%m-%d') + '\n' }}
    {%- if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}{% endif %}
    {{- 'Reasoning: ' + reasoning_effort }}
{%- endmacro -%}
{{- '<|start|>system<|message|>' + system() + '<|end|>' }}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {%- if '<|channel|>' in message.content %}{{ raise_exception('channels in the content') }}{% endif -%}
        {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}
    {%- else -%}
        {{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}
"""
"""As that of gpt-oss, in short: a date, an effort, and a prompt that ends within a header."""


@functools.cache
def channel_tokenizer() -> Tokenizer:
    library = tokenizers.Tokenizer.from_str(small_tokenizer().to_str())
    library.add_special_tokens(MARKERS)
    markers = ChannelMarkers.of(library)
    assert markers is not None
    return Tokenizer(library, library.get_vocab_size(), frozenset({markers.stop, markers.call}))


PROMPT = "<|start|>user<|message|>Hi<|end|><|start|>assistant"


def read(text: str, prompt: str = PROMPT) -> tuple[str, str | None]:
    """All that an answer shows, and the part in the final channel."""
    tokenizer = channel_tokenizer()
    texts = texts_of(tokenizer, tokenizer.encode(prompt))
    assert isinstance(texts, ChannelTexts)
    shown = "".join(map(texts.push, tokenizer.encode(text))) + texts.finish()
    return shown, None if texts.final_start is None else shown[texts.final_start :]


@every_case(
    ("text", "shown", "final"),
    [
        (
            "<|channel|>analysis<|message|>Hi them.<|end|><|start|>assistant<|channel|>final<|message|>Hello, world!",
            "[analysis]\nHi them.\n\nHello, world!",
            "Hello, world!",
        ),
        ("<|channel|>final<|message|>Hello", "Hello", "Hello"),
        ("<|message|>Hello", "Hello", "Hello"),
        ("<|channel|>analysis<|message|>Hm", "[analysis]\nHm", None),
        ("<|channel|>analysis<|message|>Größe 🙂<|end|>", "[analysis]\nGröße 🙂", None),
        (
            "<|channel|>commentary to=functions.find <|constrain|>json<|message|>{}",
            "[commentary to=functions.find json]\n{}",
            None,
        ),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant to=browser<|channel|>commentary<|message|>{}",
            "[analysis]\na\n\n[assistant to=browser commentary]\n{}",
            None,
        ),
        (
            "<|channel|>final<|message|>one<|end|><|start|>assistant<|channel|>final<|message|>two",
            "one\n\ntwo",
            "one\n\ntwo",
        ),
        # Text that never becomes a message is not lost.
        ("plain text", "plain text", "plain text"),
        ("<|channel|>analysis", "analysis", None),
        ("<|channel|>final<|message|>", "", ""),
        ("<|end|><|end|><|channel|>final<|message|>x", "x", "x"),
    ],
)
def test_messages_and_their_headers(text: str, shown: str, final: str | None) -> None:
    assert read(text) == (shown, final)


def test_a_prompt_that_ends_within_a_message_goes_on_in_it() -> None:
    begun = PROMPT + "<|channel|>final<|message|>Hello"
    assert read(", world<|end|>", begun) == (", world", ", world")
    assert read("continued", "a plain text") == ("continued", "continued")
    assert read("is<|message|>Hm", PROMPT + "<|channel|>analys") == ("[analysis]\nHm", None)


def test_a_header_without_end_becomes_text_in_time() -> None:
    tokenizer = channel_tokenizer()
    texts = texts_of(tokenizer, tokenizer.encode(PROMPT))
    (letter,) = tokenizer.encode("x")
    pieces = [texts.push(letter) for _ in range(LONGEST_HEADER + 9)]
    assert "".join(pieces) == "x" * (LONGEST_HEADER + 9)
    assert not any(pieces[: LONGEST_HEADER // 2])


@given(st.lists(st.sampled_from([*MARKERS, "final", "analysis", "ö", " word", "\n", "🙂"]), max_size=30))
def test_whatever_comes_no_text_of_a_message_is_lost(parts: Sequence[str]) -> None:
    """Each text between a marker of a message and the next marker is shown, in order."""
    shown, final = read("".join(parts))
    place, inside = 0, False
    for part in parts:
        if part in MARKERS[:4]:
            inside = part == "<|message|>"
        elif part not in MARKERS and inside:
            found = shown.find(part, place)
            assert found >= 0
            place = found + len(part)
    assert final is None or shown.endswith(final)


def test_a_tokenizer_without_channels_is_read_as_before() -> None:
    plain = Tokenizer(small_tokenizer(), 404, frozenset())
    assert plain.channel_markers is None
    assert type(texts_of(plain, [])) is Detokeniser
    some = tokenizers.Tokenizer.from_str(small_tokenizer().to_str())
    some.add_special_tokens(MARKERS[:3])
    assert ChannelMarkers.of(some) is None
    some.add_tokens(MARKERS)  # the others are not special
    assert ChannelMarkers.of(some) is not None


def test_return_and_call_end_an_answer_whatever_the_files_say(tmp_path: Path) -> None:
    tokenizer = channel_tokenizer()
    (tmp_path / "config.json").write_text('{"eos_token_id": 3}')
    found = stop_ids(tmp_path, tokenizer.require())
    markers = tokenizer.channel_markers
    assert markers is not None
    assert found == {3, markers.stop, markers.call}
    assert markers.end not in found


def chat_saying(text: str) -> ChatSession:
    tokenizer = channel_tokenizer()
    script = tokenizer.encode(text)
    held = HeldTokens(FakeEngine(tokenizer.vocabulary, 512, script))  # type: ignore[arg-type]
    return ChatSession(held, tokenizer, ChatTemplate(TEMPLATE), SamplingOptions(temperature=0))


def test_a_chat_shows_thoughts_and_keeps_the_answer() -> None:
    chat = chat_saying(
        "<|channel|>analysis<|message|>Greet.<|end|><|start|>assistant<|channel|>final<|message|>Hello!<|return|>"
    )
    answer = chat.send("Hi")
    assert "".join(answer) == answer.generation.text == "[analysis]\nGreet.\n\nHello!"
    assert answer.generation.finish_reason == "stop"
    assert chat.messages[-1] == {"role": "assistant", "content": "Hello!"}
    assert chat.ask("And now?") == "[analysis]\nGreet.\n\nHello!"
    seen = chat._tokenizer.decode(chat._held.ids, skip_special_tokens=False)
    assert "<|start|>assistant<|channel|>final<|message|>Hello!<|end|><|start|>user<|message|>And now?<|end|>" in seen
    assert "Reasoning: medium" in seen


THOUGHT = "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant"


@pytest.mark.parametrize("said", ["", THOUGHT])
def test_a_message_that_a_tool_is_called_for_leaves_no_empty_answer(said: str) -> None:
    chat = chat_saying(said + "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>")
    answer = chat.send("Hi")
    assert "".join(answer).endswith("[commentary to=functions.f json]\n{}")
    assert answer.generation.finish_reason == "stop"
    assert answer.generation.answer is None
    assert not answer.joined
    assert chat.messages == []


@pytest.mark.parametrize("thinking", [True, False])
def test_a_chat_that_is_stopped_keeps_what_was_said_to_the_person(thinking: bool) -> None:
    chat = chat_saying(THOUGHT + "<|channel|>final<|message|>Hello!")
    answer = chat.send("Hi")
    for _ in answer:
        if thinking or answer.generation.answer:
            answer.stop()
    assert answer.generation.finish_reason == "interrupted"
    assert answer.generation.text.startswith("[analysis]")
    assert answer.joined != thinking
    said = answer.generation.answer
    assert said is None if thinking else said and "Hello!".startswith(said)
    assert [message["content"] for message in chat.messages] == ([] if thinking else ["Hi", said])


def test_an_empty_answer_is_one() -> None:
    chat = chat_saying("<|channel|>final<|message|><|return|>")
    assert chat.ask("Hi") == ""
    assert [message["content"] for message in chat.messages] == ["Hi", ""]


def test_a_stop_text_cuts_the_answer_too() -> None:
    tokenizer = channel_tokenizer()
    ids = tokenizer.encode("<|channel|>final<|message|>Hello, world!<|return|>")
    engine = FakeEngine(tokenizer.vocabulary, 512, ids)
    options = SamplingOptions(temperature=0, stop=("wor",))
    generation = Generation(HeldTokens(engine), tokenizer, tokenizer.encode(PROMPT), options)  # type: ignore[arg-type]
    assert "".join(generation) == generation.text == generation.answer == "Hello, "
