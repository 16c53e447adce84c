"""A byte-level BPE tokenizer trained on the spot, and a model folder around it."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

START, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CORPUS = [
    "The quick brown fox jumps over the lazy dog. Hello, world! What is the capital of France? Paris.",
    "user assistant system You are helpful. **bold** `code` - item\n\n1. one 2. two naïve café Größe 你好 世界 🙂🙃",
] * 4


@functools.cache
def small_tokenizer() -> tokenizers.Tokenizer:
    """About 400 tokens: every byte, a few merges, and the chat markers."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def write_model_folder(folder: Path, template: str | None = TEMPLATE) -> Path:
    """The text files of a chat model, as they lie in a store."""
    folder.mkdir(parents=True, exist_ok=True)
    small_tokenizer().save(str(folder / "tokenizer.json"))
    config = {"bos_token": START, "eos_token": {"content": END, "special": True}}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1]}))
    (folder / "edgemoe.json").write_text("{}")
    return folder
