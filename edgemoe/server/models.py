"""GET /v1/models: the model that is served, in the words of OpenAI with facts about it."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from edgemoe.server.exchange import Exchange, json_response
from edgemoe.server.refusals import RefusalError
from edgemoe.server.service import Service


async def models(exchange: Exchange) -> Response:
    """List the model; Codex looks for it under `models` too."""
    one = description(exchange.service)
    summary = {"name": one["id"], "model": one["id"], "type": "model", "capabilities": ["completion"]}
    return json_response({"object": "list", "data": [one], "models": [summary]})


async def model(exchange: Exchange) -> Response:
    """Describe the model of a name. Raises RefusalError for any other name."""
    one = description(exchange.service)
    asked = exchange.request.path_params["name"]
    if asked != one["id"]:
        raise RefusalError(
            f"there is no model {asked[:80]!r} here.", f"It is {one['id']!r}.", 404, "model_not_found", "model"
        )
    return json_response(one)


def description(service: Service) -> dict[str, Any]:
    """Describe the model."""
    served = service.model
    spec, memory = served.spec, served.engine.memory
    return {
        "id": service.name,
        "object": "model",
        "created": int(service.began_s),
        "owned_by": "edgemoe",
        "context_length": served.engine.context_length,
        "max_model_len": served.engine.context_length,
        "meta": {
            "vocab_size": spec.vocab_size,
            "n_ctx": served.engine.context_length,
            "n_ctx_train": spec.max_positions,
            "layers": len(spec.layers),
            "experts": memory.total_experts,
            "experts_in_ram": min(memory.slots, memory.total_experts),
            "sequences": served.engine.sequences.most,
            "budget_bytes": memory.budget_bytes,
        },
    }
