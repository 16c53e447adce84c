"""Lines with which programs use a server: what a person pastes into a shell, or into a program's file of settings."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from enum import Enum


class Program(str, Enum):
    """Programs whose settings are known."""

    CLAUDE_CODE = "claude-code"
    CODEX = "codex"
    OPENCODE = "opencode"
    OPEN_WEBUI = "open-webui"


@dataclass(frozen=True)
class Served:
    """A server as its clients see it."""

    url: str
    name: str
    """The model's name."""
    context: int | None = None
    """The tokens of a conversation, where they are known."""
    key_variable: str | None = None
    """The environment variable with the key that the server asks for; None where it asks for none."""


def lines_for(program: Program, served: Served) -> str:
    """The lines for a program."""
    lines = {
        Program.CLAUDE_CODE: _claude_code,
        Program.CODEX: _codex,
        Program.OPENCODE: _opencode,
        Program.OPEN_WEBUI: _open_webui,
    }[program](served)
    return "\n".join(lines)


def _claude_code(served: Served) -> list[str]:
    variables = {
        "ANTHROPIC_BASE_URL": shlex.quote(served.url),
        "ANTHROPIC_AUTH_TOKEN": _key(served),
        "ANTHROPIC_MODEL": shlex.quote(served.name),
        "ANTHROPIC_SMALL_FAST_MODEL": shlex.quote(served.name),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    return [*_exported(variables), "claude"]


def _codex(served: Served) -> list[str]:
    provider = {"name": "edgemoe", "base_url": f"{served.url}/v1", "wire_api": "responses"}
    if served.key_variable is not None:
        provider["env_key"] = served.key_variable
    table = ", ".join(f"{name} = {json.dumps(value)}" for name, value in provider.items())
    settings = [
        f"model={json.dumps(served.name)}",
        'model_provider="edgemoe"',
        f"model_providers.edgemoe={{ {table} }}",
    ]
    if served.context is not None:
        settings.append(f"model_context_window={served.context}")
    return [" \\\n  ".join(["codex", *(f"-c {shlex.quote(setting)}" for setting in settings)])]


def _opencode(served: Served) -> list[str]:
    model: dict[str, object] = {"name": served.name}
    if served.context is not None:
        model["limit"] = {"context": served.context, "output": served.context // 4}
    key = "any" if served.key_variable is None else f"{{env:{served.key_variable}}}"
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "edgemoe",
        "options": {"baseURL": f"{served.url}/v1", "apiKey": key},
        "models": {served.name: model},
    }
    settings = {"provider": {"edgemoe": provider}, "model": f"edgemoe/{served.name}"}
    return [*_exported({"OPENCODE_CONFIG_CONTENT": shlex.quote(json.dumps(settings))}), "opencode"]


def _open_webui(served: Served) -> list[str]:
    variables = {
        "OPENAI_API_BASE_URL": shlex.quote(f"{served.url}/v1"),
        "OPENAI_API_KEY": _key(served),
        "ENABLE_OLLAMA_API": "false",
    }
    return [*_exported(variables), "open-webui serve --port 3000"]


def _key(served: Served) -> str:
    return "any" if served.key_variable is None else f'"${served.key_variable}"'


def _exported(variables: dict[str, str]) -> list[str]:
    return [f"export {name}={value}" for name, value in variables.items()]
