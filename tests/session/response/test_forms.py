"""The form of a checkpoint comes before that of its family, and means what transformers says that it means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgemoe.session.response.builtin import TABLE, builtin
from edgemoe.session.response.forms import form_of
from edgemoe.session.response.parts import Call, Message
from edgemoe.session.response.reader import ResponseReader
from tests.support.every_case import every_case
from tests.support.written_answers import TOOLS, TWO, WRITTEN

OWN = {
    "version": 1,
    "start_anchor": "<bot>",
    "defaults": {"role": "assistant"},
    "fields": {
        "thinking": {"open": "(", "close": ")"},
        "tool_calls": {
            "open_pattern": r"@(?P<name>\w+)\[",
            "close": "]",
            "repeats": True,
            "content": "kv-lines",
            "content_args": {"line_sep": ";", "kv_sep": "="},
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "note": {"open": "#", "close": "\n"},
        "content": {},
    },
}


def test_a_checkpoint_s_own_form_comes_first(tmp_path: Path) -> None:
    assert form_of(tmp_path, "plain") is None
    assert form_of(tmp_path, "<tool_call>") is builtin("hermes")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"response_template": OWN}))
    form = form_of(tmp_path, "<tool_call>")
    assert form is not None
    reader, message = ResponseReader(form, "earlier <bot>(hm", {"f": {}}), Message()
    message.add(reader.push(" so)Yes #kept\n @f[a=1; b=two] no"))
    message.add(reader.finish())
    assert message == Message("Yes kept  no", " so", [Call("f", '{"a": "1", "b": "two"}')])


@pytest.mark.oracle
@every_case("name", sorted(set(WRITTEN) - {"minimax-m1", "gemma4", "kimi-k3", "dsml"}))
def test_forms_mean_the_same_to_transformers(name: str) -> None:
    """Four forms go beyond: they say which values are texts, or which names were offered, or have keys with spaces."""
    parsing = pytest.importorskip("transformers.utils.chat_parsing")
    before, text = WRITTEN[name]
    tools = [{"type": "function", "function": {"name": key, **tool}} for key, tool in TOOLS.items()]
    found = parsing.parse_response(text, TABLE[name], prefix=before, tools=tools)
    calls = [(one["function"]["name"], one["function"].get("arguments", {})) for one in found["tool_calls"]]
    assert calls == [*TWO]
    assert found["thinking"] == "hm"
