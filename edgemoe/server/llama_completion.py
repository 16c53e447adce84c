"""POST /completion: texts that go on, in llama-server's form."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.responses import Response

from edgemoe.server.answers import Answers, Whole, gathered, timings
from edgemoe.server.exchange import Exchange, event
from edgemoe.server.fields import Fields, is_text
from edgemoe.server.jobs import Finished, Piece, Progress
from edgemoe.server.llama_common import stop_type
from edgemoe.server.service import Service
from edgemoe.server.settings import MOST_TOP_LOGPROBS, AnswerSettings, sampling_of
from edgemoe.server.tool_fields import own_structure
from edgemoe.session.logprobs import TokenLogprobs
from edgemoe.session.token_bytes import TokenBytes

MOST_PROMPTS = 256
WITHOUT_EFFECT = ("cache_prompt", "id_slot", "model", "response_fields", "timings_per_token", "t_max_predict_ms")
UNSUPPORTED = {
    "ignore_eos": "the end of an answer cannot be ignored",
    "image_data": "edgemoe reads text alone",
    "lora": "adapters are not supported",
    "n_indent": "indentation is not supported",
    "n_keep": "a full context is not shifted",
    "n_cmpl": "several answers to one prompt are asked for at /v1/completions",
}
HARMLESS = {"n_keep": (0, -1), "n_cmpl": (1,)}
SAMPLERS = {
    "mirostat": 0, "dry_multiplier": 0, "xtc_probability": 0, "dynatemp_range": 0, "top_n_sigma": -1,
    "repeat_last_n": -1,
}  # fmt: skip
"""Samplers that are not there, with the value at which each has no effect."""
TUNING = (
    "mirostat_tau", "mirostat_eta", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers",
    "xtc_threshold", "dynatemp_exponent", "min_keep", "samplers",
)  # fmt: skip
"""Fields that only those samplers read."""


async def completion(exchange: Exchange) -> Response:
    """Continue a text, or several."""
    fields = await exchange.fields()
    service = exchange.service
    spelled = TokenBytes(service.model.tokenizer)
    several, prompts = await _prompts(fields.any("prompt"), service)
    settings = _settings(fields, service)
    with_tokens = fields.flag("return_tokens")
    progress, ping_s = fields.flag("return_progress"), fields.whole("sse_ping_interval", 1)
    settings = replace(settings, constraint=await service.compiled(own_structure(fields)))
    answers = service.begin(prompts, settings)
    form = _Form(service, spelled, settings, with_tokens)
    if settings.stream:
        return exchange.stream(_chunks(answers, form, progress), fields, ping_s)
    wholes = await exchange.whole(gathered(answers))
    found = [form.whole(number, len(ids), one) for number, (ids, one) in enumerate(zip(prompts, wholes, strict=True))]
    return exchange.answer(found if several else found[0], fields)


def _settings(fields: Fields, service: Service) -> AnswerSettings:
    fields.ignore(*WITHOUT_EFFECT, *TUNING)
    for name, why in UNSUPPORTED.items():
        fields.refuse(name, why, HARMLESS.get(name, ()))
    for name, off in SAMPLERS.items():
        fields.refuse(name, "this sampler is not there", (off, 0))
    # -1 is no limit in this dialect, and -2 the end of the context
    limit = fields.whole("n_predict", -2)
    limit = fields.whole("max_tokens", -2) if limit is None else limit
    if limit == 0:
        raise fields.wrong("n_predict", "1 or more, or -1 for no limit", 0)
    top = fields.whole("n_probs", 0, MOST_TOP_LOGPROBS, default=0)
    sampling = sampling_of(fields, service.defaults.sampling)
    return AnswerSettings(sampling, limit if limit and limit > 0 else None, 1, top or None, fields.flag("stream"))


async def _prompts(value: Any, service: Service) -> tuple[bool, list[list[int]]]:
    """The ids of one prompt, or of several; and whether a list of prompts was given. Raises RefusalError."""
    several = isinstance(value, list) and bool(value) and all(is_text(one) or isinstance(one, list) for one in value)
    listed = value if several else [value]
    if len(listed) > MOST_PROMPTS:
        raise Fields({}).wrong("prompt", f"at most {MOST_PROMPTS} prompts", value)
    return several, [await _prompt(one, service) for one in listed]


async def _prompt(value: Any, service: Service) -> list[int]:
    """The ids of a prompt: a text, or a list of texts and ids that follow each other."""
    if is_text(value):
        return await service.text_ids(value)
    if not isinstance(value, list) or not value:
        raise Fields({}).wrong("prompt", "a text, token ids, or a list of these", value)
    model, ids = service.model, []
    for number, part in enumerate(value):
        if is_text(part):
            # what the tokenizer puts around a text (such as BOS) stands at the beginning
            ids += await service.on_texts(partial(model.encode, part, number == 0, service.settings.literal))
        else:
            ids += service.ids([part], "prompt")
    service.check_room(ids)
    return ids


class _Form:
    """Makes the objects of answers."""

    def __init__(self, service: Service, spelled: TokenBytes, settings: AnswerSettings, with_tokens: bool) -> None:
        self._name = service.name
        self._spelled = spelled
        self._settings = settings
        self._with_tokens = with_tokens
        self._generation = {
            **{name: value for name, value in settings.sampling.to_json().items() if value not in ((), [])},
            "n_predict": -1 if settings.max_tokens is None else settings.max_tokens,
            "stop": list(settings.sampling.stop),
        }

    def piece(self, number: int, one: Piece, generated: int, prompt_tokens: int) -> dict[str, Any]:
        """A token of a stream."""
        return {
            "index": number,
            "content": one.thought + one.text,
            "tokens": [one.token] if self._with_tokens and one.token is not None else [],
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": generated,
            "tokens_evaluated": prompt_tokens,
            **self._probabilities([] if one.logprobs is None else [one.logprobs]),
        }

    def whole(self, number: int, prompt_tokens: int, one: Whole) -> dict[str, Any]:
        """A whole answer."""
        content = one.thought + one.text
        return {
            **self.end(number, prompt_tokens, one.finished),
            "content": content,
            "tokens": one.token_ids if self._with_tokens else [],
            "has_new_line": "\n" in content,
            **self._probabilities(one.logprobs),
        }

    def end(self, number: int, prompt_tokens: int, end: Finished) -> dict[str, Any]:
        """The end of an answer."""
        return {
            "index": number,
            "content": "",
            "tokens": [],
            "id_slot": -1,
            "stop": True,
            "model": self._name,
            "tokens_predicted": end.figures.generated_tokens,
            "tokens_evaluated": prompt_tokens,
            "tokens_cached": end.figures.cached_tokens,
            "generation_settings": self._generation,
            "truncated": False,
            "stop_type": stop_type(end.reason, end.stop_text),
            "stopping_word": end.stop_text or "",
            "timings": timings(end.figures),
        }

    def _probabilities(self, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
        def one(token: int, logprob: float) -> dict[str, Any]:
            spelled = self._spelled
            return {"id": token, "token": spelled.text(token), "bytes": [*spelled.of(token)], "logprob": logprob}

        if self._settings.top_logprobs is None or not logprobs:
            return {}
        return {
            "completion_probabilities": [
                {**one(entry.token, entry.logprob), "top_logprobs": [one(*likely) for likely in entry.top]}
                for entry in logprobs
            ]
        }


async def _chunks(answers: Answers, form: _Form, progress: bool) -> AsyncGenerator[bytes, None]:
    generated = [0] * len(answers.jobs)
    async with answers:
        async for number, one in answers.events():
            prompt_tokens = len(answers.jobs[number].prompt_ids)
            if isinstance(one, Finished):
                yield event(form.end(number, prompt_tokens, one))
            elif isinstance(one, Piece):
                generated[number] += one.token is not None
                yield event(form.piece(number, one, generated[number], prompt_tokens))
            elif isinstance(one, Progress) and progress:
                told = {"total": one.total, "cache": one.cached, "processed": one.processed}
                yield event({"index": number, "content": "", "stop": False, "prompt_progress": told})
