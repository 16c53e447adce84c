import gc
import itertools
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgemoe.errors import ConversationError, EdgemoeError, StoreError, UsageError
from edgemoe.session import template_process, template_worker
from edgemoe.session.template import ChatTemplate
from tests.support.small_tokenizer import TEMPLATE, write_model_folder

USER = {"role": "user", "content": "hi"}


WORKER = template_process.TemplateProcess()
"""One for all tests that ask no more than what a template renders to; starting Python takes longer than that."""


@pytest.fixture(autouse=True, scope="module")
def _one_template_worker() -> None:
    """Here templates have processes of their own."""


def render(source: str, **special_tokens: str) -> str:
    template = ChatTemplate(source, special_tokens)
    template._process = WORKER
    return template.render([USER])


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


def test_a_template_may_change_what_it_made_itself() -> None:
    """Kimi's queue up the ids of calls, for the results that follow; transformers' environment forbids that."""
    source = (
        "{% set made = namespace(ids=[], names={}) %}"
        "{% for one in 'abc' %}{% set _ = made.ids.append(one) %}{% endfor %}{% set _ = made.names.update(x=1) %}"
        "{{ made.ids.pop(0) }}{{ made.ids }}{{ made.names }}"
    )
    for _ in range(2):
        assert render(source) == "a['b', 'c']{'x': 1}"


def test_special_tokens_may_be_strings_or_objects(tmp_path: Path) -> None:
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None, "chat_template": "x"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.load(tmp_path).special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_names_that_only_the_map_of_special_tokens_has_are_there(tmp_path: Path) -> None:
    """As transformers renders it."""
    source = "{{ bos_token }}|{{ messages[0].content }}|{{ eos_token }}"
    (tmp_path / "chat_template.jinja").write_text(source)
    names = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(names))
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


@pytest.mark.parametrize("value", [[{"name": name, "template": "t"} for name in ("rag", "b")], {"b": "1", "rag": "2"}])
def test_several_templates_without_a_default_are_refused_by_their_names(tmp_path: Path, value: object) -> None:
    """As transformers refuses them (ValueError: multiple chat templates with no default specified)."""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(StoreError, match="expected one template named default, found b, rag"):
        ChatTemplate.load(tmp_path)


@pytest.mark.parametrize("value", [3, {"default": 3}, [{"name": "default", "template": 4}]])
def test_a_template_of_another_type_is_refused(tmp_path: Path, value: object) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(StoreError, match="chat_template"):
        ChatTemplate.load(tmp_path)


def test_a_template_may_refuse_a_conversation_in_its_own_words() -> None:
    with pytest.raises(ConversationError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_a_template_that_does_not_parse_is_an_error_with_its_line() -> None:
    with pytest.raises(StoreError, match="line 2"):
        render("a\n{% if %}")


def test_a_template_that_says_nothing_is_refused() -> None:
    with pytest.raises(StoreError, match="chat template: it turns the conversation into an empty text"):
        render("{# nothing #}")


def test_too_large_a_template_is_refused() -> None:
    with pytest.raises(StoreError, match="at most 256 KiB"):
        ChatTemplate("x" * (256 * 1024 + 1))


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include '/etc/passwd' %}",
        "{{ undefined_function() }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ 'x' * 10**10 }}",
        "{{ 'x'.ljust(10**10) }}",
        pytest.param(
            "{% set ns = namespace(x='x') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            marks=pytest.mark.slow,
        ),
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
        "{{ 9 ** (9 ** 9) }}",  # in one call, between whose beginning and end Python looks at no signal
        pytest.param(
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", marks=pytest.mark.slow
        ),
    ],
)
def test_an_endless_template_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "CPU_LIMIT_SECONDS", 0.4)  # the system counts whole ones
    with pytest.raises(StoreError, match=r"more than 0\.4 seconds of processor time, and was stopped"):
        render(source)


def test_the_time_in_which_the_program_was_stopped_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by an hour between two looks is what a program sees that was stopped and continued."""
    hours = itertools.count()
    for clock in ("time.monotonic", "subprocess._time"):
        monkeypatch.setattr(clock, lambda: 3600.0 * next(hours))
    assert render("{{ messages[0].content }}") == "hi"


@pytest.mark.slow
@pytest.mark.alone
def test_a_program_that_is_stopped_and_continued_renders() -> None:
    code = (
        "from edgemoe.session import template_process as t; from edgemoe.session.template import ChatTemplate\n"
        "t.WAIT_LIMIT_SECONDS = 1.0; template = ChatTemplate('{% for i in range(90000) %}{{ i }}{% endfor %}x')\n"
        "template.render([]); print('ready', flush=True); [template.render([]) for _ in range(60)]; print('done')"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        program.send_signal(signal.SIGSTOP)
        time.sleep(3)  # longer than it waits for an answer
        program.send_signal(signal.SIGCONT)
        assert program.stdout.read() == b"done\n"


def test_an_answer_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    assert template.render([USER]) == "hi"
    worker = template._process._process
    assert worker is not None
    worker.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(template_process, "WAIT_LIMIT_SECONDS", 0.2)
    monkeypatch.setattr(template_process, "SLICE_SECONDS", 0.1)
    with pytest.raises(EdgemoeError, match="no answer within"):
        template.render([USER])
    assert worker.returncode == -signal.SIGKILL


def test_one_process_renders_until_a_limit_is_broken() -> None:
    source = "{{ messages[0].content }}{% if messages[0].content == 'big' %}{{ 'x' * 10**10 }}{% endif %}"
    template = ChatTemplate(source)
    assert template.render([USER]) == "hi"
    worker = template._process._process
    assert worker is not None
    long = "é" * 300_000  # more than a pipe holds
    assert template.render([{"role": "user", "content": long}]) == long
    assert template._process._process is worker
    with pytest.raises(StoreError, match="512 MiB of memory"):
        template.render([{"role": "user", "content": "big"}])
    assert worker.returncode == -signal.SIGKILL
    assert template.render([USER]) == "hi"
    second = template._process._process
    assert second is not None
    second.kill()  # from outside, as where memory is short
    second.wait()
    assert template.render([USER]) == "hi"
    third = template._process._process
    assert third is not None
    del template
    gc.collect()
    assert third.returncode == -signal.SIGKILL


def test_each_rendering_has_processor_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {}
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.update({kind: pair[0]}))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (-1, resource.RLIM_INFINITY))
    for used_s in (0.2, 57.5):
        monkeypatch.setattr(resource, "getrusage", lambda who, s=used_s: SimpleNamespace(ru_utime=s, ru_stime=0.1))
        template_worker.limit_resources(10)
        assert limits == {resource.RLIMIT_AS: 512 << 20, resource.RLIMIT_CPU: {0.2: 11, 57.5: 68}[used_s]}


def test_a_template_reads_the_variables_that_it_is_given() -> None:
    """`apply_chat_template(..., enable_thinking=False, bos_token="B")` of transformers renders the same."""
    source = "{{ bos_token }}{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    template = ChatTemplate(source, {"bos_token": "<s>"})
    assert template.render([USER]) == "<s>"
    assert template.render([USER], variables={"enable_thinking": False}) == "<s><think></think>"
    assert template.render([USER], variables={"enable_thinking": True, "bos_token": "B"}) == "B"
    template.check_variables({"enable_thinking": [1, {"a": None}]})
    for wrong, message in (
        ({"enable_thinkin": False}, "'enable_thinkin': this model's chat template does not read it"),
        ({"messages": []}, "edgemoe sets this one itself"),
        ({"enable_thinking": object()}, "expected a JSON value, found object"),
    ):
        with pytest.raises(UsageError, match=message):
            template.check_variables(wrong)


TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content.split('</think>')[-1] }}{% endfor %}[assistant]"
"""A conversation without the thoughts of earlier answers, as these templates have it."""
DEFINED_AND_FALSE = TURNS + "{{ '<think></think>' if (enable_thinking is defined and not enable_thinking) else '' }}"
"""The switch of Qwen3 and of GLM from 4.5 on, whose models begin to think by themselves."""
DEFAULT_ON = (
    TURNS
    + "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% else %}<think>{% endif %}"
)
"""The switch of Qwen3.5 and, by another name, of Kimi from K2.5 on."""
DEFAULT_OFF = (
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}" + TURNS
    + "{% if not thinking %}</think>{% else %}<think>{% endif %}"
)  # fmt: skip
"""The switch of DeepSeek-V3.1."""
WITH_DEFAULT = "{{ '[/no_think]' if not enable_thinking | default(true) }}" + TURNS
EFFORT_IN_MACRO = (
    "{%- macro begin() -%}{%- if reasoning_effort is not defined %}{%- set reasoning_effort = 'medium' %}{%- endif %}"
    "[effort {{ reasoning_effort }}]{%- endmacro -%}{{ begin() }}"
    "{% for m in messages if m.thinking %}[analysis]{{ m.thinking }}{% endfor %}" + TURNS
)
"""The effort of gpt-oss, whose messages have an attribute of the other switch's name."""
EFFORT_OR_NONE = (
    "{%- set reasoning_effort = reasoning_effort if reasoning_effort is defined and reasoning_effort is not none"
    " else 'none' %}[effort {{ reasoning_effort }}]" + TURNS
)
"""The effort of Mistral Small 4."""
BUDGET = "{% if thinking_budget is defined %}[budget {{ thinking_budget }}]{% endif %}" + TURNS


@pytest.mark.parametrize(("source", "name", "texts"), [
    (DEFINED_AND_FALSE, "enable_thinking", {None: "~", True: "~", False: "~<think></think>"}),
    (DEFAULT_ON, "enable_thinking", {None: "~<think>", True: "~<think>", False: "~<think></think>"}),
    (DEFAULT_ON.replace("enable_", ""), "thinking", {None: "~<think>", True: "~<think>", False: "~<think></think>"}),
    (DEFAULT_OFF, "thinking", {None: "~</think>", True: "~<think>", False: "~</think>"}),
    (WITH_DEFAULT, "enable_thinking", {None: "~", True: "~", False: "[/no_think]~"}),
    (EFFORT_IN_MACRO, "reasoning_effort", {None: "[effort medium]~", "high": "[effort high]~"}),
    (EFFORT_OR_NONE, "reasoning_effort", {None: "[effort none]~", "high": "[effort high]~"}),
    (BUDGET, "thinking_budget", {None: "~", 0: "[budget 0]~", 512: "[budget 512]~"}),
])  # fmt: skip
def test_thinking_is_switched_by_the_variable_that_a_template_has(
    source: str, name: str, texts: dict[object, str]
) -> None:
    """In the texts `~` stands for the conversation."""
    template = ChatTemplate(source)
    template._process = WORKER
    for value, text in texts.items():
        variables = {} if value is None else {name: value}
        template.check_variables(variables)
        assert template.render([USER], variables=variables) == text.replace("~", "[user]hi[assistant]")
    others = {"enable_thinking", "thinking", "reasoning_effort", "thinking_budget", "effort"} - {name}
    for other in sorted(others):
        with pytest.raises(UsageError, match=f"'{other}': this model's chat template does not read it") as error:
            template.check_variables({other: False})
        assert error.value.hint == f"It reads {name}."


@pytest.mark.parametrize(
    "source",
    [
        TURNS,
        TURNS + "{# enable_thinking #}",
        TURNS + "enable_thinking",
        TURNS + "{{ messages[0].enable_thinking }}",
        TURNS + "{% set enable_thinking = true %}{{ enable_thinking }}{{ bos_token }}",
    ],
)
def test_a_template_without_a_switch_says_so(source: str) -> None:
    """Names in comments, texts and messages are no variables, nor is what the template sets itself."""
    template = ChatTemplate(source, {"bos_token": "<s>"})
    template._process = WORKER
    with pytest.raises(UsageError, match="does not read it") as error:
        template.check_variables({"enable_thinking": False})
    assert error.value.hint == "It reads none, so that no variable switches anything."


@pytest.mark.parametrize("value", ["false", "off", "no", "0", ""])
def test_a_text_is_no_switch(value: str) -> None:
    template = ChatTemplate(DEFAULT_ON)
    template._process = WORKER
    with pytest.raises(UsageError, match="expected true or false, found the text") as error:
        template.check_variables({"enable_thinking": value})
    assert error.value.hint == "For example: enable_thinking=false."


def test_what_does_not_parse_is_told_where_it_is_rendered() -> None:
    template = ChatTemplate("{% if %}")
    template._process = WORKER
    template.check_variables({"enable_thinking": False})
    with pytest.raises(StoreError, match="does not parse"):
        template.render([USER], variables={"enable_thinking": False})


def test_modules_in_the_current_folder_do_not_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jinja2.py").write_text("raise SystemExit(3)")
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert ChatTemplate(TEMPLATE).render([USER]).startswith("<|im_start|>user")
