"""Settings of the server itself, and settings of an answer that clients send."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgemoe.errors import UsageError
from edgemoe.model.sampling import SamplingOptions
from edgemoe.server.fields import Fields
from edgemoe.server.refusals import refusal_of

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MOST_CHOICES = 128
MOST_STOP_TEXTS = 64
MOST_TOP_LOGPROBS = 20


@dataclass(frozen=True)
class ServerSettings:
    """Where and for whom the server answers. Raises UsageError for settings that would not be safe."""

    host: str = "127.0.0.1"
    port: int = 8080
    """0 takes a free one."""
    api_keys: Sequence[str] = field(default=(), repr=False)
    """Any of them opens all paths but /health; none are needed on loopback."""
    origins: Sequence[str] = ()
    """Origins of web pages, other than the server's own, that may ask."""
    queue: int = 32
    """How many answers may wait for a sequence."""
    name: str | None = None
    """The model's name for clients, by default that of its folder or file."""
    body_limit_bytes: int = 4 << 20
    body_seconds: float = 30.0
    """The time in which a request's head, and then its body, must have arrived."""
    ping_seconds: float = 5.0
    """The longest silence of a stream."""
    literal: bool = False
    """Whether special tokens in clients' messages are text."""

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and not self.api_keys:
            raise UsageError(
                f"`host={self.host}`: other machines could use this server: expected an API key beside that address.",
                "Give a key (`api_key_file`, or the variable EDGEMOE_API_KEY), or leave the address out.",
            )
        if not 0 <= self.port < 1 << 16:
            raise UsageError(f"`port`: expected 0 to 65535, found {self.port}.", "Leave it out for 8080.")
        if self.queue < 0:
            raise UsageError(f"`queue`: expected 0 or more, found {self.queue}.", "Leave it out for 32.")
        for key in self.api_keys:
            if not key.strip() or not key.isascii() or not key.isprintable():
                raise UsageError(
                    "an API key: expected printable ASCII characters, found another text.", "Choose another key."
                )


@dataclass(frozen=True)
class AnswerSettings:
    """The wishes of a request beside its prompt."""

    sampling: SamplingOptions
    max_tokens: int | None
    choices: int = 1
    top_logprobs: int | None = None
    stream: bool = False
    request_id: str = ""


def sampling_of(fields: Fields, defaults: SamplingOptions, stop: str = "stop") -> SamplingOptions:
    """The sampling that a request asks for; the model's own where it says nothing. `stop`: the field of stop texts.

    Raises RefusalError, naming the field.
    """
    given: dict[str, Any] = {
        name: fields.number(name)
        for name in ("temperature", "top_p", "min_p", "typical_p", "presence_penalty", "frequency_penalty")
    }
    given["repetition_penalty"] = fields.number("repetition_penalty") or fields.number("repeat_penalty")
    given["top_k"] = fields.whole("top_k", -1)
    seed = fields.whole("seed", -(2**63), 2**64 - 1)
    given["seed"] = secrets.randbits(53) if seed is None or seed == -1 else seed % 2**64
    given["logit_bias"] = _bias(fields)
    given["stop"] = fields.texts(stop, MOST_STOP_TEXTS)
    try:
        return defaults.changed(**given)
    except UsageError as error:
        raise refusal_of(error) from None


def _bias(fields: Fields) -> dict[Any, Any] | None:
    """The biases of tokens: an object, or pairs of an id and a bias, of which false forbids the token (llama-server).

    `SamplingOptions` checks ids and numbers.
    """
    value = fields.any("logit_bias")
    if value is None or isinstance(value, dict):
        return value
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise fields.wrong("logit_bias", "an object with a bias for each token id", value)
    if not all(isinstance(token, int) for token, _ in value):
        raise fields.wrong("logit_bias", "token ids: texts are not supported", value)
    return {token: -100 if bias is False else bias for token, bias in value}
