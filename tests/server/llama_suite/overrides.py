"""A plugin of pytest for llama.cpp's server tests: leaves out those that `excluded.txt` lists, and fits the rest to
another model: where a test expects words of its own model, any text does, and where it expects a number of tokens, the
server is asked for it.
"""

from __future__ import annotations

import fnmatch
import socket
import subprocess
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from requests.structures import CaseInsensitiveDict

from tests.server.llama_suite.shim import Process

sys.path.insert(0, str(Path.cwd()))
sys.modules["wget"] = types.ModuleType("wget")  # they import it to download models

import utils  # type: ignore[import-not-found]  # noqa: E402  (the tests' own)

EXACT = ("test_completion_with_response_format", "test_completion_with_json_schema", "test_completion_with_grammar")
"""Tests that expect a text of every model."""

_asked: list[tuple[Any, str, Mapping[str, Any]]] = []
"""The latest request: its server, path and body."""
_test = [""]


def excluded() -> dict[str, str]:
    """The reason of each pattern of ids that is left out."""
    lines = Path(__file__).with_name("excluded.txt").read_text().splitlines()
    entries = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    return dict(entries)  # type: ignore[arg-type]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    matching = {pattern: [item for item in items if fnmatch.fnmatchcase(_id(item), pattern)] for pattern in excluded()}
    idle = [pattern for pattern, found in matching.items() if not found]
    if idle and not config.getoption("file_or_dir"):
        raise pytest.UsageError(f"excluded.txt: there are no such tests: {idle}")
    left_out = {item for found in matching.values() for item in found}
    config.hook.pytest_deselected(items=[*left_out])
    items[:] = [item for item in items if item not in left_out]
    for item in items:
        parameters = getattr(item, "callspec", None)
        if parameters is not None and "n_prompt" in parameters.params:
            parameters.params["n_prompt"] = PromptTokens()
        if parameters is not None and parameters.params.get("n_predict") == -1:
            parameters.params["n_token_output"] = PromptTokens(256)


def _id(item: pytest.Item) -> str:
    """An id without what fnmatch would take for a set of characters."""
    return item.nodeid.removeprefix("unit/").replace("[", "(").replace("]", ")")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    _test[0] = item.name.partition("[")[0]
    return (yield)


class PromptTokens:
    """Equals the number of tokens of the latest prompt as the server counts them, or the rest of a context.

    The last token of an answer is in no context: it is never run.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, context: int | None = None) -> None:
        self._context = context

    def __eq__(self, other: object) -> bool:
        server, _, data = _asked[-1]
        ask = _make_request.__get__(server)
        text, special = data.get("prompt"), True
        if text is None:
            text, special = ask("POST", "/apply-template", data={"messages": data["messages"]}).body["prompt"], False
        counted = len(ask("POST", "/tokenize", data={"content": text, "add_special": special}).body["tokens"])
        return (counted if self._context is None else self._context - counted + 1) == other


def _init(server: Any, *arguments: Any) -> None:
    """Make a server's settings, with a port that nobody uses."""
    _made(server, *arguments)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        server.server_port = probe.getsockname()[1]


def _match_regex(regex: str, text: str) -> bool:
    return bool(_match(regex, text) if _test[0] in EXACT else text)


def _asking(server: Any, method: str, path: str, data: Any = None, *more: Any, **named: Any) -> Any:
    _asked[:] = [(server, path, data or {})]
    response = _make_request(server, method, path, _fitted(server, path, data), *more, **named)
    response.headers = CaseInsensitiveDict(response.headers)  # the tests expect llama-server's capitals
    return response


def _streaming(server: Any, method: str, path: str, data: Any = None, *more: Any, **named: Any) -> Any:
    _asked[:] = [(server, path, data or {})]
    return _make_stream_request(server, method, path, _fitted(server, path, data), *more, **named)


def _fitted(server: Any, path: str, data: Any) -> Any:
    """A request with what llama-server's option --verbose does, and with the name that OpenAI requires of a model."""
    if not data or "messages" not in data:
        return data
    name = {"model": "any"} if path == "/v1/chat/completions" else {}
    return {**name, **({"verbose": True} if server.debug else {}), **data}


_match, _made = utils.match_regex, utils.ServerProcess.__init__
_make_request, _make_stream_request = utils.ServerProcess.make_request, utils.ServerProcess.make_stream_request
utils.match_regex, utils.ServerProcess.__init__ = _match_regex, _init
utils.ServerProcess.make_request, utils.ServerProcess.make_stream_request = _asking, _streaming
utils.ServerPreset.load_all = staticmethod(lambda: None)
utils.subprocess = types.SimpleNamespace(Popen=Process, TimeoutExpired=subprocess.TimeoutExpired)
