"""Settings of the server itself, and settings of an answer that clients send."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgemoe.errors import UsageError
from edgemoe.model.sampling import SamplingOptions
from edgemoe.server.fields import Fields
from edgemoe.server.refusals import refusal_of
from edgemoe.session.constraint import Constraint
from edgemoe.session.tokenizer import Tokenizer
from edgemoe.session.tools import ToolPrompt

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MOST_CHOICES = 128
MOST_STOP_TEXTS = 64
MOST_TOP_LOGPROBS = 20


@dataclass(frozen=True)
class ServerSettings:
    """Where and for whom the server answers. Raises UsageError for settings that would not be safe."""

    host: str = "127.0.0.1"
    """One address, or several with commas between them."""
    port: int = 8080
    """0 takes a free one."""
    api_keys: Sequence[str] = field(default=(), repr=False)
    """Any of them opens all paths but /health; none are needed on loopback."""
    origins: Sequence[str] = ()
    """Origins of web pages, other than the server's own, that may ask; `localhost` stands for all of this machine, and
    `*`, which needs a key, for all."""
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
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the chat template, where a request does not set them."""
    seed: int | None = None
    """The seed of answers whose request names none; None draws one for each."""

    @property
    def hosts(self) -> list[str]:
        """The addresses to listen at."""
        return [host.strip() for host in self.host.split(",")]

    @property
    def is_local(self) -> bool:
        """Whether this machine alone can ask."""
        return all(host in LOOPBACK for host in self.hosts)

    def __post_init__(self) -> None:
        if not self.is_local and not self.api_keys:
            raise UsageError(
                f"`host={self.host}`: other machines could use this server: expected an API key beside that address.",
                "Give a key (`api_key_file`, or the variable EDGEMOE_API_KEY), or leave the address out.",
            )
        if "*" in self.origins and not self.api_keys:
            raise UsageError(
                "`origins`: pages of all sites could use this server: expected an API key beside *.",
                "Give a key (`api_key_file`, or the variable EDGEMOE_API_KEY), or name the origins.",
            )
        if not 0 <= self.port < 1 << 16:
            raise UsageError(f"`port`: expected 0 to 65535, found {self.port}.", "Leave it out for 8080.")
        if self.queue < 0:
            raise UsageError(f"`queue`: expected 0 or more, found {self.queue}.", "Leave it out for 32.")
        if self.seed is not None and not 0 <= self.seed < 1 << 64:
            raise UsageError(f"`seed`: expected 0 to 2^64 - 1, found {self.seed}.", "Leave it out for a new one each.")
        for key in self.api_keys:
            if not key.strip() or not key.isascii() or not key.isprintable():
                raise UsageError(
                    "an API key: expected printable ASCII characters, found another text.", "Choose another key."
                )


def server_url(host: str, port: int) -> str:
    """The address of a server, without a path."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@dataclass(frozen=True)
class AnswerSettings:
    """The wishes of a request beside its prompt."""

    sampling: SamplingOptions
    max_tokens: int | None
    choices: int = 1
    top_logprobs: int | None = None
    stream: bool = False
    chat: ToolPrompt | None = None
    """The prompt of a conversation, with its tools and its form."""
    constraint: Constraint | None = None
    """The structure of the answer to a prompt that is no conversation."""
    request_id: str = ""
    thought_tokens: int | None = None
    """The most tokens of a thought, which is ended then; None for any number."""
    timed: bool = False
    """Whether each token of a stream comes with the times up to it."""


def sampling_of(
    fields: Fields, defaults: SamplingOptions, stop: str = "stop", tokenizer: Tokenizer | None = None
) -> SamplingOptions:
    """The sampling that a request asks for; `defaults` where it says nothing. `stop`: the field of stop texts.

    With a `tokenizer`, biases may be those of texts, and the model's own end of an answer can be forbidden.

    Raises RefusalError, naming the field.
    """
    given: dict[str, Any] = {
        name: fields.number(name)
        for name in ("temperature", "top_p", "min_p", "typical_p", "presence_penalty", "frequency_penalty")
    }
    given["repetition_penalty"] = fields.number("repetition_penalty") or fields.number("repeat_penalty")
    given["top_k"] = fields.whole("top_k", -1)
    seed = fields.whole("seed", -(2**63), 2**64 - 1)
    if seed is not None and seed != -1:
        given["seed"] = seed % 2**64
    elif defaults.seed is None or seed == -1:
        given["seed"] = secrets.randbits(53)
    given["logit_bias"] = _bias(fields, tokenizer)
    if tokenizer is not None and fields.flag("ignore_eos"):
        given["suppress_tokens"] = (*defaults.suppress_tokens, *sorted(tokenizer.stop_ids))
    given["stop"] = fields.texts(stop, MOST_STOP_TEXTS)
    try:
        return defaults.changed(**given)
    except UsageError as error:
        raise refusal_of(error) from None


def _bias(fields: Fields, tokenizer: Tokenizer | None) -> list[tuple[Any, Any]] | None:
    """The biases of tokens: an object, or pairs of a token and a bias, of which false forbids the token (llama-server).

    A token is an id, or a text, which stands for all of its tokens. `SamplingOptions` checks ids and numbers.
    """
    value = fields.any("logit_bias")
    if value is None:
        return None
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise fields.wrong("logit_bias", "an object with a bias for each token id", value)
    found: list[tuple[Any, Any]] = []
    for token, bias in pairs:
        tokens = [token]
        if isinstance(token, str) and not (token.isascii() and token.isdigit()):
            if tokenizer is None:
                raise fields.wrong("logit_bias", "token ids", value)
            tokens = tokenizer.encode(token)
        found += [(one, -100 if bias is False else bias) for one in tokens]
    return found
