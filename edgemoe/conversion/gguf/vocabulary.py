"""Writes a store's tokenizer as the metadata of a GGUF: the inverse of `edgemoe.conversion.gguf.tokenizer`.

GGUF can only represent byte-level BPE, and only with one of the named rules for splitting text into words.
Any other tokenizer is refused, since the file would split text differently.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgemoe.conversion.gguf.package import GGUFWriter, TokenType
from edgemoe.conversion.gguf.tokenizer import ENDS_KEY, NO_TOKENIZER, SAMPLED_KEYS, SAMPLING_KEYS
from edgemoe.conversion.tokenizers.words import COMPOSED, EITHER_WAY, WHOLE_WORDS_FIRST, WORD_RULES
from edgemoe.errors import StoreError, UsageError
from edgemoe.model.sampling import GENERATION_CONFIG, end_ids
from edgemoe.store.headers import parse_json
from edgemoe.store.tokenizer_config import CONFIG_NAME, MAP_NAME, SpecialTokens, config_template
from edgemoe.store.tokenizer_file import library_tokenizer

_GPT2_WORDS = WORD_RULES["gpt-2"]
_DIGITS = (r"\p{N}",)
_WHOLE_NUMBERS = frozenset({"top_k", "penalty_last_n", "mirostat"})
"""The keys `general.sampling.*` whose values are whole numbers; others are fractions or text."""


def write_no_tokenizer(writer: GGUFWriter) -> None:
    """Write that the model has no tokenizer and takes and gives ids; the key `vocab_size` has its vocabulary size."""
    writer.add_tokenizer_model(NO_TOKENIZER)


def write_vocabulary(writer: GGUFWriter, folder: Path, vocabulary: int) -> None:
    """Write the tokenizer, chat template and sampling settings of a store's folder; `vocabulary` is the model's size.

    Raises StoreError if a GGUF cannot represent the tokenizer.
    """
    path = folder / "tokenizer.json"
    data = _json(path)
    special = SpecialTokens.of(_json(folder / CONFIG_NAME), _json(folder / MAP_NAME))
    with _library_errors(path):
        tokenizer = library_tokenizer(json.dumps(data))
        special.add_to(tokenizer)
    ids = {name.removesuffix("_token"): tokenizer.token_to_id(text) for name, text in special.names.items()}
    named = {kind: number for kind, number in ids.items() if number is not None}
    _write_tokens(writer, data, tokenizer, vocabulary)
    _write_special_tokens(writer, folder, named, vocabulary)
    with _library_errors(path):
        plain = tokenizer.encode("a", add_special_tokens=False).ids
        whole = tokenizer.encode("a", add_special_tokens=True).ids
    _write_surroundings(writer, plain, whole, named)
    _write_template(writer, folder)
    _write_sampling(writer, folder)


@contextmanager
def _library_errors(path: Path) -> Iterator[None]:
    """Turns errors of the tokenizers library (plain Exception) into a StoreError about its file."""
    try:
        yield
    except StoreError:
        raise
    except Exception as problem:
        raise StoreError(f"{path}: cannot be parsed ({str(problem)[:300]}).", "Copy the store again.") from problem


def _refused(what: str) -> StoreError:
    return StoreError(
        f"a GGUF cannot represent this tokenizer: {what}.", "Write the weights alone, with `no_tokenizer`."
    )


def _write_tokens(writer: GGUFWriter, data: Mapping[str, Any], tokenizer: Tokenizer, vocabulary: int) -> None:
    model = data["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = "SentencePiece BPE" if model.get("byte_fallback") else model.get("type")
        raise _refused(f"expected byte-level BPE, found {kind}")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise _refused(f"expected no {key}, found {model[key]!r}")
    tokens = {number: token for token, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    if max(tokens) >= vocabulary:
        raise _refused(f"expected ids below {vocabulary}, found {max(tokens)}")
    added = {number: token.special for number, token in tokenizer.get_added_tokens_decoder().items()}
    names, types = [], []
    for number in range(vocabulary):
        names.append(tokens.get(number, f"[PAD{number}]"))
        if number not in tokens:
            types.append(TokenType.UNUSED)
        elif number in added:
            types.append(TokenType.CONTROL if added[number] else TokenType.USER_DEFINED)
        else:
            types.append(TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_word_rule(data))
    writer.add_token_list(names)
    writer.add_token_types(types)
    merges = model["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])


def _word_rule(data: Mapping[str, Any]) -> str:
    """The name of the rule by which the tokenizer splits text. Raises StoreError if the rule has no name."""
    normalizer = data.get("normalizer")
    if normalizer and normalizer != {"type": "NFC"}:
        raise _refused(f"expected no normalizer but NFC, found {normalizer.get('type')}")
    step = data.get("pre_tokenizer") or {}
    steps = step["pretokenizers"] if step.get("type") == "Sequence" else [step]
    patterns = tuple(pattern for step in steps for pattern in _patterns(step))
    whole_first, composed = bool(data["model"].get("ignore_merges")), bool(normalizer)
    if steps[-1].get("type") == "ByteLevel":
        for name, rule in WORD_RULES.items():
            same_merges = (name in WHOLE_WORDS_FIRST) == whole_first or name in EITHER_WAY
            if rule == patterns and same_merges and (name in COMPOSED) == composed:
                return name
    raise _refused(f"expected a rule for words among {', '.join(WORD_RULES)}, found another")


def _patterns(step: Mapping[str, Any]) -> Iterator[str]:
    """Yield the patterns by which a pre-tokenizer step splits text."""
    kind = step.get("type")
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
        yield step["pattern"]["Regex"]
    elif kind == "Digits" and step["individual_digits"]:
        yield from _DIGITS
    elif kind == "ByteLevel" and not step["add_prefix_space"]:
        yield from _GPT2_WORDS if step["use_regex"] else ()
    else:
        raise _refused(f"expected cuts by patterns, found {kind}")


def _write_special_tokens(writer: GGUFWriter, folder: Path, named: Mapping[str, int], vocabulary: int) -> None:
    """Write the ids of the special tokens.

    llama.cpp has a key for each of three tokens that end an answer, and recognises further ones by their names. The
    list of all of them is written for edgemoe and other programs.
    """
    for kind, add in (
        ("bos", writer.add_bos_token_id),
        ("unk", writer.add_unk_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        if kind in named:
            add(named[kind])
    listed = [number for name in (GENERATION_CONFIG, "config.json") for number in _ends(folder / name)]
    named_end = [named["eos"]] if "eos" in named else []
    ends = list(dict.fromkeys([*named_end, *(number for number in listed if number < vocabulary)]))
    adders = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for number, add in zip(ends, adders, strict=False):
        add(number)
    if ends:
        writer.add_array(ENDS_KEY, ends)


def _ends(path: Path) -> tuple[int, ...]:
    """The ids that a file lists as ends of an answer. Raises StoreError."""
    try:
        return end_ids(_json(path))
    except UsageError as problem:
        raise StoreError(f"{path}: {problem.message}", "Repair it, then run edgemoe update STORE.") from None


def _write_sampling(writer: GGUFWriter, folder: Path) -> None:
    """Write the author's sampling settings as plain keys: older versions of `gguf` have no methods for them."""
    generation = _json(folder / GENERATION_CONFIG)
    for key, name in SAMPLING_KEYS.items():
        value = generation.get(name)
        if isinstance(value, bool) or (key in SAMPLED_KEYS and not generation.get("do_sample")):
            continue
        full_key = f"general.sampling.{key}"
        if isinstance(value, str):
            writer.add_string(full_key, value)
        elif isinstance(value, (int, float)):
            if key in _WHOLE_NUMBERS:
                writer.add_int32(full_key, int(value))
            else:
                writer.add_float32(full_key, value)


def _write_surroundings(writer: GGUFWriter, plain: list[int], whole: list[int], ids: Mapping[str, int]) -> None:
    """Write which tokens the tokenizer adds around a text: those by which `whole` differs from `plain`."""
    bos, eos = [ids["bos"]] if "bos" in ids else [], [ids["eos"]] if "eos" in ids else []
    for adds_bos in (False, True):
        for adds_eos in (False, True):
            if whole == bos * adds_bos + plain + eos * adds_eos:
                writer.add_add_bos_token(adds_bos)
                writer.add_add_eos_token(adds_eos)
                return
    raise _refused("it puts other tokens around a text than those that begin and end one")


def _write_template(writer: GGUFWriter, folder: Path) -> None:
    file = folder / "chat_template.jinja"
    config = folder / CONFIG_NAME
    template = file.read_text("utf-8") if file.exists() else config_template(_json(config), config)
    if template:
        writer.add_chat_template(template)


def _json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no such file. Raises StoreError."""
    if not path.exists():
        return {}
    try:
        value = parse_json(path.read_bytes())
    except ValueError as problem:
        raise StoreError(f"{path}: cannot be parsed ({str(problem)[:300]}).", "Copy the store again.") from problem
    if not isinstance(value, dict):
        raise StoreError(f"{path}: expected a JSON object, found {type(value).__name__}.", "Copy the store again.")
    return value
