"""Coding agents from npm, which a scripted model lets write a file: they are asked as a person would ask them.

`make agents` installs them, at pinned versions, in `build/agents`. They reach no network: all that they ask others than
this machine goes to a proxy that is not there. What takes time are their prompts, of 30 to 50 KB.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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

MODULES = ROOT / "build" / "agents" / "node_modules"
CONTEXT = 131072
SIZES = {"vocab_size": 4096, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
"""A vocabulary in which their prompts are short, and a model that reads them fast: they have ten thousand tokens."""
TASK = "Write the file done.txt with the text finished."
COMMAND = "printf finished > done.txt"
NOWHERE = "http://127.0.0.1:9"
ALONE = {"HTTPS_PROXY": NOWHERE, "HTTP_PROXY": NOWHERE, "NO_PROXY": "127.0.0.1", "npm_config_offline": "true"}


@dataclass(frozen=True)
class Agent:
    """A program, and how it is made to do a task without asking a person, or its maker, anything."""

    binary: str
    """The place of the program among the modules."""
    calls: Sequence[tuple[str, dict[str, str]]]
    """Its tools that run a command, by name and arguments; the first that it offers is called."""
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


AGENTS = {
    Program.CODEX: Agent(
        ".bin/codex",
        [("exec_command", {"cmd": COMMAND}), ("shell_command", {"command": COMMAND})],
        ["-c", "analytics.enabled=false", "-c", "check_for_update_on_startup=false", "exec", "--skip-git-repo-check",
         "--dangerously-bypass-approvals-and-sandbox"],
    ),
    Program.CLAUDE_CODE: Agent(
        "@anthropic-ai/claude-code-linux-x64/claude",
        [("Bash", {"command": COMMAND, "description": "Write the file"})],
        ["--allowedTools=Bash", "-p"],
        {"DISABLE_AUTOUPDATER": "1", "DISABLE_TELEMETRY": "1", "DISABLE_ERROR_REPORTING": "1"},
    ),
    Program.OPENCODE: Agent(
        "opencode-linux-x64-baseline/bin/opencode",
        [("bash", {"command": COMMAND, "description": "Write the file"})],
        ["run"],
        {"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_SHARE": "1",
         "OPENCODE_DISABLE_LSP_DOWNLOAD": "1"},
    ),
}  # fmt: skip


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
    texts = [(ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md")]
    with (
        mock.patch.dict(tiny.CONFIG, {"max_position_embeddings": CONTEXT, **SIZES}),
        mock.patch.object(tiny, "VOCABULARY", SIZES["vocab_size"]),
    ):
        tiny.write_store(folder, texts, TEMPLATES["chatml"], {})
    options = EngineOptions("2GiB", 2, CONTEXT, sequences=2)
    settings = ServerSettings(port=0, name="scripted", body_seconds=60)
    with Server(lambda: open_to_serve(folder / "model.gguf", options), settings) as started:
        yield started


@pytest.mark.parametrize("program", AGENTS)
def test_an_agent_finishes_a_task(server: Server, tmp_path: Path, program: Program) -> None:
    agent = AGENTS[program]
    binary = MODULES / agent.binary
    if not binary.exists() and not os.environ.get("CI"):
        pytest.skip("make agents installs them")
    lines = lines_for(program, Served(server.url, "scripted", CONTEXT)).replace("\\\n", " ")
    *before, start = lines.splitlines()
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    script = "\n".join([*before, f'exec {binary} {start.partition(" ")[2]} "$@"'])
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "TERM": "dumb", **ALONE, **agent.environment}
    playing = Playing(server.service.model.tokenizer, agent.calls)
    with mock.patch("edgemoe.session.continuation.Sampler", playing.sampler):
        done = subprocess.run(
            ["sh", "-c", script, "agent", *agent.arguments, TASK],
            cwd=work, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500,
        )  # fmt: skip
    assert (work / "done.txt").exists(), (done.returncode, done.stdout[-3000:], done.stderr[-3000:])
    assert (work / "done.txt").read_text() == "finished"
    assert done.returncode == 0, done.stderr[-3000:]
