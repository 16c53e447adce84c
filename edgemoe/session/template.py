"""The chat template of a model: from messages to the text that the model was trained on."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgemoe.errors import EdgemoeError, StoreError
from edgemoe.session.model_files import read_json_object, read_text

TEMPLATE_LIMIT_BYTES = 256 << 10
RENDER_LIMIT_SECONDS = 10.0
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

Message = Mapping[str, Any]
"""`{"role": "system" | "user" | "assistant", "content": text}`"""


class ChatTemplate:
    """A Jinja template, rendered in a process of its own with limited memory and time.

    The process starts with the object, so that it is ready by the first `render`, and ends with `close`.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        if len(source.encode()) > TEMPLATE_LIMIT_BYTES:
            raise StoreError(
                f"chat template: expected at most {TEMPLATE_LIMIT_BYTES >> 10} KiB, found"
                f" {len(source.encode()) >> 10} KiB.",
                "Is it the template of this model? Copy the model's own, or use edgemoe run --raw.",
            )
        self.source = source
        self.special_tokens = dict(special_tokens or {})
        self._worker = _start_worker()

    @classmethod
    def load(cls, folder: Path) -> ChatTemplate:
        """The template of a model folder. Raises StoreError where there is none or it is unusable."""
        config = read_json_object(folder / "tokenizer_config.json", required=False)
        source = _template_source(folder, config)
        if source is None:
            raise StoreError(
                f"{folder} has no chat template (neither chat_template.jinja nor one in tokenizer_config.json).",
                "A base model cannot chat; let it continue a text with edgemoe run --raw -p TEXT.",
            )
        return cls(source, special_tokens(config))

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text of the conversation, with the opening of the assistant's turn where asked.

        Raises EdgemoeError where the template refuses the conversation, fails, or takes too long.
        """
        variables: dict[str, Any] = {
            **self.special_tokens,
            "messages": [dict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        answer = self._ask({"template": self.source, "variables": variables})
        if "text" in answer:
            return str(answer["text"])
        if answer["error"] == "syntax":
            raise StoreError(
                f"chat template: it does not parse ({answer['message']}).",
                "Copy the template of the original model again, or use edgemoe run --raw.",
            )
        raise EdgemoeError(
            f"chat template: it refused the conversation or failed ({answer['message']}).",
            "Some models take no system message, or want user and assistant in turns;"
            " edgemoe run --raw goes without the template.",
        )

    def close(self) -> None:
        """End the worker process."""
        self._worker.kill()
        self._worker.wait()
        for stream in (self._worker.stdin, self._worker.stdout):
            # a request that the dead worker never took may still lie in the buffer
            with contextlib.suppress(OSError):
                stream and stream.close()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._worker.poll() is not None:
            self.close()
            self._worker = _start_worker()
        process = self._worker
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = threading.Timer(RENDER_LIMIT_SECONDS, process.kill)
        deadline.daemon = True
        deadline.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        finally:
            deadline.cancel()
        if not line:
            process.kill()
            raise StoreError(
                f"chat template: it took more than {RENDER_LIMIT_SECONDS:.0f} seconds or too much memory, and"
                " was stopped.",
                "Such a template is broken or hostile: do not trust this model's files. edgemoe run --raw goes"
                " without it.",
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


def special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """The named special tokens of a tokenizer_config.json, each a string there or `{"content": string}`."""
    found = {}
    for name in SPECIAL_TOKENS:
        value = tokenizer_config.get(name)
        if isinstance(value, Mapping):
            value = value.get("content")
        if isinstance(value, str):
            found[name] = value
    return found


def _template_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return read_text(path, TEMPLATE_LIMIT_BYTES)
    value = config.get("chat_template")
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, Mapping)}
        value = named.get("default", next(iter(named.values()), None))
    if value is not None and not isinstance(value, str):
        raise StoreError(
            f"{folder / 'tokenizer_config.json'}: chat_template: expected a text or a list of named texts,"
            f" found {type(value).__name__}.",
            "Copy the original model's tokenizer_config.json again.",
        )
    return value


def _start_worker() -> subprocess.Popen[str]:
    # Started by path, isolated (-I) and without site (-S): nothing in the current folder or the environment can
    # stand in for the modules it imports. Its own session, so that Ctrl-C in the terminal does not end it.
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).with_name("template_worker.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        env={**os.environ, "PYTHONUTF8": "1"},
        start_new_session=True,
    )
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.write(json.dumps({"path": [entry for entry in sys.path if entry]}) + "\n")
        process.stdin.flush()
    return process
