"""The chat template of a model: from messages to the text that the model was trained on."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgemoe.errors import EdgemoeError, StoreError
from edgemoe.session.model_files import read_json_object, read_text
from edgemoe.session.special_tokens import CONFIG_NAME, SpecialTokens

TEMPLATE_LIMIT_BYTES = 256 << 10
RENDER_LIMIT_SECONDS = 10.0
HOSTILE_HINT = (
    "Such a template is broken or hostile: do not trust this model's files. edgemoe run --raw goes without it."
)

Message = Mapping[str, Any]
"""`{"role": "system" | "user" | "assistant", "content": text}`"""


class ChatTemplate:
    """A Jinja template, rendered in a process of its own with limited memory and time."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        size_bytes = len(source.encode(errors="replace"))
        if size_bytes > TEMPLATE_LIMIT_BYTES:
            raise StoreError(
                f"chat template: expected at most {TEMPLATE_LIMIT_BYTES >> 10} KiB, found {size_bytes >> 10} KiB.",
                "Is it the template of this model? Copy the model's own, or use edgemoe run --raw.",
            )
        self.source = source
        self.special_tokens = dict(special_tokens or {})

    @classmethod
    def load(cls, folder: Path) -> ChatTemplate:
        """The template of a model folder. Raises StoreError where there is none or it is unusable."""
        source = _template_source(folder)
        if source is None:
            raise StoreError(
                f"{folder} has no chat template (neither chat_template.jinja nor one in tokenizer_config.json).",
                "A base model cannot chat; let it continue a text with edgemoe run --raw -p TEXT.",
            )
        return cls(source, SpecialTokens.read(folder).names)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text of a conversation, with the opening of the assistant's turn where asked.

        Raises EdgemoeError where the template refuses the conversation, fails, or takes too long.
        """
        variables: dict[str, Any] = {
            **self.special_tokens,
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        request = {
            "path": [entry for entry in sys.path if entry],
            "template": self.source,
            "variables": variables,
            "messages": [dict(message) for message in messages],
        }
        answer = _ask_worker(request)
        if answer.get("text"):
            return str(answer["text"])
        if "text" in answer:
            raise StoreError(
                "chat template: it makes an empty text of the conversation.",
                "Copy the template of the original model again, or use edgemoe run --raw.",
            )
        if answer["error"] == "syntax":
            raise StoreError(
                f"chat template: it does not parse ({answer['message']}).",
                "Copy the template of the original model again, or use edgemoe run --raw.",
            )
        if answer["error"] in ("size", "memory"):
            raise StoreError(f"chat template: it wants {answer['message']}, and was stopped.", HOSTILE_HINT)
        raise EdgemoeError(
            f"chat template: it refused the conversation or failed ({answer['message']}).",
            "Some models take no system message, or want user and assistant in turns;"
            " edgemoe run --raw goes without the template.",
        )


def _template_source(folder: Path) -> str | None:
    """The template that transformers takes without tools: the file, or the config's, of several the one named default."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return read_text(path, TEMPLATE_LIMIT_BYTES)
    value = read_json_object(folder / CONFIG_NAME, required=False).get("chat_template")
    if isinstance(value, list):
        value = {str(entry.get("name")): entry.get("template") for entry in value if isinstance(entry, Mapping)}
    if isinstance(value, Mapping) and value and "default" not in value:
        raise StoreError(
            f"{folder / CONFIG_NAME}: chat_template: expected one template named default,"
            f" found {', '.join(sorted(map(str, value)))[:200]}.",
            "Save the one that you want as chat_template.jinja in the checkpoint, and convert that again.",
        )
    source = value.get("default") if isinstance(value, Mapping) else value
    if source is not None and not isinstance(source, str):
        raise StoreError(
            f"{folder / CONFIG_NAME}: chat_template: expected a text, or named texts, found {type(source).__name__}.",
            "Copy the original model's tokenizer_config.json again.",
        )
    return source


def _ask_worker(request: Mapping[str, Any]) -> dict[str, Any]:
    # Started by path, isolated (-I) and without site (-S): nothing in the current folder or the environment can
    # stand in for the modules it imports. Its own session, so that Ctrl-C in the terminal does not end it.
    import subprocess

    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("template_worker.py"))]
    try:
        finished = subprocess.run(
            command,
            input=json.dumps(request).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=RENDER_LIMIT_SECONDS,
            start_new_session=True,
            check=True,
        )
        answer: dict[str, Any] = json.loads(finished.stdout)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        raise StoreError(
            f"chat template: it took more than {RENDER_LIMIT_SECONDS:.0f} seconds or too much memory, and was stopped.",
            HOSTILE_HINT,
        ) from None
    return answer
