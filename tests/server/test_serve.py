"""`edgemoe serve` as a command, and `edgemoe.serve` from Python."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import edgemoe
from edgemoe.cli.main import run_command
from edgemoe.server.server import Server
from tests.server.client import Client
from tests.support.forks import ROOT

HELLO = [{"role": "user", "content": "Hello"}]


def test_the_command_serves_until_it_is_ended(letters_store: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "edgemoe", "serve", str(letters_store), "--port", "0", "--context", "256"],
        env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "EDGEMOE_API_KEY": "secret"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = ""
    while "Ctrl-C stops" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    assert "4 answers at a time, 256 tokens of context each" in said
    (port,) = re.findall(r"serving at http://127.0.0.1:(\d+) ", said)
    client = Client(type("Served", (), {"port": int(port)})(), "secret")
    assert client.post("/v1/chat/completions", messages=HELLO, max_tokens=3).status == 200
    assert client.get("/v1/models", authorization="Bearer wrong").status == 401
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (143, "", "")


def test_python_serves_in_the_background(letters_store: Path) -> None:
    with edgemoe.serve(letters_store, context_length=256, sequences=2, name="mine") as server:
        assert isinstance(server, Server)
        assert server.url == f"http://127.0.0.1:{server.port}"
        reply = Client(server).post("/v1/chat/completions", messages=HELLO, max_tokens=3)
        assert reply.json["model"] == "mine"
    with pytest.raises(OSError):  # noqa: PT011 (refused or reset)
        Client(server).get("/v1/models")


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (
            "claude-code",
            ["ANTHROPIC_BASE_URL=http://127.0.0.1:9000", 'ANTHROPIC_AUTH_TOKEN="$EDGEMOE_API_KEY"', "=mine"],
        ),
        ("codex", ['model_provider="edgemoe"', 'base_url = "http://127.0.0.1:9000/v1"', 'wire_api = "responses"']),
        ("opencode", ['"apiKey": "{env:EDGEMOE_API_KEY}"', '"model": "edgemoe/mine"', '"context": 4096']),
        ("open-webui", ["OPENAI_API_BASE_URL=http://127.0.0.1:9000/v1", 'OPENAI_API_KEY="$EDGEMOE_API_KEY"']),
    ],
)
def test_lines_for_programs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, letters_store: Path, program: str,
    says: list[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("EDGEMOE_API_KEY", "secret")
    asked = ["serve", str(letters_store), "--port", "9000", "--for", program]
    assert run_command([*asked, "--alias", "mine", "--context", "4096"]) == 0
    told = capsys.readouterr().out
    assert all(one in told for one in says), told
    assert "secret" not in told
    subprocess.run(["sh", "-n", "-c", told], check=True)
    monkeypatch.delenv("EDGEMOE_API_KEY")
    assert run_command(asked) == 0
    told = capsys.readouterr().out
    assert ("letters" in told) == (program != "open-webui")  # it asks the server for its models
    assert "EDGEMOE_API_KEY" not in told


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run_command(["serve", *arguments]) == 2
    return capsys.readouterr().err


def test_what_would_not_be_safe_is_refused_before_the_model_is_opened(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "--host 0.0.0.0: other machines could use this server" in refused(capsys, "--host", "0.0.0.0")
    assert "--for: expected a port, found 0" in refused(capsys, "--port", "0", "--for", "codex")
    assert "pages of all sites could use this server" in refused(capsys, "--cors", "*")
    assert "--seed: expected 0 to 2^64 - 1, found -1" in refused(capsys, "--seed", "-1")
    assert "--port: expected 0 to 65535, found 70000" in refused(capsys, "--port", "70000")
    keys = tmp_path / "keys"
    keys.write_text("one\n")
    keys.chmod(0o644)
    assert "other users may read these keys" in refused(capsys, "--api-key-file", str(keys))
    keys.chmod(0o600)
    keys.write_text("\n\n")
    assert "at least one API key" in refused(capsys, "--api-key-file", str(keys))


def test_a_missing_package_is_told_with_the_way_out() -> None:
    """Another process, since this one has imported what is to be missing."""
    program = """
import sys
sys.modules["starlette"] = None
from edgemoe.cli.main import run_command
sys.exit(run_command(["serve"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "edgemoe serve needs the package starlette" in done.stderr
    assert "pip install 'edgemoe[serve]'" in done.stderr


def test_a_model_that_cannot_be_opened_is_an_error_of_the_command(
    capsys: pytest.CaptureFixture[str], letters_store: Path
) -> None:
    assert run_command(["serve", str(letters_store), "--port", "0", "--ram", "1MiB"]) == 1
    assert "--ram" in capsys.readouterr().err


def test_a_server_listens_at_several_addresses(letters_store: Path) -> None:
    import socket

    from edgemoe.server.settings import ServerSettings
    from tests.server.conftest import loader

    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with Server(loader(letters_store), ServerSettings("127.0.0.1,::1", 0)) as server:
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, server.port), 5).close()
        assert server.url == f"http://127.0.0.1:{server.port}"
