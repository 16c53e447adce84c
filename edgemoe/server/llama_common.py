"""The common parts of llama-server's dialect: errors, and the names of what ended an answer."""

from __future__ import annotations

from typing import Any

from edgemoe.server.exchange import Dialect
from edgemoe.server.refusals import OVERFLOW, RefusalError
from edgemoe.session.continuation import FinishReason

KINDS = {503: "unavailable_error", 413: "invalid_request_error", 429: "unavailable_error"}


def error_body(refusal: RefusalError, request_id: str) -> dict[str, Any]:
    """An error in llama-server's form, whose code is the status."""
    kind, message = KINDS.get(refusal.status, refusal.kind), str(refusal)
    if refusal.code == OVERFLOW:
        tokens, context = refusal.facts["n_prompt_tokens"], refusal.facts["n_ctx"]
        kind = "exceed_context_size_error"
        message = f"The prompt's {tokens} tokens are more than fit: it exceeds the available context size ({context})."
    return {"error": {"code": refusal.status, "message": message, "type": kind, **refusal.facts}}


LLAMA = Dialect(error_body)


def stop_type(reason: FinishReason, stop_text: str | None) -> str:
    """The name of what ended an answer."""
    if reason == "stop":
        return "eos" if stop_text is None else "word"
    return "limit"
