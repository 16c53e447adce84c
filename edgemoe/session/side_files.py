"""Checks that the text files of a model folder can be used, before they become part of a store."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from edgemoe.errors import EdgemoeError, StoreError, UsageError
from edgemoe.model.sampling import CONFIG_LIMIT_BYTES, read_generation_config
from edgemoe.session.model_files import read_json_object
from edgemoe.session.template import ChatTemplate
from edgemoe.session.tokenizer import TOKENIZER_NAME, has_tokenizer, load_library_tokenizer, stop_ids

TEMPLATE_NAMES = {"chat_template.jinja", "tokenizer_config.json"}
END_NAMES = {"generation_config.json", "config.json", "tokenizer_config.json", TOKENIZER_NAME}


def require_usable(folder: Path, names: Set[str], vocabulary: int) -> list[str]:
    """Check the new files (`names`) of a model folder against a model of `vocabulary` tokens.

    Returns remarks on oddities that may be intended. Raises StoreError for an unusable file. All these files are
    optional: a model without a tokenizer takes and gives token ids, one without a template continues texts.
    """
    remarks = []
    tokenizer = load_library_tokenizer(folder) if has_tokenizer(folder) else None
    if tokenizer is not None and TOKENIZER_NAME in names:
        largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        _require_ids(TOKENIZER_NAME, largest, vocabulary, "Take the tokenizer of the model that was converted.")
    if END_NAMES & names:
        largest = max(stop_ids(folder, tokenizer), default=0)
        _require_ids("eos_token_id", largest, vocabulary, "Take the files of the model that was converted.")
    if "special_tokens_map.json" in names:
        read_json_object(folder / "special_tokens_map.json", required=False)
    if "generation_config.json" in names:
        _require_sampling(folder / "generation_config.json")
    if TEMPLATE_NAMES & names and tokenizer is not None:
        remarks += _try_template(folder)
    return remarks


def _require_ids(what: str, largest: int, vocabulary: int, way_out: str) -> None:
    if largest >= vocabulary:
        raise StoreError(f"{what}: expected ids below {vocabulary} (the model's vocabulary), found {largest}.", way_out)


def _require_sampling(path: Path) -> None:
    try:
        read_generation_config(read_json_object(path, required=False, limit_bytes=CONFIG_LIMIT_BYTES))
    except UsageError as error:
        raise StoreError(f"{path}: {error.message}", "Mend it; without it decoding is greedy.") from None


def _try_template(folder: Path) -> list[str]:
    """A remark where the chat template refuses the shortest conversation. Raises StoreError where it cannot be used."""
    named = read_json_object(folder / "tokenizer_config.json", required=False).get("chat_template")
    if named is None and not (folder / "chat_template.jinja").exists():
        return ["there is no chat template: the model continues texts, and does not chat."]
    try:
        ChatTemplate.load(folder).render([{"role": "user", "content": "Hello"}])
    except StoreError:
        raise
    except EdgemoeError as error:
        return [error.message]
    return []
