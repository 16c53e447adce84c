"""Refusals: errors with what HTTP and the interfaces say beside their text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgemoe.errors import ConversationError, EdgemoeError, PromptLengthError, UsageError
from edgemoe.server.jobs import QueueFullError, StoppingError

OVERFLOW = "context_length_exceeded"
KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
         405: "invalid_request_error", 408: "invalid_request_error", 413: "request_too_large",
         429: "rate_limit_error", 501: "not_supported_error", 503: "overloaded_error"}  # fmt: skip
"""The kind of an error by its status, in the words of OpenAI and Anthropic."""


class RefusalError(EdgemoeError):
    """An error as it is told to a client: its status, its code, and the field that is to blame."""

    def __init__(
        self,
        message: str,
        hint: str = "",
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        retry_s: int | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """`retry_s`: when to ask again; `facts`: numbers for programs."""
        super().__init__(message, hint)
        self.status = status
        self.code = code
        self.param = param
        self.retry_s = retry_s
        self.facts = dict(facts or {})

    @property
    def kind(self) -> str:
        return KINDS.get(self.status, "server_error")

    @property
    def headers(self) -> dict[str, str]:
        """Headers that tell a client whether, and when, to ask again."""
        if self.retry_s is None:
            return {"x-should-retry": "false"} if self.status >= 500 else {}
        return {"retry-after": str(self.retry_s)}


def refusal_of(error: BaseException) -> RefusalError:
    """The refusal that tells a client of an error."""
    if isinstance(error, RefusalError):
        return error
    if isinstance(error, PromptLengthError):
        tokens, context = error.tokens, error.context_length
        return RefusalError(
            f"This model's maximum context length is {context} tokens. However, your messages resulted in {tokens}"
            f" tokens (prompt is too long: {tokens} tokens > {context} maximum).",
            "Please reduce the length of the messages, or start the server with a longer context.",
            code=OVERFLOW,
            facts={"n_prompt_tokens": tokens, "n_ctx": context},
        )
    if isinstance(error, ConversationError):
        hint = "Send messages that this model's template accepts."
        return RefusalError(error.message, hint, code="template_refused", param="messages")
    if isinstance(error, QueueFullError):
        return RefusalError(error.message, error.hint, 429, code="queue_full", retry_s=2)
    if isinstance(error, StoppingError):
        return RefusalError(error.message, error.hint, 503, code="stopping", retry_s=5)
    if isinstance(error, UsageError):
        name, colon, _ = error.message.partition(":")
        return RefusalError(error.message, error.hint, param=name.strip("`") if colon and " " not in name else None)
    if isinstance(error, EdgemoeError):
        return RefusalError(error.message, error.hint, 500, code="model_error")
    return RefusalError(
        f"internal error: {type(error).__name__}: {error}.", "This is a bug in edgemoe: please report it.", 500
    )
