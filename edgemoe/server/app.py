"""The paths of the server, and which interface answers each."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgemoe.server.anthropic import ANTHROPIC, count_tokens, messages
from edgemoe.server.exchange import Dialect, Handler, endpoint
from edgemoe.server.guard import Guard
from edgemoe.server.live import about, end_stream, live, resume_stream, trace, what_if
from edgemoe.server.llama_common import LLAMA
from edgemoe.server.llama_completion import completion
from edgemoe.server.llama_infill import infill
from edgemoe.server.llama_texts import act_on_slot, apply_template, detokenize, health, props, slots, tokenize
from edgemoe.server.metrics import metrics
from edgemoe.server.models import model, models
from edgemoe.server.openai_chat import chat_completions, input_tokens
from edgemoe.server.openai_common import OPENAI
from edgemoe.server.openai_completions import completions
from edgemoe.server.openai_responses import Responses
from edgemoe.server.page_files import asset, index
from edgemoe.server.refusals import RefusalError
from edgemoe.server.service import Service

Path = tuple[str, str, Dialect, Handler]

PATHS: tuple[Path, ...] = (
    ("GET", "/v1/models", OPENAI, models),
    ("GET", "/models", OPENAI, models),
    ("GET", "/v1/models/{name:path}", OPENAI, model),
    ("POST", "/v1/chat/completions", OPENAI, chat_completions),
    ("POST", "/chat/completions", LLAMA, chat_completions),
    ("POST", "/v1/chat/completions/input_tokens", OPENAI, input_tokens),
    ("POST", "/chat/completions/input_tokens", LLAMA, input_tokens),
    ("POST", "/v1/completions", OPENAI, completions),
    ("POST", "/v1/messages", ANTHROPIC, messages),
    ("POST", "/v1/messages/count_tokens", ANTHROPIC, count_tokens),
    ("GET", "/health", LLAMA, health),
    ("GET", "/v1/health", LLAMA, health),
    ("GET", "/props", LLAMA, props),
    ("GET", "/slots", LLAMA, slots),
    ("POST", "/slots/{number}", LLAMA, act_on_slot),
    ("GET", "/metrics", LLAMA, metrics),
    ("POST", "/completion", LLAMA, completion),
    ("POST", "/completions", LLAMA, completion),
    ("POST", "/infill", LLAMA, infill),
    ("POST", "/tokenize", LLAMA, tokenize),
    ("POST", "/detokenize", LLAMA, detokenize),
    ("POST", "/apply-template", LLAMA, apply_template),
    ("GET", "/edgemoe/about", OPENAI, about),
    ("GET", "/edgemoe/live", OPENAI, live),
    ("GET", "/edgemoe/trace", OPENAI, trace),
    ("GET", "/edgemoe/what-if", OPENAI, what_if),
    ("GET", "/edgemoe/streams/{key}", OPENAI, resume_stream),
    ("DELETE", "/edgemoe/streams/{key}", OPENAI, end_stream),
    ("GET", "/", OPENAI, index),
    ("GET", "/static/{name}", OPENAI, asset),
)

REFUSED = {
    "embeddings": "edgemoe makes no embeddings of texts",
    "embedding": "edgemoe makes no embeddings of texts",
    "rerank": "edgemoe ranks no texts",
    "reranking": "edgemoe ranks no texts",
    "lora-adapters": "edgemoe has no adapters",
    "audio/speech": "edgemoe writes text alone",
    "audio/transcriptions": "edgemoe reads text alone",
    "audio/translations": "edgemoe reads text alone",
    "images/generations": "edgemoe writes text alone",
    "moderations": "edgemoe judges no texts",
}
"""Paths of other servers, with and without /v1, that are refused by name."""


def make_app(service: Service) -> Starlette:
    """The application that answers all requests."""
    settings = service.settings
    responses = Responses()
    others: list[Path] = [
        (method, prefix + path, dialect, handler)
        for prefix, dialect in (("/v1/responses", OPENAI), ("/responses", LLAMA))
        for method, path, handler in (
            ("POST", "", responses.respond),
            ("POST", "/input_tokens", responses.input_tokens),
            ("POST", "/compact", responses.compact),
            ("GET", "/{name}", responses.retrieve),
            ("DELETE", "/{name}", responses.delete),
        )
    ]
    return Starlette(
        routes=[
            Route(path, endpoint(service, dialect, handler), methods=[method])
            for method, path, dialect, handler in (*PATHS, *others)
        ],
        middleware=[Middleware(Guard, settings=settings, dialect_of=dialect_of)],
        exception_handlers={HTTPException: _not_found},
    )


def dialect_of(path: str) -> Dialect:
    """The form of errors on a path, known or not."""
    return next((dialect for _, known, dialect, _ in PATHS if known == path), OPENAI)


async def _not_found(request: Request, error: Exception) -> Response:
    """Tell that a path is not known, or not by this method."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    refusal = RefusalError(
        f"{request.method} {path[:200]}: {'there is no such path' if error.status_code == 404 else error.detail}.",
        "The README lists the paths.",
        error.status_code,
    )
    why = REFUSED.get(path.removeprefix("/v1").removeprefix("/"))
    if why is not None:
        refusal = RefusalError(f"{path}: {why}.", "Ask another server for that.", 501, "unsupported")
    return dialect_of(path).refuse(refusal, "")
