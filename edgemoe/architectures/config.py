"""Reads a checkpoint's `config.json` key by key, so that no key and no value is silently ignored.

Every key is either read by the family's module, or listed in `HARMLESS` with the reason, or required to have one of
the values in `FIXED`; any other key is refused by name. A null value is treated as an absent key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgemoe.errors import SourceError
from edgemoe.model.plain import SMALLEST_NUMBER

DAMAGED = "Was config.json changed by hand or cut short? Download the checkpoint again."
UNSUPPORTED = "edgemoe cannot run this checkpoint faithfully; choose a variant of the model without this setting."

LARGEST_WIDTH = 1 << 20
LARGEST_VOCABULARY = 1 << 24
LARGEST_POSITIONS = 1 << 30
LARGEST_LAYERS = 1 << 12
LARGEST_EXPERTS = 1 << 16
LARGEST_TOTAL_EXPERTS = 1 << 16
"""Limit on the experts of all layers together: each adds three names to the tables, so an absurd count is refused."""

HARMLESS: dict[str, str] = {
    **dict.fromkeys(
        (
            "attention_dropout",
            "attn_pdrop",
            "aux_loss_alpha",
            "embd_pdrop",
            "embedding_dropout",
            "hidden_dropout",
            "initializer_range",
            "mtp_loss_scaling_factor",
            "output_dropout",
            "output_router_logits",
            "resid_pdrop",
            "router_aux_loss_coef",
            "router_jitter_noise",
            "router_z_loss_coef",
            "seq_aux",
            "use_bfloat16",
        ),
        "acts in training only",
    ),
    **dict.fromkeys(
        (
            "bos_token_id",
            "decoder_start_token_id",
            "eod_token_id",
            "eos_token_id",
            "pad_token_id",
            "sep_token_id",
            "unk_token_id",
        ),
        "says where text begins and ends; logits do not depend on it",
    ),
    **dict.fromkeys(
        (
            "bad_words_ids",
            "begin_suppress_tokens",
            "diversity_penalty",
            "do_sample",
            "early_stopping",
            "encoder_no_repeat_ngram_size",
            "exponential_decay_length_penalty",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "length_penalty",
            "max_length",
            "min_length",
            "no_repeat_ngram_size",
            "num_beam_groups",
            "num_beams",
            "num_return_sequences",
            "output_scores",
            "remove_invalid_values",
            "repetition_penalty",
            "suppress_tokens",
            "temperature",
            "top_k",
            "top_p",
            "typical_p",
        ),
        "a sampling default of older checkpoints; logits do not depend on it",
    ),
    **dict.fromkeys(
        (
            "_attn_implementation",
            "_attn_implementation_autoset",
            "_commit_hash",
            "_experts_implementation",
            "_flash_attn_2_enabled",
            "_name_or_path",
            "architectures",
            "dtype",
            "attn_implementation",
            "finetuning_task",
            "gradient_checkpointing",
            "id2label",
            "is_llama_config",
            "is_decoder",
            "label2id",
            "max_sequence_length",
            "name_or_path",
            "neftune_noise_alpha",
            "num_labels",
            "output_attentions",
            "output_hidden_states",
            "prefix",
            "problem_type",
            "return_dict",
            "return_dict_in_generate",
            "task_specific_params",
            "tf_legacy_loss",
            "tie_last_hidden_states",
            "tokenizer_class",
            "torch_dtype",
            "torchscript",
            "transformers.js_config",
            "transformers_version",
            "unsloth_fixed",
            "unsloth_version",
            "use_cache",
        ),
        "describes the file or how another program runs it",
    ),
    "chunk_size_feed_forward": "cuts the work of another program; results are the same",
    "pretraining_tp": "cuts matrix products of another program; results are the same",
    "tie_encoder_decoder": "there is no encoder",
    "cross_attention_hidden_size": "there is no encoder",
}

FIXED: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "auto_map": ({},),
    "compression_config": ({},),
    "is_encoder_decoder": (False,),
    "mlp_bias": (False,),
    "per_layer_config": ({},),
    "pruned_heads": ({},),
    "qkv_bias": (False,),
    "quantization": ({},),
    "quantization_config": ({},),
    "rope_interleaved": (False,),
    "shared_expert_intermediate_size": (0,),
    "sparse_attention_config": ({},),
}
"""Keys that change what a model computes, each with the values that leave the computation unchanged."""


QUANTISED = ("quantization_config", "quantization", "compression_config")
"""Keys of `FIXED` by which a checkpoint says how its weights are written, which conversion reads."""


class ConfigReader:
    """One `config.json`, with a record of which keys have been read. Every method raises SourceError."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._seen: set[str] = {"model_type"}
        self._inner: list[ConfigReader] = []

    def inner(self, name: str) -> ConfigReader | None:
        """A reader of the object under a key, which `finish` finishes too; None if the key is absent or null."""
        value = self.value(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise _wrong(name, "an object", value)
        self._inner.append(ConfigReader(value))
        return self._inner[-1]

    def text_config(self, *model_types: str) -> ConfigReader | None:
        """A reader of the config of a model's text part, which is of one of these types if it says so; see `inner`."""
        text = self.inner("text_config")
        found = None if text is None else text.value("model_type")
        if found is not None and found not in model_types:
            raise unsupported("text_config.model_type", found, " or ".join(map(show, model_types)))
        return text

    def value(self, name: str) -> Any:
        """The raw value; None if the key is absent or null."""
        self._seen.add(name)
        return self._config.get(name)

    def has(self, name: str) -> bool:
        """Whether the key is there, though its value may be null, where that is not the same as an absent key."""
        return name in self._config

    def integer(self, *names: str, maximum: int, minimum: int = 1, default: int | None = None) -> int:
        """A whole number under one of several synonymous keys; required unless a default is given."""
        name, value = self._one_of(names)
        if value is None:
            if default is None:
                raise SourceError(f"config.json: {names[0]} is missing; expected a whole number.", DAMAGED)
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise _wrong(name, f"a whole number from {minimum} to {maximum}", value)
        return value

    def _one_of(self, names: Sequence[str]) -> tuple[str, Any]:
        """The value under one of several synonymous keys, and which it is; null where all of them are absent."""
        present = {name: value for name in names if (value := self.value(name)) is not None}
        if len(set(map(show, present.values()))) > 1:
            pairs = " and ".join(f"{name} is {show(value)}" for name, value in present.items())
            raise SourceError(f"config.json: {pairs}; they are names of one thing and must agree.", DAMAGED)
        return next(iter(present.items()), (names[0], None))

    def number(
        self, name: str, default: float | None = None, *synonyms: str, above: float = 0.0, maximum: float = 1e9
    ) -> float:
        """A finite number with `above < number <= maximum` under one of several synonymous keys.

        It is required unless a default is given.
        """
        found, value = self._one_of((name, *synonyms))
        return checked_number(found, value, default, above=above, maximum=maximum)

    def flag(self, name: str, default: bool, *synonyms: str) -> bool:
        """True or false under one of several synonymous keys."""
        found, value = self._one_of((name, *synonyms))
        if value is None:
            return default
        if not isinstance(value, bool):
            raise _wrong(found, "true or false", value)
        return value

    def sequence(self, name: str) -> Sequence[Any]:
        """A list; empty if the key is absent or null."""
        value = self.value(name)
        if value is None:
            return ()
        if not isinstance(value, (list, tuple)):
            raise _wrong(name, "a list", value)
        return value

    def skip(self, *names: str) -> None:
        """Take note of keys that change nothing in the family that calls this."""
        self._seen.update(names)

    def require(self, name: str, *allowed: Any, default: Any = None) -> None:
        """Refuse any value except the implemented ones. `default` is the meaning of an absent key."""
        value = self.value(name)
        value = default if value is None else value
        if value is not None and not any(type(value) is type(a) and value == a for a in allowed):
            wanted = " or ".join(map(show, allowed)) if allowed else "null"
            raise unsupported(name, value, wanted)

    def finish(self) -> None:
        """Refuse every key that was not read and that is not known to be harmless."""
        for reader in self._inner:
            reader.finish()
        self.skip(*(name for name in QUANTISED if isinstance(self._config.get(name), Mapping)))
        for name, allowed in FIXED.items():
            if name not in self._seen:
                self.require(name, *allowed)
        for name, value in self._config.items():
            if value is not None and name not in self._seen and name not in HARMLESS:
                raise SourceError(
                    f"config.json: {show(name)} is {show(value)}; edgemoe does not know this key and will not "
                    "ignore what may change the model.",
                    UNSUPPORTED,
                )


def checked_number(
    name: str, value: Any, default: float | None = None, *, above: float = 0.0, maximum: float = 1e9
) -> float:
    """A finite number with `above < number <= maximum`, and no smaller than a store can hold. Raises SourceError."""
    if value is None and default is not None:
        return default
    if value is None:
        raise SourceError(f"config.json: {name} is missing; expected a number.", DAMAGED)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Compared before it is converted: a whole number may be too large for a float.
    fits = is_number and above < value <= maximum and value >= SMALLEST_NUMBER and math.isfinite(value)
    if not fits:
        least = f"above {above:g}" if above >= SMALLEST_NUMBER else f"of at least {SMALLEST_NUMBER:g}"
        raise _wrong(name, f"a number {least} and at most {maximum:g}", value)
    return float(value)


def unsupported(name: str, value: Any, implemented: str) -> SourceError:
    """The error for a valid value that edgemoe does not implement."""
    return SourceError(f"config.json: {name} is {show(value)}; edgemoe implements {implemented} only.", UNSUPPORTED)


def _wrong(name: str, expected: str, value: Any) -> SourceError:
    return SourceError(f"config.json: {name} is {show(value)}; expected {expected}.", DAMAGED)


def show(value: Any) -> str:
    """Format a value for a message: the result is short, however long or deeply nested the value is."""
    if isinstance(value, (Mapping, list, tuple)):
        kind = "an object" if isinstance(value, Mapping) else "a list"
        return f"{kind} of {len(value)}" if value else f"an empty {kind.split()[1]}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
