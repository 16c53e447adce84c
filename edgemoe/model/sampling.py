"""Sampling settings: those of edgemoe, and those that a model publishes in generation_config.json.

Names, meaning and order are those of transformers, so that a model's published settings mean the same here.
`session/processors.py` and `session/sampler.py` carry them out.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from edgemoe.errors import UsageError

GENERATION_CONFIG = "generation_config.json"
CONFIG_LIMIT_BYTES = 16 << 20
"""The largest generation_config.json that is read."""

TOP_K_UNSAID = 50
"""The top_k of transformers for a file that asks for sampling and does not set it (GenerationConfig)."""

LARGEST_ID = 2**31 - 1
"""The largest id of a token; no vocabulary has more tokens."""

PUBLISHED = (
    "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids",
    "min_length", "min_new_tokens", "suppress_tokens", "begin_suppress_tokens",
)  # fmt: skip
"""Settings with the same name in a file and in SamplingOptions, whose values are copied unchanged."""

NOT_HONOURED: Mapping[str, Any] = {
    "constraints": None, "diversity_penalty": 0, "dola_layers": None, "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "exponential_decay_length_penalty": None,
    "force_words_ids": None, "forced_bos_token_id": None, "forced_decoder_ids": None, "forced_eos_token_id": None,
    "frequency_penalty": 0, "guidance_scale": 1, "max_time": None, "mirostat": 0, "num_beam_groups": 1, "num_beams": 1,
    "num_return_sequences": 1, "penalty_alpha": 0, "penalty_last_n": -1, "presence_penalty": 0,
    "sampling_sequence": None, "sequence_bias": None, "top_h": 1, "watermarking_config": None, "xtc_probability": 0,
}  # fmt: skip
"""Settings of a file that would change answers and are not supported, with the value at which each has no effect.

Some are unknown to transformers, which ignores them silently: mirostat, penalty_last_n, sampling_sequence and
xtc_probability come from GGUF files, presence_penalty and frequency_penalty from other engines.
"""


@dataclass(frozen=True)
class SamplingOptions:
    """Settings by which tokens are chosen. Raises UsageError for values out of range. Sequences become tuples.

    temperature: 0 takes the likeliest token (the lowest id on a tie); top_k, top_p, min_p, typical_p have no effect.
    top_k: keep this many of the likeliest tokens; 0 (or -1) keeps all.
    top_p: keep the likeliest that together reach this probability; 1 keeps all.
    min_p: keep those at least this fraction as likely as the likeliest; 0 keeps all.
    seed: the same seed gives the same tokens; None draws a new one.
    typical_p: keep the tokens nearest to the expected surprise that together reach this probability; 1 keeps all.
    repetition_penalty: positive logits of all tokens of prompt and answer are divided by it, others multiplied.
    presence_penalty: taken off the logit of each token that the answer has already (OpenAI's definition).
    frequency_penalty: taken off the logit of a token once for each time that the answer has it (OpenAI's definition).
    no_repeat_ngram_size: no run of this many tokens comes twice in prompt and answer; 0 is off.
    bad_words_ids: runs of tokens that are never completed.
    min_length, min_new_tokens: no end before prompt and answer, or the answer, have this many tokens.
    suppress_tokens, begin_suppress_tokens: tokens that never come, or do not begin an answer.
    stop: texts that end the answer where they appear; the answer does not include them.
    logit_bias: what is added to the logits of some tokens, by id, before all else; it is kept as pairs, by rising id.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: Sequence[Sequence[int]] = ()
    min_length: int = 0
    min_new_tokens: int = 0
    suppress_tokens: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()
    stop: Sequence[str] = ()
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = ()

    def __post_init__(self) -> None:
        check = self._check
        check("temperature", lambda x: 0.0 <= x <= 100.0, "0 (greedy) to 100")
        check("top_k", lambda x: x >= -1, "0 (off) or more", whole=True)
        check("top_p", lambda x: 0.0 < x <= 1.0, "above 0, up to 1 (off)")
        check("min_p", lambda x: 0.0 <= x <= 1.0, "0 (off) to 1")
        check("typical_p", lambda x: 0.0 < x <= 1.0, "above 0, up to 1 (off)")
        check("repetition_penalty", lambda x: 0.0 < x <= 100.0, "above 0, up to 100 (1 is off)")
        check("presence_penalty", lambda x: -2.0 <= x <= 2.0, "-2 to 2 (0 is off)")
        check("frequency_penalty", lambda x: -2.0 <= x <= 2.0, "-2 to 2 (0 is off)")
        for name in ("no_repeat_ngram_size", "min_length", "min_new_tokens"):
            check(name, lambda x: x >= 0, "0 (off) or more", whole=True)
        if self.seed is not None:
            check("seed", lambda x: 0 <= x < 2**64, "0 to 2^64 - 1", whole=True)
        # frozen: the one place that turns lists into tuples, and -1 into its meaning
        set_field = object.__setattr__
        set_field(self, "top_k", max(self.top_k, 0))
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            set_field(self, name, _token_ids(name, getattr(self, name)))
        bad_words = _sequence("bad_words_ids", self.bad_words_ids, "a list of lists of token ids")
        set_field(self, "bad_words_ids", tuple(_token_ids("bad_words_ids", word, least=1) for word in bad_words))
        set_field(self, "stop", _texts("stop", self.stop))
        set_field(self, "logit_bias", _biases(self.logit_bias))

    def _check(self, name: str, valid: Callable[[Any], bool], expected: str, whole: bool = False) -> None:
        value = getattr(self, name)
        kind = numbers.Integral if whole else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind) or not valid(value):  # NaN is never valid
            raise _wrong(name, expected, value)

    def changed(self, **given: Any) -> SamplingOptions:
        """These options, except for those given that are not None."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def of_answer(self, number: int) -> SamplingOptions:
        """The options of one of several answers to a prompt: the first has this seed, each further one the next."""
        return self if self.seed is None else replace(self, seed=(self.seed + number) % 2**64)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: the options by name."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


@dataclass(frozen=True)
class GenerationDefaults:
    """The generation settings that a model publishes; greedy and without limits where it publishes none."""

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    max_tokens: int | None = None
    """The default limit of an answer, in tokens."""
    not_honoured: Mapping[str, Any] = field(default_factory=dict)
    """Settings that would change answers and that edgemoe does not support, with their values in the file."""


def read_generation_config(config: Mapping[str, Any], context_length: int | None = None) -> GenerationDefaults:
    """The settings of a generation_config.json. Raises UsageError, naming the setting, for an unusable value.

    Settings that only affect a sequence longer than `context_length` are left out.
    """
    end_ids(config)
    given = {name: config[name] for name in PUBLISHED if config.get(name) is not None}
    if "min_new_tokens" in given:
        given.pop("min_length", None)  # transformers replaces it
    texts = config.get("stop_strings")
    if texts is not None:
        given["stop"] = _texts("stop_strings", texts)
    if config.get("top_k", 0) is None:
        given["top_k"] = 0  # as in transformers 4, where only a missing top_k means the default
    do_sample = config.get("do_sample")
    if do_sample is not None and not isinstance(do_sample, bool):
        raise _wrong("do_sample", "true or false", do_sample)
    if do_sample:
        given.setdefault("top_k", TOP_K_UNSAID)
        given["temperature"] = 1.0 if config.get("temperature") is None else config["temperature"]
    max_tokens = config.get("max_new_tokens")
    if max_tokens is not None and (isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1):
        raise _wrong("max_new_tokens", "1 or more", max_tokens)
    not_honoured = {name: config[name] for name, off in NOT_HONOURED.items() if _acts(config.get(name), off)}
    max_length = config.get("max_length")
    if max_tokens is None and isinstance(max_length, int) and context_length and max_length < context_length:
        not_honoured["max_length"] = max_length
    return GenerationDefaults(SamplingOptions(**given), max_tokens, not_honoured)


def _acts(value: Any, off: Any) -> bool:
    return value is not None and value is not False and value != off and value not in ([], {})


def end_ids(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids in `eos_token_id` of a generation_config.json or config.json, and of the config of its text model.

    The value is one id or a list. Each id is returned once, in the order of the file.

    Raises UsageError where the value is neither an id nor a list of ids.
    """
    ids: list[int] = []
    for part in (config, config.get("text_config")):
        value = part.get("eos_token_id") if isinstance(part, Mapping) else None
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(entry, bool) or not isinstance(entry, int) for entry in listed):
            raise _wrong("eos_token_id", "a token id or a list of them", value)
        ids += [entry for entry in listed if 0 <= entry <= LARGEST_ID]  # in some files -1 means no end token
    return tuple(dict.fromkeys(ids))


def _token_ids(name: str, value: Any, least: int = 0) -> tuple[int, ...]:
    ids = _sequence(name, value, "a list of token ids")
    for entry in ids:
        if isinstance(entry, bool) or not isinstance(entry, numbers.Integral) or not 0 <= int(entry) <= LARGEST_ID:
            raise _wrong(name, "token ids", entry)
    if len(ids) < least:
        raise _wrong(name, "at least one token id in each list", value)
    return ids


def _biases(value: Any) -> tuple[tuple[int, float], ...]:
    name, expected = "logit_bias", "a bias from -100 to 100 for each token id"
    pairs = list(value.items()) if isinstance(value, Mapping) else _sequence(name, value, expected)
    found: dict[int, float] = {}
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise _wrong(name, expected, pair)
        token, bias = pair
        if isinstance(token, str) and token.isascii() and token.isdigit():  # keys of JSON are texts
            token = int(token)
        if isinstance(bias, bool) or not isinstance(bias, numbers.Real) or not -100.0 <= float(bias) <= 100.0:
            raise _wrong(name, expected, bias)
        found[_token_ids(name, [token])[0]] = float(bias)
    return tuple(sorted(found.items()))


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else _sequence(name, value, "texts")
    for entry in texts:
        if not isinstance(entry, str) or not entry:
            raise _wrong(name, "texts of at least one character", entry)
    return texts


def _sequence(name: str, value: Any, expected: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong(name, expected, value)
    return tuple(value)


def _wrong(name: str, expected: str, value: Any) -> UsageError:
    return UsageError(f"{name}: expected {expected}, found {str(value)[:80] or 'nothing'}.", f"Leave {name} out.")
