"""`edgemoe serve` in the place of llama-server: takes that program's options, and says which have no counterpart.

Each start is a fork of a process that has imported all that servers need (`tests/support/forks.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.forks import Forked, ForkServer

IMPORTS = (
    "tests.server.llama_suite.shim",
    "tests.server.llama_suite.model",
    "edgemoe.cli.serve",
    "edgemoe.cli.chat",
    "edgemoe.cli.remarks",
    "edgemoe.server.server",
    "edgemoe.server.opening",
    "edgemoe.session.stores",
)
PROGRAM = "from tests.server.llama_suite.shim import main; main()"
SUITE, STORES = "LLAMA_SUITE", "LLAMA_SUITE_STORES"
"""Variables with the folder of the tests, and the one for models that were made for them."""

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TEMPLATES = {
    "chatml": TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "llama3": "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    "command-r": "{% set names = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'} %}{% for m in messages %}"
    "<|START_OF_TURN_TOKEN|><|{{ names[m.role] }}_TOKEN|>{{ m.content | trim }}<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}",
}
"""Templates that llama-server knows by name."""


class Process(Forked):
    """A server as a test starts it: a process in the manner of `subprocess.Popen`."""

    _forks = ForkServer(*IMPORTS)

    def __init__(self, command: Sequence[str], stdout: Any, env: Mapping[str, str], **_: Any) -> None:
        self._said = Path(os.devnull).open("wb") if stdout is sys.stdout else stdout  # noqa: SIM115
        started = self._forks.start(PROGRAM, command[1:], env, errors=self._said)
        self.__dict__.update(started.__dict__)

    def terminate(self) -> None:
        self.send_signal(15)

    def kill(self) -> None:
        self.send_signal(9)


def main() -> None:
    """Serve as the options of llama-server say."""
    from edgemoe.cli.main import run_command

    sys.exit(run_command(["serve", *arguments(options().parse_known_args(sys.argv[1:])[0])]))


def options() -> argparse.ArgumentParser:
    """The options that have a counterpart; others change nothing here (devices, batches) or are not tested."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("host", "alias", "api-key", "chat-template", "chat-template-file", "reasoning", "cors-origins"):
        parser.add_argument(f"--{name}")
    for name in ("port", "seed", "ctx-size", "parallel", "n-predict", "threads"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--temp", type=float, default=0.8)
    parser.add_argument("--kv-unified", action="store_true")
    return parser


def arguments(given: argparse.Namespace) -> list[str]:
    """The arguments of `edgemoe serve`."""
    context = (given.ctx_size or 4096) // (1 if given.kv_unified else given.parallel or 1)
    own = [str(_store(given)), "--port", str(given.port), "--host", given.host, "--context", str(context)]
    own += ["--sequences", str(given.parallel or 4), "--ram", "1GiB", "--threads", "1"]
    own += ["--seed", str(given.seed)]
    if given.alias:
        own += ["--alias", given.alias]
    if given.cors_origins or given.api_key:
        own += ["--cors", given.cors_origins or "*"]
    if given.api_key:
        os.environ["EDGEMOE_API_KEY"] = given.api_key
    if "enable_thinking" in _template(given):
        own += ["--template-var", f"enable_thinking={str(given.reasoning != 'off').lower()}"]
    return own


def _template(given: argparse.Namespace) -> str:
    if given.chat_template_file:
        return (Path(os.environ[SUITE]) / given.chat_template_file).read_text()
    return TEMPLATES.get(given.chat_template or "chatml", given.chat_template)


def _store(given: argparse.Namespace) -> Path:
    """The model with the template and the settings that were asked for, made when these are first asked for."""
    from tests.server.llama_suite.model import write_store

    suite, template = Path(os.environ[SUITE]), _template(given)
    generation: dict[str, Any] = {"do_sample": given.temp > 0, "top_k": 0}
    if given.temp > 0:
        generation["temperature"] = given.temp
    if given.n_predict and given.n_predict > 0:
        generation["max_new_tokens"] = given.n_predict
    name = hashlib.sha256(json.dumps([template, generation]).encode()).hexdigest()[:16]
    folder = Path(os.environ[STORES]) / name
    if not folder.exists():
        own = folder.with_name(f"{name}.{os.getpid()}")  # another worker may make the same one
        write_store(own, [path.read_text() for path in sorted(suite.glob("unit/*.py"))], template, generation)
        with contextlib.suppress(OSError):
            own.rename(folder)
    return folder / "model.gguf"
