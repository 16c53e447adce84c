"""POST /infill: the text between two others, in llama-server's form, by models that were trained to write it."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from edgemoe.server.exchange import Exchange
from edgemoe.server.fields import Fields, is_text
from edgemoe.server.llama_completion import continued
from edgemoe.server.refusals import RefusalError
from edgemoe.server.service import Service

MARKERS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
)
"""The tokens before the beginning, before the end, and before what is between them, by families."""
FILE_SEPARATORS = ("<|file_sep|>", "<file_sep>")
MOST_FILES = 256


async def infill(exchange: Exchange) -> Response:
    """Write what is between a beginning and an end. Raises RefusalError where the model cannot."""
    fields = await exchange.fields()
    service = exchange.service
    markers = _markers(service)
    before, after = fields.text("input_prefix", "") or "", fields.text("input_suffix", "") or ""
    begun = fields.text("prompt", "") or ""
    files = _files(fields)

    def work() -> list[int]:
        tokenizer, literal = service.model.tokenizer, service.settings.literal
        ids = tokenizer.encode("", special_tokens=True)  # what stands at the beginning of texts, such as BOS
        for name, text in files:
            separator = service.model.tokenizer.first_known(FILE_SEPARATORS)
            ids += [] if separator is None else [separator]
            ids += tokenizer.encode(f"{name}\n{text}\n", literal=literal)
        for marker, text in zip(markers, (before, after, begun), strict=True):
            ids += [marker, *tokenizer.encode(text, literal=literal)]
        return ids

    ids = await service.on_texts(work)
    service.check_room(ids)
    return await continued(exchange, fields, [ids], several=False)


def _markers(service: Service) -> tuple[int, ...]:
    tokenizer = service.model.tokenizer
    for names in MARKERS:
        ids = tuple(tokenizer.first_known((name,)) for name in names)
        if None not in ids:
            return ids  # type: ignore[return-value]
    raise RefusalError(
        "this model was not trained to write what is between two texts: it has no tokens for that.",
        "Use a model that has them, such as Qwen3-Coder.",
        501,
        "unsupported",
    )


def _files(fields: Fields) -> list[tuple[str, str]]:
    """Names and texts of other files, which the model reads first."""
    value = fields.any("input_extra")
    if value is None:
        return []
    expected = "a list of objects with filename and text"
    if not isinstance(value, list) or len(value) > MOST_FILES:
        raise fields.wrong("input_extra", expected, value)
    return [_file(fields, one) for one in value]


def _file(fields: Fields, value: Any) -> tuple[str, str]:
    name = value.get("filename", "") if isinstance(value, dict) else None
    text = value.get("text") if isinstance(value, dict) else None
    if not is_text(name) or not is_text(text):
        raise fields.wrong("input_extra", "objects with filename and text", value)
    return str(name), str(text)
