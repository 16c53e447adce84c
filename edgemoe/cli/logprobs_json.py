"""Logprobs of an answer as JSON, in the form of OpenAI's interface, with ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgemoe.session.logprobs import TokenLogprobs
from edgemoe.session.token_bytes import TokenBytes
from edgemoe.session.tokenizer import Tokenizer


def logprobs_json(logprobs: Sequence[TokenLogprobs], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """An entry for each token of an answer; bytes tell parts of characters apart, whose text is U+FFFD."""
    spelled = TokenBytes(tokenizer)

    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {"id": token, "token": spelled.text(token), "bytes": list(spelled.of(token)), "logprob": logprob}

    return [
        {**entry(one.token, one.logprob), "top_logprobs": [entry(token, logprob) for token, logprob in one.top]}
        for one in logprobs
    ]
