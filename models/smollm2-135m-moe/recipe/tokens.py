"""The tokenizer and the chat template, made from the GGUF's own vocabulary and merges.

The GGUF names its pre-tokenizer ``smollm``: every digit stands alone, then byte-level BPE with the
usual GPT-2 splitting. `conversation` renders a chat as the template does, with its default system
prompt, and marks which tokens the assistant wrote.
"""

from __future__ import annotations

import json
from pathlib import Path

from gguf_source import DenseSource
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL = 3  # GGUF token type of a special token
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def make_tokenizer(source: DenseSource) -> Tokenizer:
    """A byte-level BPE tokenizer equal to the GGUF's."""
    if source.field("tokenizer.ggml.pre") != "smollm":
        raise ValueError("this recipe knows the pre-tokenizer smollm only")
    words = source.field("tokenizer.ggml.tokens")
    kinds = source.field("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in source.field("tokenizer.ggml.merges")]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [w for w, kind in zip(words, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in special])
    return tokenizer


def write_tokenizer(source: DenseSource, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json, special tokens and the generation defaults."""
    tokenizer = make_tokenizer(source)
    tokenizer.save(str(folder / "tokenizer.json"))
    words = source.field("tokenizer.ggml.tokens")
    names = {
        "bos_token": words[source.field("tokenizer.ggml.bos_token_id")],
        "eos_token": words[source.field("tokenizer.ggml.eos_token_id")],
        "unk_token": words[source.field("tokenizer.ggml.unknown_token_id")],
        "pad_token": words[source.field("tokenizer.ggml.padding_token_id")],
    }
    settings = {
        **names,
        "add_prefix_space": False,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": source.config.context,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": source.field("tokenizer.chat_template"),
    }
    generation = {
        "bos_token_id": source.field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": source.field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": source.field("tokenizer.ggml.padding_token_id"),
    }
    for name, value in (
        ("tokenizer_config.json", settings),
        ("special_tokens_map.json", names),
        ("generation_config.json", generation),
    ):
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def chat_text(messages: list[tuple[str, str]], open_answer: bool) -> list[tuple[str, bool]]:
    """The template's rendering in pieces ``(text, written by the assistant)``."""
    pieces = []
    if not messages or messages[0][0] != "system":
        pieces.append((f"<|im_start|>system\n{SYSTEM}<|im_end|>\n", False))
    for role, content in messages:
        if role == "assistant":
            pieces.append(("<|im_start|>assistant\n", False))
            pieces.append((f"{content}<|im_end|>", True))
            pieces.append(("\n", False))
        else:
            pieces.append((f"<|im_start|>{role}\n{content}<|im_end|>\n", False))
    if open_answer:
        pieces.append(("<|im_start|>assistant\n", False))
    return pieces


def conversation(
    tokenizer: Tokenizer, messages: list[tuple[str, str]], open_answer: bool = False
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and which of them the assistant wrote."""
    ids: list[int] = []
    written: list[bool] = []
    for text, by_assistant in chat_text(messages, open_answer):
        part = tokenizer.encode(text, add_special_tokens=False).ids
        ids += part
        written += [by_assistant] * len(part)
    return ids, written
