import json
from pathlib import Path

import pytest

from edgemoe.errors import EdgemoeError, StoreError
from edgemoe.session import template as template_module
from edgemoe.session.template import ChatTemplate
from tests.support.small_tokenizer import TEMPLATE, write_model_folder

USER = {"role": "user", "content": "hi"}


def render(source: str, **special_tokens: str) -> str:
    return ChatTemplate(source, special_tokens).render([USER])


def test_a_conversation_becomes_the_text_of_its_template(folder: Path) -> None:
    template = ChatTemplate.load(folder)
    messages = [{"role": "system", "content": "Be kind."}, USER]
    assert template.render(messages) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    without_opening = template.render([USER], add_generation_prompt=False)
    assert without_opening == "<|im_start|>user\nhi<|im_end|>\n"


def test_blocks_are_trimmed_and_special_tokens_named() -> None:
    source = "{{ bos_token }}\n  {% for m in messages %}\n{{ m.content }}\n  {% endfor %}\n"
    assert render(source, bos_token="<s>") == "<s>\nhi\n"


def test_what_templates_expect_to_find_is_there() -> None:
    assert render("{{ {'b': 'é', 'a': 1} | tojson }}") == '{"b": "é", "a": 1}'
    assert render("{{ [1] | tojson(indent=1) }}") == "[\n 1\n]"
    assert len(render("{{ strftime_now('%Y') }}")) == 4
    assert render("{% generation %}x{{ messages[0].content }}{% endgeneration %}y") == "xhiy"
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("{% if tools is none and not undefined_name %}ok{% endif %}") == "ok"


def test_special_tokens_may_be_strings_or_objects(tmp_path: Path) -> None:
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None, "chat_template": "x"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.load(tmp_path).special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_names_that_only_the_map_of_special_tokens_has_are_there(tmp_path: Path) -> None:
    """As transformers renders it."""
    source = "{{ bos_token }}|{{ messages[0].content }}|{{ eos_token }}"
    (tmp_path / "chat_template.jinja").write_text(source)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))
    assert ChatTemplate.load(tmp_path).render([USER]) == "<s>|hi|</s>"


@pytest.mark.parametrize(
    ("value", "source"),
    [
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ({"tool_use": "t", "default": "d"}, "d"),
        ("d", "d"),
    ],
)
def test_of_several_templates_the_default_is_taken_and_a_file_before_all(
    tmp_path: Path, value: object, source: str
) -> None:
    folder = write_model_folder(tmp_path / "model", template=None)
    with pytest.raises(StoreError, match="no chat template"):
        ChatTemplate.load(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    assert ChatTemplate.load(folder).source == source
    (folder / "chat_template.jinja").write_text("file")
    assert ChatTemplate.load(folder).source == "file"


@pytest.mark.parametrize("value", [[{"name": "rag", "template": "r"}, {"name": "b", "template": "t"}], {"b": 1, "rag": 2}])
def test_several_templates_without_a_default_are_refused_by_their_names(tmp_path: Path, value: object) -> None:
    """As transformers refuses them (ValueError: multiple chat templates with no default specified)."""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(StoreError, match="expected one template named default, found b, rag"):
        ChatTemplate.load(tmp_path)


@pytest.mark.parametrize("value", [3, {"default": 3}, [{"name": "default", "template": 4}], [3]])
def test_a_template_of_another_type_is_refused(tmp_path: Path, value: object) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(StoreError, match="chat.template"):
        ChatTemplate.load(tmp_path)


def test_a_template_may_refuse_a_conversation_in_its_own_words() -> None:
    with pytest.raises(EdgemoeError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_a_template_that_does_not_parse_is_an_error_with_its_line() -> None:
    with pytest.raises(StoreError, match="line 2"):
        render("a\n{% if %}")


def test_a_template_that_says_nothing_is_refused() -> None:
    with pytest.raises(StoreError, match="chat template: it makes an empty text"):
        render("{# nothing #}")


def test_too_large_a_template_is_refused() -> None:
    with pytest.raises(StoreError, match="at most 256 KiB"):
        ChatTemplate("x" * (256 * 1024 + 1))


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include '/etc/passwd' %}",
        "{{ undefined_function() }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ 'x' * 10**10 }}",
        "{{ 'x'.ljust(10**10) }}",
        "{% set ns = namespace(x='x') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{" * 5000,
    ],
)
def test_a_hostile_template_ends_in_an_error(source: str) -> None:
    with pytest.raises(EdgemoeError, match="chat template"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
    ],
)
def test_an_endless_template_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "RENDER_LIMIT_SECONDS", 1.0)
    with pytest.raises(StoreError, match="was stopped"):
        render(source)


def test_modules_in_the_current_folder_do_not_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jinja2.py").write_text("raise SystemExit(3)")
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert ChatTemplate(TEMPLATE).render([USER]).startswith("<|im_start|>user")
