"""`edgemoe run --schema` and `/tools` of `edgemoe chat`, as a person meets them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Edgemoe
from tests.support.every_case import every_case

ASK = ("-p", "Say hello")
TOOLS = [{"type": "function", "function": {"name": "now", "description": "The time."}}]
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def test_run_keeps_to_a_schema(edgemoe: Edgemoe, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"type": "object", "properties": {"greeting": {"enum": ["Hello", "Bye"]}},
                                "required": ["greeting"], "additionalProperties": False}))  # fmt: skip
    for more in ((), ("--raw",), ("--literal-prompt",)):
        done = edgemoe("run", folder, *ASK, "--schema", path, *more)
        assert (done.code, json.loads(done.output)["greeting"] in ("Hello", "Bye")) == (0, True), done
    data = json.loads(edgemoe("run", folder, *ASK, "--schema", path, "--json").output)
    assert json.loads(data["text"]).keys() == {"greeting"}
    assert data["finish_reason"] == "stop"


@every_case(
    ("text", "error"),
    [
        ('{"type": "hiccup"}', "--schema: it cannot be enforced: Invalid type: hiccup"),
        ("[1]", "expected a JSON schema (an object)"),
        ("{", "expected JSON, found another text"),
        ("", "expected a text, found an empty file"),
    ],
)
def test_schemas_that_cannot_be_used(edgemoe: Edgemoe, folder: Path, tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "schema.json"
    path.write_text(text)
    done = edgemoe("run", folder, *ASK, "--schema", path)
    assert done.code in (1, 2)
    assert error in done.errors


def test_the_package_that_is_missing_is_named(
    edgemoe: Edgemoe, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    path = tmp_path / "schema.json"
    path.write_text("{}")
    done = edgemoe("run", folder, *ASK, "--schema", path)
    assert done.code in (1, 2)
    assert "need the package llguidance" in done.errors
    assert "pip install 'edgemoe[serve]'" in done.errors


def test_chat_has_tools(edgemoe: Edgemoe, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(TOOLS))
    done = edgemoe("chat", folder, "--context", "2048", stdin=f"/tools {path}\n/tools\nHi\n".encode(), says=CALL)
    assert done.output == "now: The time.\n[now]\n{}\n"
    assert "the model calls now: your next message is the result" in done.errors
    for text, error in (("[{}]", "expected functions with name"), (json.dumps(TOOLS * 2), "a name stands twice")):
        path.write_text(text)
        assert error in edgemoe("chat", folder, stdin=f"/tools {path}\n".encode()).errors
