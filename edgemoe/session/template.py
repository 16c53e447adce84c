"""The chat template of a model: from messages to the text that the model was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgemoe.errors import ConversationError, StoreError, UsageError
from edgemoe.session.model_files import read_json_object, read_text
from edgemoe.session.special_tokens import read_special_tokens
from edgemoe.session.template_process import TemplateProcess
from edgemoe.store.tokenizer_config import CONFIG_NAME, config_template

TEMPLATE_LIMIT_BYTES = 256 << 10
OWN_VARIABLES = ("messages", "add_generation_prompt")
ABSENT_VARIABLES = ("tools", "documents")
"""Variables that are null unless a person gives them."""
SWITCHES = ("enable_thinking", "thinking")
"""Variables that are true or false wherever there are any; to a template every text but an empty one is true."""

Message = Mapping[str, Any]
"""`{"role": "system" | "user" | "assistant", "content": text}`"""


class ChatTemplate:
    """A Jinja template, rendered in a process of its own with limited memory and processor time.

    That process is kept for the next rendering; `close` ends it, as does the end of the template's life.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        size_bytes = len(source.encode(errors="replace"))
        if size_bytes > TEMPLATE_LIMIT_BYTES:
            raise StoreError(
                f"chat template: expected at most {TEMPLATE_LIMIT_BYTES >> 10} KiB, found {size_bytes >> 10} KiB.",
                "Is it the template of this model? Copy the model's own, or give a plain text (`raw`).",
            )
        self.source = source
        self.special_tokens = dict(special_tokens or {})
        self._process = TemplateProcess()

    @classmethod
    def load(cls, folder: Path) -> ChatTemplate:
        """The template of a model folder. Raises StoreError where there is none or it is unusable."""
        source = template_source(folder)
        if source is None:
            raise StoreError(
                f"{folder} has no chat template (neither chat_template.jinja nor one in tokenizer_config.json).",
                "A base model cannot chat; let it continue plain text (`raw`).",
            )
        return cls(source, read_special_tokens(folder).names)

    def check_variables(self, variables: Mapping[str, Any]) -> None:
        """Raises UsageError for variables that this template does not read, or that JSON cannot represent."""
        reads = self._reads() if variables else ()
        for name, value in variables.items():
            if name in OWN_VARIABLES:
                raise UsageError(
                    f"template variable {name}: edgemoe sets this one itself.", "Give the conversation as messages."
                )
            if reads is not None and name not in reads:
                known = ", ".join(one for one in reads if one not in (*OWN_VARIABLES, *self.special_tokens))
                raise UsageError(
                    f"template variable {name!r:.80}: this model's chat template does not read it.",
                    f"It reads {known}." if known else "It reads none, so that no variable switches anything.",
                )
            if name in SWITCHES and isinstance(value, str):
                raise UsageError(
                    f"template variable {name}: expected true or false, found the text {value!r:.40}, which a template"
                    " takes for true.",
                    f"For example: {name}=false.",
                )
            try:
                json.dumps(value)
            except (TypeError, ValueError, RecursionError) as error:
                raise UsageError(
                    f"template variable {name}: expected a JSON value, found {type(value).__name__} ({error}).",
                    "Give text, a number, true, false, null, a list or an object.",
                ) from None

    def _reads(self) -> list[str] | None:
        """The names of all variables that the template reads; None where it does not parse, as rendering will tell."""
        reads: list[str] | None = self._process.ask({"template": self.source}).get("reads")
        return reads

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation, with the opening of the assistant's turn where asked.

        The template sees `variables`, which come before special tokens of the same name, as in transformers.
        Raises ConversationError where the template refuses the conversation or fails, in the template's words, and
        another EdgemoeError where it takes too long.
        """
        request = {
            "template": self.source,
            "variables": {
                **dict.fromkeys(ABSENT_VARIABLES),
                **self.special_tokens,
                **(variables or {}),
                "add_generation_prompt": add_generation_prompt,
            },
            "messages": [dict(message) for message in messages],
        }
        answer = self._process.ask(request)
        if answer.get("text"):
            return str(answer["text"])
        if "text" in answer:
            raise StoreError(
                "chat template: it turns the conversation into an empty text.",
                "Copy the template of the original model again, or give a plain text (`raw`).",
            )
        if answer["error"] == "syntax":
            raise StoreError(
                f"chat template: it does not parse ({answer['message']}).",
                "Copy the template of the original model again, or give a plain text (`raw`).",
            )
        raise ConversationError(
            f"chat template: it refused the conversation or failed ({answer['message']}).",
            "Some models accept no system message, or need user and assistant to alternate;"
            " a plain text (`raw`) needs no template.",
        )

    def close(self) -> None:
        """End the process that renders, and free its memory; a further rendering starts another."""
        self._process.close()


def template_source(folder: Path) -> str | None:
    """The template that transformers takes where there are no tools, None where there is none.

    The file comes before the config. Of several templates it is the one named default.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        return read_text(path, TEMPLATE_LIMIT_BYTES)
    path = folder / CONFIG_NAME
    return config_template(read_json_object(path, required=False), path)
