"""A store's tokenizer as the metadata of a GGUF: the way back of `gguf_tokenizer`.

Only byte-level BPE can be told there, and only with one of the rules for cutting text into words that have a name.
Any other is refused rather than written as one that cuts text differently.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgemoe.conversion.gguf_package import GGUFWriter, TokenType
from edgemoe.conversion.gguf_tokenizer import COMPOSED, NO_TOKENIZER, WHOLE_WORDS_FIRST, WORD_RULES
from edgemoe.errors import StoreError
from edgemoe.store.headers import parse_json
from edgemoe.store.tokenizer_file import library_tokenizer

_GPT2_WORDS = WORD_RULES["gpt-2"]
_DIGITS = (r"\p{N}",)


def write_no_tokenizer(writer: GGUFWriter) -> None:
    """The model takes and gives ids. Its vocabulary is as large as the key `vocab_size` says."""
    writer.add_tokenizer_model(NO_TOKENIZER)


def write_vocabulary(writer: GGUFWriter, folder: Path, vocabulary: int) -> None:
    """Tokenizer, chat template and way of sampling of a store's folder, for a model of so many tokens.

    Raises StoreError where the tokenizer is not one that a GGUF can hold.
    """
    path = folder / "tokenizer.json"
    try:
        data = parse_json(path.read_bytes())
        tokenizer = library_tokenizer(json.dumps(data))
        _write_tokens(writer, data, tokenizer, vocabulary)
        ids = _write_special_tokens(writer, folder, tokenizer)
        _write_surroundings(writer, tokenizer, ids)
        _write_template(writer, folder)
        _write_sampling(writer, folder)
    except StoreError:
        raise
    except Exception as problem:  # the library raises plain Exception for a tokenizer that it cannot build
        raise StoreError(f"{path}: cannot be understood ({str(problem)[:300]}).", "Copy the store again.") from problem


def _refused(what: str) -> StoreError:
    return StoreError(
        f"the tokenizer cannot be told in a GGUF: {what}.", "Write the weights alone, with --no-tokenizer."
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
    added = {token["id"]: token["special"] for token in data.get("added_tokens") or ()}
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
    """The name of the rule by which the tokenizer cuts text. Raises StoreError where it has none."""
    normalizer = data.get("normalizer")
    if normalizer and normalizer != {"type": "NFC"}:
        raise _refused(f"expected no normalizer but NFC, found {normalizer.get('type')}")
    step = data.get("pre_tokenizer") or {}
    steps = step["pretokenizers"] if step.get("type") == "Sequence" else [step]
    patterns = tuple(pattern for step in steps for pattern in _patterns(step))
    whole_first, composed = bool(data["model"].get("ignore_merges")), bool(normalizer)
    if steps[-1].get("type") == "ByteLevel":
        for name, rule in WORD_RULES.items():
            if rule == patterns and (name in WHOLE_WORDS_FIRST) == whole_first and (name in COMPOSED) == composed:
                return name
    raise _refused(f"expected a rule for words among {', '.join(WORD_RULES)}, found another")


def _patterns(step: Mapping[str, Any]) -> Iterator[str]:
    """The patterns that a step cuts by."""
    kind = step.get("type")
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
        yield step["pattern"]["Regex"]
    elif kind == "Digits" and step["individual_digits"]:
        yield from _DIGITS
    elif kind == "ByteLevel" and not step["add_prefix_space"]:
        yield from _GPT2_WORDS if step["use_regex"] else ()
    else:
        raise _refused(f"expected cuts by patterns, found {kind}")


def _write_special_tokens(writer: GGUFWriter, folder: Path, tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of the special tokens, which it also returns, by kind.

    A GGUF has room for two tokens that end an answer; llama.cpp knows further ones by their names.
    """
    config, generation = _json(folder / "tokenizer_config.json"), _json(folder / "generation_config.json")
    adders = {"bos": writer.add_bos_token_id, "unk": writer.add_unk_token_id, "pad": writer.add_pad_token_id}
    ids: dict[str, int] = {}
    for kind in ("eos", *adders):
        token = config.get(f"{kind}_token")
        text = token["content"] if isinstance(token, dict) else token
        number = None if text is None else tokenizer.token_to_id(text)
        if number is not None:
            ids[kind] = number
    for kind, add in adders.items():
        if kind in ids:
            add(ids[kind])
    listed = generation.get("eos_token_id", _json(folder / "config.json").get("eos_token_id"))
    others = listed if isinstance(listed, list) else [listed]
    ends = dict.fromkeys(number for number in (ids.get("eos"), *others) if number is not None)
    for number, add in zip(ends, (writer.add_eos_token_id, writer.add_eot_token_id), strict=False):
        add(number)
    return ids


def _write_sampling(writer: GGUFWriter, folder: Path) -> None:
    generation = _json(folder / "generation_config.json")
    adders = {
        "temperature": writer.add_sampling_temp,
        "top_k": writer.add_sampling_top_k,
        "top_p": writer.add_sampling_top_p,
        "min_p": writer.add_sampling_min_p,
    }
    for key, add in adders.items():
        if generation.get("do_sample") and generation.get(key) is not None:
            add(generation[key])
    if generation.get("repetition_penalty") is not None:
        writer.add_sampling_penalty_repeat(generation["repetition_penalty"])


def _write_surroundings(writer: GGUFWriter, tokenizer: Tokenizer, ids: Mapping[str, int]) -> None:
    """Which tokens the tokenizer puts around a text."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
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
    template = (
        file.read_text("utf-8") if file.exists() else _json(folder / "tokenizer_config.json").get("chat_template")
    )
    if template:
        writer.add_chat_template(template)


def _json(path: Path) -> dict[str, Any]:
    return parse_json(path.read_bytes()) if path.exists() else {}
