"""Checks that the text files of a model folder can be used, before they become part of a store."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from edgemoe.errors import EdgemoeError, StoreError, UsageError
from edgemoe.model.sampling import CONFIG_LIMIT_BYTES, read_generation_config
from edgemoe.session.model_files import read_json_object
from edgemoe.session.template import ChatTemplate
from edgemoe.session.tokenizer import TOKENIZER_NAME, Tokenizer, has_tokenizer, load_library_tokenizer

TEMPLATE_NAMES = {"chat_template.jinja", "tokenizer_config.json"}
END_NAMES = {
    "generation_config.json",
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    TOKENIZER_NAME,
}


def require_usable(folder: Path, names: Set[str], vocabulary: int) -> list[str]:
    """Check the new files (`names`) of a model folder against a model of `vocabulary` tokens.

    Returns remarks on oddities that may be intended. Raises StoreError for an unusable file. All these files are
    optional: a model without a tokenizer takes and gives token ids, one without a template continues texts.
    """
    remarks: list[str] = []
    tokenizer = load_library_tokenizer(folder) if has_tokenizer(folder) else None
    if tokenizer is not None and TOKENIZER_NAME in names:
        largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        if largest >= vocabulary:
            raise StoreError(
                f"{TOKENIZER_NAME}: expected ids below {vocabulary} (the model's vocabulary), found {largest}.",
                "Use the tokenizer of the model that was converted.",
            )
    if END_NAMES & names:
        remarks += Tokenizer.around(tokenizer, folder, vocabulary).remarks
    if "generation_config.json" in names:
        _require_sampling(folder / "generation_config.json")
    if TEMPLATE_NAMES & names and tokenizer is not None:
        remarks += _try_template(folder)
    return remarks


def _require_sampling(path: Path) -> None:
    try:
        read_generation_config(read_json_object(path, required=False, limit_bytes=CONFIG_LIMIT_BYTES))
    except UsageError as error:
        raise StoreError(f"{path}: {error.message}", "Repair it; without it decoding is greedy.") from None


def _try_template(folder: Path) -> list[str]:
    """A remark where the chat template refuses the shortest conversation. Raises StoreError where it cannot be used."""
    named = read_json_object(folder / "tokenizer_config.json", required=False).get("chat_template")
    if named is None and not (folder / "chat_template.jinja").exists():
        return ["there is no chat template: the model can continue texts, but not chat."]
    try:
        ChatTemplate.load(folder).render([{"role": "user", "content": "Hello"}])
    except StoreError:
        raise
    except EdgemoeError as error:
        return [error.message]
    return []
