import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgemoe.errors import EdgemoeError, UsageError
from edgemoe.session.chat import Answer, ChatMessage, ChatSession
from edgemoe.session.model import Model
from edgemoe.session.template import ChatTemplate
from tests.support.every_case import every_case
from tests.support.fake_engine import FakeEngine

MakeModel = Callable[..., Model]


def read(answer: Answer) -> str:
    return "".join(answer)


def test_turns_join_the_conversation(make_model: MakeModel) -> None:
    chat = make_model("Hello, world!").chat()
    assert chat.ask("Hi") == "Hello, world!"
    assert chat.messages == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello, world!"},
    ]


def test_only_the_new_turn_is_computed(make_model: MakeModel) -> None:
    model = make_model("Hello, world!")
    chat = model.chat()
    read(chat.send("Hi"))
    held = chat.held_tokens
    assert isinstance(model.engine, FakeEngine)
    calls = len(model.engine.calls)
    read(chat.send("And now?"))
    prefilled = model.engine.calls[calls]
    rendered = model.template.render([*chat.messages[:2], {"role": "user", "content": "And now?"}])
    prompt = model.tokenizer.encode(rendered)
    assert prefilled == prompt[held:]


def test_undo_retry_reset_and_system(make_model: MakeModel) -> None:
    chat = make_model("Hello!").chat(system="Be brief.")
    read(chat.send("one"))
    read(chat.send("two"))
    before = list(chat.messages)
    assert read(chat.retry()) == "Hello!"
    assert chat.messages == before
    assert chat.undo() == "two"
    assert len(chat.messages) == 2
    chat.reset()
    assert (chat.messages, chat.system, chat.undo()) == ([], "Be brief.", None)
    with pytest.raises(UsageError):
        chat.retry()


def test_a_stopped_answer_stays_as_far_as_it_went(make_model: MakeModel) -> None:
    chat = make_model("Hello, world!").chat()
    answer = chat.send("Hi")
    for _ in answer:
        answer.stop()
    assert answer.generation.finish_reason == "interrupted"
    assert chat.messages[-1]["content"] == answer.generation.text != ""


def test_a_message_whose_answer_had_not_begun_is_taken_back(make_model: MakeModel) -> None:
    chat = make_model().chat()
    read(chat.send("first"))
    before = list(chat.messages)
    for answer in (chat.send("second"), chat.retry()):
        answer.stop()
        assert read(answer) == ""
        assert chat.messages == before


def test_when_the_context_is_full_the_oldest_turns_are_forgotten(make_model: MakeModel) -> None:
    model = make_model("Hello, world!", context_length=150)
    chat = model.chat(system="Be brief.", max_tokens=20)
    forgotten = []
    for turn in range(8):
        answer = chat.send(f"Message {turn}")
        read(answer)
        forgotten.append(answer.newly_forgotten_turns)
        assert chat.held_tokens <= 150
    assert len(chat.messages) == 16
    assert chat.forgotten_turns == sum(forgotten) > 0
    # several at once, so that it is rare
    assert 0 < sum(count > 0 for count in forgotten) < 4
    visible = model.tokenizer.decode(model.held.ids, skip_special_tokens=False)
    assert "Be brief." in visible
    assert "Message 0<" not in visible
    assert "Message 7<" in visible
    while chat.undo():
        pass
    assert chat.forgotten_turns == 0


def test_the_fewest_turns_are_forgotten_that_leave_half_a_context(make_model: MakeModel) -> None:
    model = make_model("Hello!", context_length=400)
    chat = model.chat(max_tokens=20)
    for turn in range(1, 30):
        before, forgotten = list(chat.messages), chat.forgotten_turns
        read(chat.send(f"Message {turn}"))
        if chat.forgotten_turns > forgotten:
            break
    question = ChatMessage(role="user", content=f"Message {turn}")
    sizes = [len(chat._prompt(before, question, out).ids) for out in range(len(before) // 2 + 1)]
    assert chat.forgotten_turns == next(out for out, size in enumerate(sizes) if size <= 200) > 2


def test_a_message_or_a_limit_of_another_type_is_refused(make_model: MakeModel) -> None:
    model = make_model("Hello!")
    for message in (None, 5, b"Hi"):
        with pytest.raises(UsageError, match="the message: expected text, found"):
            model.chat().send(message)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="the message: expected text, found"):
            model.encode_chat(message)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the message: expected text, found 5"):
        model.chat(system=5).send("Hi")  # type: ignore[arg-type]
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image", "image": "cat.png"}]
    with pytest.raises(UsageError, match="found a part of type image: edgemoe reads text alone"):
        model.chat().send(parts)  # type: ignore[arg-type]
    for limit in ("3", 2.0, True, 0):
        chat = model.chat(max_tokens=limit)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="`max_tokens`: expected 1 or more, found"):
            chat.send("Hi")
        assert not chat.messages


def test_a_message_that_cannot_fit_is_refused_and_changes_nothing(make_model: MakeModel) -> None:
    chat = make_model("Hello!", context_length=100).chat()
    read(chat.send("Hi"))
    before = list(chat.messages)
    for wrong in ("x" * 500, "y" * 100_000, "", " \n"):
        with pytest.raises(UsageError):
            chat.send(wrong)
    assert (chat.messages, chat.forgotten_turns) == (before, 0)


def test_a_conversation_is_saved_and_taken_up_again(make_model: MakeModel, tmp_path: Path) -> None:
    chat = make_model("Hello!").chat(system="Be brief. é")
    read(chat.send("Hi"))
    path = tmp_path / "talk.json"
    chat.save(path)
    other = make_model("Hello!").chat()
    other.load(path)
    assert (other.messages, other.system) == (chat.messages, chat.system)
    assert read(other.send("More")) == "Hello!"
    assert [entry.name for entry in tmp_path.iterdir()] == ["talk.json"]
    with pytest.raises(EdgemoeError, match="cannot be written"):
        chat.save(tmp_path / "missing" / "talk.json")
    with pytest.raises(EdgemoeError, match="name of a file"):
        chat.save(Path())
    with pytest.raises(EdgemoeError, match="cannot be"):
        chat.save(tmp_path / ("x" * 300))
    for unreadable in (tmp_path, tmp_path / "missing", tmp_path / ("x" * 300)):
        with pytest.raises(EdgemoeError, match="written by /save"):
            chat.load(unreadable)


@every_case(
    "data",
    [
        {},
        {"edgemoe_chat": 2, "messages": []},
        {"edgemoe_chat": 1, "messages": {}},
        {"edgemoe_chat": 1, "messages": [{"role": "user", "content": "x"}]},
        {"edgemoe_chat": 1, "messages": [{"role": "user", "content": 1}, {"role": "assistant", "content": "x"}]},
        {"edgemoe_chat": 1, "messages": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "x"}]},
        {"edgemoe_chat": 1, "messages": [], "system": 3},
        [],
    ],
)
def test_another_file_is_not_a_conversation(make_model: MakeModel, tmp_path: Path, data: object) -> None:
    path = tmp_path / "talk.json"
    path.write_text(json.dumps(data))
    chat: ChatSession = make_model().chat()
    with pytest.raises(EdgemoeError, match=r"talk\.json"):
        chat.load(path)
    assert chat.messages == []


THOUGHTFUL = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content.split('</think>')[-1] }}{% endfor %}[assistant]"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% else %}<think>{% endif %}"
)
"""Like those of models whose prompts begin the thought, and leave earlier thoughts out."""


@pytest.mark.parametrize("thinks", [None, True, False])
def test_a_conversation_goes_on_without_the_thoughts_of_its_answers(make_model: MakeModel, thinks: bool | None) -> None:
    said = "Hello!" if thinks is False else "so</think>Hello!"
    model = make_model(said)
    model.template = ChatTemplate(THOUGHTFUL)
    chat = model.chat(template_variables={} if thinks is None else {"enable_thinking": thinks})
    begun = "<think></think>" if thinks is False else "<think>"
    assert chat.ask("Hi") == said
    assert model.decode(model.held.ids) == f"[user]Hi[assistant]{begun}{said}"
    chat.ask("And?")
    assert model.decode(model.held.ids) == f"[user]Hi[assistant]Hello![user]And?[assistant]{begun}{said}"
    assert [message["content"] for message in chat.messages] == ["Hi", said, "And?", said]
