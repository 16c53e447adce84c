"""The common parts of OpenAI's interfaces: errors, counts of tokens, logprobs, and the fields about an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgemoe.server.answers import Whole, timings
from edgemoe.server.exchange import Dialect, Exchange
from edgemoe.server.fields import Fields
from edgemoe.server.jobs import Figures
from edgemoe.server.refusals import OVERFLOW, RefusalError
from edgemoe.server.service import Service
from edgemoe.server.settings import MOST_CHOICES, MOST_TOP_LOGPROBS, AnswerSettings, sampling_of
from edgemoe.session.continuation import FinishReason
from edgemoe.session.logprobs import TokenLogprobs
from edgemoe.session.token_bytes import TokenBytes

FINISH_REASONS: dict[FinishReason, str] = {"stop": "stop", "length": "length", "context": "length"}

WITHOUT_EFFECT = (
    "model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "verbosity", "cache_prompt", "id_slot",
)  # fmt: skip
"""Fields that change no answer here."""


def error_body(refusal: RefusalError, request_id: str) -> dict[str, Any]:
    """An error in OpenAI's form, with the numbers that some clients look for."""
    return {
        "error": {
            "message": str(refusal),
            "type": OVERFLOW if refusal.code == OVERFLOW else refusal.kind,
            "param": refusal.param,
            "code": refusal.code,
            **refusal.facts,
        }
    }


OPENAI = Dialect(error_body)


def answer_settings(
    fields: Fields, exchange: Exchange, max_tokens: int | None, top_logprobs: int | None
) -> AnswerSettings:
    """The settings of an answer. Raises RefusalError for known fields that cannot be honoured, and for wrong values."""
    fields.ignore(*WITHOUT_EFFECT)
    service = exchange.service
    sampling = sampling_of(fields, service.defaults.sampling, tokenizer=service.model.tokenizer)
    choices = fields.whole("n", 1, MOST_CHOICES, default=1)
    assert choices is not None
    stream = fields.flag("stream")
    return AnswerSettings(sampling, max_tokens, choices, top_logprobs, stream, request_id=exchange.id)


def thought_limit(fields: Fields) -> int | None:
    """The most tokens of a thought, in llama-server's field: -1 stands for any number."""
    most = fields.whole("thinking_budget_tokens", -1)
    return None if most == -1 else most


def wants_usage(fields: Fields) -> bool:
    """Whether a stream is to end with the counts of tokens."""
    options = fields.object("stream_options")
    if options is None:
        return False
    options.ignore("include_obfuscation")
    return options.flag("include_usage")


def shown_prompt(fields: Fields, service: Service, ids: Sequence[int]) -> dict[str, Any]:
    """The prompt as the model reads it, for people who write templates: where a request says `verbose`."""
    if not fields.flag("verbose"):
        return {}
    return {"__verbose": {"prompt": service.model.decode(list(ids), skip_special_tokens=False)}}


def usage_of(figures: Sequence[Figures], choices: int = 1) -> dict[str, Any]:
    """Counts of tokens; of the choices of one prompt, the prompt counts once."""
    first = figures[::choices]
    prompt = sum(one.prompt_tokens for one in first)
    generated = sum(one.generated_tokens for one in figures)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in first)},
        "completion_tokens_details": {"reasoning_tokens": sum(one.thought_tokens for one in figures)},
    }


def timings_of(figures: Sequence[Figures]) -> dict[str, Any]:
    """The field `timings` of an answer; several answers have none."""
    return {"timings": timings(figures[0])} if len(figures) == 1 else {}


def figures_of(wholes: Sequence[Whole]) -> list[Figures]:
    """The figures of whole answers."""
    return [whole.finished.figures for whole in wholes]


def top_logprobs_of(fields: Fields) -> int | None:
    """How many likeliest tokens a chat wants named; None for no logprobs."""
    wanted = fields.flag("logprobs")
    top = fields.whole("top_logprobs", 0, MOST_TOP_LOGPROBS)
    if top and not wanted:
        raise RefusalError("top_logprobs: expected logprobs to be true beside it.", param="top_logprobs")
    return (top or 0) if wanted else None


def chat_logprobs(spelled: TokenBytes, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """The logprobs of a chat's answer."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        return {"token": spelled.text(token), "logprob": logprob, "bytes": [*spelled.of(token)]}

    return {
        "content": [
            {**one(entry.token, entry.logprob), "top_logprobs": [one(*likely) for likely in entry.top]}
            for entry in logprobs
        ],
        "refusal": None,
    }
