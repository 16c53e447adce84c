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
from edgemoe.server.jobs import Figures, Finished, Piece, Progress
from edgemoe.server.llama_common import stop_type
from edgemoe.server.service import Service
from edgemoe.server.settings import MOST_TOP_LOGPROBS, AnswerSettings, sampling_of
from edgemoe.server.tool_fields import own_structure
from edgemoe.session.logprobs import TokenLogprobs
from edgemoe.session.token_bytes import TokenBytes

MOST_PROMPTS = 256
MISSING = object()
WITHOUT_EFFECT = ("cache_prompt", "id_slot", "model", "t_max_predict_ms")
UNSUPPORTED = {
    "image_data": "edgemoe reads text alone",
    "lora": "adapters are not supported",
    "post_sampling_probs": "probabilities are those of the model, before any setting of sampling acts",
    "n_indent": "indentation is not supported",
    "n_keep": "a full context is not shifted",
    "n_cmpl": "several answers to one prompt are asked for at /v1/completions",
}
HARMLESS = {"n_keep": (0, -1), "n_cmpl": (1,)}
SAMPLERS = {
    "mirostat": 0, "dry_multiplier": 0, "xtc_probability": 0, "dynatemp_range": 0, "top_n_sigma": -1,
    "repeat_last_n": -1, "adaptive_target": -1,
}  # fmt: skip
"""Samplers that are not there, with the value at which each has no effect."""
TUNING = (
    "mirostat_tau", "mirostat_eta", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers",
    "xtc_threshold", "dynatemp_exponent", "min_keep", "samplers", "adaptive_decay",
)  # fmt: skip
"""Fields that only those samplers read."""


async def completion(exchange: Exchange) -> Response:
    """Continue a text, or several."""
    fields = await exchange.fields()
    several, prompts = await _prompts(fields.any("prompt"), exchange.service)
    return await continued(exchange, fields, prompts, several)


async def continued(exchange: Exchange, fields: Fields, prompts: Sequence[list[int]], several: bool) -> Response:
    """The answer, or the list of answers, to prompts whose ids are known. Raises RefusalError."""
    service = exchange.service
    spelled = TokenBytes(service.model.tokenizer)
    settings = _settings(fields, service)
    settings = replace(settings, constraint=await service.compiled(own_structure(fields)))
    shown = fields.texts("response_fields")
    ping_s = fields.whole("sse_ping_interval", 1)
    form = _Form(service, spelled, settings, fields)
    answers = service.begin(prompts, settings)
    if settings.stream:
        return exchange.stream(_chunks(answers, form), fields, ping_s)
    wholes = await exchange.whole(gathered(answers))
    found = [form.whole(number, ids, one) for number, (ids, one) in enumerate(zip(prompts, wholes, strict=True))]
    if shown:
        found = [selected(one, shown) for one in found]
    return exchange.answer(found if several else found[0], fields)


def selected(answer: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The fields of an answer with these names; that of a field inside another one is both, with a slash between."""
    found = {}
    for name in names:
        value: Any = answer
        for part in name.split("/"):
            value = value.get(part, MISSING) if isinstance(value, dict) else MISSING
        if value is not MISSING:
            found[name] = value
    return found


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
    timed = fields.flag("timings_per_token")
    if limit is None:
        limit = service.defaults.max_tokens
    sampling = sampling_of(fields, service.defaults.sampling, tokenizer=service.model.tokenizer)
    most = limit if limit and limit > 0 else None
    return AnswerSettings(sampling, most, 1, top or None, fields.flag("stream"), timed=timed)


async def _prompts(value: Any, service: Service) -> tuple[bool, list[list[int]]]:
    """The ids of one prompt, or of several; and whether a list of prompts was given. Raises RefusalError."""
    whole = (str, list, dict)
    several = isinstance(value, list) and bool(value) and all(isinstance(one, whole) for one in value)
    listed = value if several else [value]
    if len(listed) > MOST_PROMPTS:
        raise Fields({}).wrong("prompt", f"at most {MOST_PROMPTS} prompts", value)
    return several, [await _prompt(one, service) for one in listed]


async def _prompt(value: Any, service: Service) -> list[int]:
    """The ids of a prompt: a text, an object with one, or a list of texts and ids that follow each other."""
    if isinstance(value, dict):
        fields = Fields(value, "prompt.")
        fields.refuse("multimodal_data", "edgemoe reads text alone")
        value = fields.any("prompt_string")
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

    def __init__(self, service: Service, spelled: TokenBytes, settings: AnswerSettings, fields: Fields) -> None:
        self._name = service.name
        self._decode = service.model.decode
        self._spelled = spelled
        self._settings = settings
        self._with_tokens = fields.flag("return_tokens")
        self.progress = fields.flag("return_progress")
        sampling = settings.sampling
        biases: list[dict[str, Any]] = [
            {"token": token, "bias": bias} for token, bias in dict(sampling.logit_bias).items()
        ]
        if fields.flag("ignore_eos"):
            biases += [{"token": token, "bias": None} for token in sorted(service.model.tokenizer.stop_ids)]
        self._generation = {
            **SAMPLERS,
            "adaptive_decay": 0,
            **{name: value for name, value in sampling.to_json().items() if value not in ((), [])},
            "n_predict": -1 if settings.max_tokens is None else settings.max_tokens,
            "stop": list(sampling.stop),
            "logit_bias": biases,
        }

    def piece(self, number: int, one: Piece, generated: int, prompt_tokens: int) -> dict[str, Any]:
        """A token of a stream."""
        return {
            "index": number,
            "content": one.thought + one.text,
            "tokens": [] if one.token is None else [one.token],
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": generated,
            "tokens_evaluated": prompt_tokens,
            **self._probabilities([] if one.logprobs is None else [one.logprobs]),
            **self._times(one.figures),
        }

    def progressed(self, number: int, one: Progress) -> dict[str, Any]:
        """How far a prompt has come."""
        told = {"total": one.total, "cache": one.cached, "processed": one.processed}
        times = self._times(one.figures)
        return {"index": number, "content": "", "tokens": [], "stop": False, "prompt_progress": told, **times}

    def whole(self, number: int, prompt: Sequence[int], one: Whole) -> dict[str, Any]:
        """A whole answer."""
        content = one.thought + one.text
        return {
            **self.end(number, prompt, one.finished, "\n" in content),
            "content": content,
            "tokens": one.token_ids if self._with_tokens else [],
            **self._probabilities(one.logprobs),
        }

    def end(self, number: int, prompt: Sequence[int], end: Finished, has_new_line: bool) -> dict[str, Any]:
        """The end of an answer."""
        return {
            "index": number,
            "content": "",
            "tokens": [],
            "id_slot": -1,
            "stop": True,
            "model": self._name,
            "tokens_predicted": end.figures.generated_tokens,
            "tokens_evaluated": len(prompt),
            "tokens_cached": end.figures.cached_tokens,
            "generation_settings": self._generation,
            "prompt": self._decode(list(prompt), skip_special_tokens=False),
            "has_new_line": has_new_line,
            "truncated": end.reason == "context",
            "stop_type": stop_type(end.reason, end.stop_text),
            "stopping_word": end.stop_text or "",
            "timings": timings(end.figures),
        }

    def _times(self, figures: Figures | None) -> dict[str, Any]:
        return {"timings": timings(figures)} if self._settings.timed and figures is not None else {}

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


async def _chunks(answers: Answers, form: _Form) -> AsyncGenerator[bytes, None]:
    generated = [0] * len(answers.jobs)
    new_lines = [False] * len(answers.jobs)
    async with answers:
        async for number, one in answers.events():
            prompt = answers.jobs[number].prompt_ids
            if isinstance(one, Finished):
                yield event(form.end(number, prompt, one, new_lines[number]))
            elif isinstance(one, Piece):
                generated[number] += one.token is not None
                new_lines[number] |= "\n" in one.thought + one.text
                yield event(form.piece(number, one, generated[number], len(prompt)))
            elif isinstance(one, Progress) and form.progress:
                yield event(form.progressed(number, one))
