"""The smaller paths of llama-server: texts to ids and back, the template, the state of the server."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from starlette.responses import Response

from edgemoe.server.exchange import Exchange, json_response
from edgemoe.server.messages import Conversation, messages_of
from edgemoe.server.openai_chat import template_variables, tool_wishes
from edgemoe.server.openai_common import WITHOUT_EFFECT
from edgemoe.server.refusals import RefusalError
from edgemoe.session.token_bytes import TokenBytes

SLOT_ACTIONS = ("save", "restore", "erase")
"""The actions on a sequence that llama-server has."""


async def health(exchange: Exchange) -> Response:
    """Tell that the model is open. Raises RefusalError before it is."""
    assert exchange.service.model is not None
    return json_response({"status": "ok"})


async def props(exchange: Exchange) -> Response:
    """Describe the model's context, template and sampling."""
    service = exchange.service
    model = service.model
    context = model.engine.context_length
    sampling = {name: value for name, value in service.defaults.sampling.to_json().items() if value not in ((), [])}
    return json_response(
        {
            "default_generation_settings": {"n_ctx": context, "params": sampling, **sampling},
            "total_slots": model.engine.sequences.most,
            "model_alias": service.name,
            "model_path": str(model.path),
            "chat_template": model.template.source if service.has_template else "",
            "modalities": {"vision": False, "audio": False},
            "bos_token": model.template.special_tokens.get("bos_token", "") if service.has_template else "",
            "eos_token": model.template.special_tokens.get("eos_token", "") if service.has_template else "",
            "build_info": f"edgemoe {version('edgemoe')}",
        }
    )


async def act_on_slot(exchange: Exchange) -> Response:
    """Refuse to save, restore or erase what a sequence holds: it holds nothing once its answer has ended."""
    action = exchange.request.query_params.get("action", "")
    if action not in SLOT_ACTIONS:
        raise RefusalError(f"action: expected {', '.join(SLOT_ACTIONS)}, found {action!r:.40}.", param="action")
    raise RefusalError(
        f"action={action}: sequences keep nothing under their numbers: a prompt that begins as an earlier one finds its"
        " prefix by its tokens.",
        "Leave it out; started with `prefix_disk`, the server keeps prefixes in files and finds them after a restart.",
        501,
        "unsupported",
        "action",
    )


async def slots(exchange: Exchange) -> Response:
    """List the sequences, without anything of their texts."""
    service = exchange.service
    engine = service.model.engine
    scheduler = service.engine.scheduler
    assert scheduler is not None
    places = {place.number: place for place in scheduler.places()}
    found = []
    for number in range(engine.sequences.most):
        place = places.get(number)
        one: dict[str, Any] = {"id": number, "n_ctx": engine.context_length, "is_processing": place is not None}
        if place is not None:
            one["n_prompt_tokens"] = place.prompt_tokens
            one["n_prompt_tokens_processed"] = place.prompt_tokens - place.unread_tokens
            one["next_token"] = [{"n_decoded": place.generated_tokens}]
        found.append(one)
    return json_response(found)


async def tokenize(exchange: Exchange) -> Response:
    """The ids of a text."""
    fields = await exchange.fields()
    model = exchange.service.model
    spelled = TokenBytes(model.tokenizer)
    content = fields.text("content", "") or ""
    special, literal = fields.flag("add_special"), not fields.flag("parse_special", True)
    pieces = fields.flag("with_pieces")
    ids = await exchange.service.on_texts(lambda: model.tokenizer.encode(content, special, literal))

    def piece(token: int) -> Any:
        found = spelled.of(token)
        try:
            return found.decode()
        except UnicodeDecodeError:
            return [*found]

    told = [{"id": token, "piece": piece(token)} for token in ids] if pieces else ids
    return exchange.answer({"tokens": told}, fields)


async def detokenize(exchange: Exchange) -> Response:
    """The text of ids, special tokens by their names."""
    fields = await exchange.fields()
    service = exchange.service
    given = fields.any("tokens")
    ids = service.ids(given if isinstance(given, list) else [given], "tokens")
    text = await service.on_texts(lambda: service.model.decode(ids, skip_special_tokens=False))
    return exchange.answer({"content": text}, fields)


async def apply_template(exchange: Exchange) -> Response:
    """The text that the template makes of a conversation."""
    fields = await exchange.fields()
    fields.ignore(*WITHOUT_EFFECT)
    service = exchange.service
    conversation = Conversation.of(messages_of(fields.any("messages")))
    begins = fields.flag("add_generation_prompt", True)
    variables = await template_variables(fields, service)
    wishes = tool_wishes(fields)
    chat = await service.chat(conversation, variables, wishes, answers=False, opens=begins)
    return exchange.answer({"prompt": chat.text}, fields)
