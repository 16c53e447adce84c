"""Coding agents from npm, which a scripted model lets write a file: they are asked as a person would ask them.

They are found in `build/agents`, where one command installs them:
npm install --prefix build/agents @openai/codex
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from unittest import mock

import pytest

from edgemoe.cli.client_lines import Program, Served, lines_for
from edgemoe.engine.options import EngineOptions
from edgemoe.model.sampling import SamplingOptions
from edgemoe.server.opening import open_to_serve
from edgemoe.server.server import Server
from edgemoe.server.settings import ServerSettings
from edgemoe.session.tokenizer import Tokenizer
from tests.server.llama_suite import model as tiny
from tests.server.llama_suite.shim import TEMPLATES
from tests.support.forks import ROOT
from tests.support.scripted import ScriptedSampler

pytestmark = [pytest.mark.serve, pytest.mark.timeout(600)]

BINARIES = ROOT / "build" / "agents" / "node_modules" / ".bin"
CONTEXT = 131072
TASK = "Write the file done.txt with the text finished."
COMMAND = "printf finished > done.txt"
CALLS = {
    Program.CODEX: [("exec_command", {"cmd": COMMAND}), ("shell_command", {"command": COMMAND})],
}
"""The tools of each program that run a command, by name and arguments; the first that it offers is called."""
ARGUMENTS = {
    Program.CODEX: ["exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", TASK],
}


class Playing:
    """Answers a prompt with a call, one with the call's result with a word, and others (of titles) with a word too."""

    def __init__(self, tokenizer: Tokenizer, calls: Sequence[tuple[str, dict[str, str]]]) -> None:
        self._tokenizer = tokenizer
        self._calls = calls

    def sampler(
        self, options: SamplingOptions, before: Sequence[int] = (), stop_ids: Collection[int] = frozenset()
    ) -> ScriptedSampler:
        prompt = self._tokenizer.decode(list(before), skip_special_tokens=False)
        offered = [(name, given) for name, given in self._calls if f'"name": "{name}"' in prompt]
        answer = "Done."
        if offered and "<tool_response>" not in prompt:
            name, given = offered[0]
            answer = f"<tool_call>\n{json.dumps({'name': name, 'arguments': given})}\n</tool_call>"
        return ScriptedSampler([*self._tokenizer.encode(answer), min(stop_ids)])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A tiny model with room for the prompts of agents, which tell thousands of words of their tools."""
    folder = tmp_path_factory.mktemp("agents")
    texts = [(ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")]
    with mock.patch.dict(tiny.CONFIG, {"max_position_embeddings": CONTEXT}):
        tiny.write_store(folder, texts, TEMPLATES["chatml"], {})
    options = EngineOptions("2GiB", 2, CONTEXT, sequences=2)
    settings = ServerSettings(port=0, name="scripted", body_seconds=60)
    with Server(lambda: open_to_serve(folder / "model.gguf", options), settings) as started:
        yield started


@pytest.mark.parametrize("program", CALLS)
def test_an_agent_finishes_a_task(server: Server, tmp_path: Path, program: Program) -> None:
    name = program.value
    if not (BINARIES / name).exists():
        pytest.skip(f"{name} is not in build/agents")
    lines = lines_for(program, Served(server.url, "scripted", CONTEXT)).replace("\\\n", " ")
    *before, start = lines.splitlines()
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    script = "\n".join([*before, f'exec {BINARIES / name}{start.removeprefix(name)} "$@"'])
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "TERM": "dumb", "DISABLE_AUTOUPDATER": "1"}
    playing = Playing(server.service.model.tokenizer, CALLS[program])
    with mock.patch("edgemoe.session.continuation.Sampler", playing.sampler):
        done = subprocess.run(
            ["sh", "-c", script, name, *ARGUMENTS[program]],
            cwd=work, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500,
        )  # fmt: skip
    assert (work / "done.txt").exists(), (done.returncode, done.stdout[-3000:], done.stderr[-3000:])
    assert (work / "done.txt").read_text() == "finished"
    assert done.returncode == 0, done.stderr[-3000:]
