"""A tokenizer of single characters, whose 96 tokens suit the small golden checkpoints."""

from __future__ import annotations

import json
import string
from pathlib import Path

import tokenizers
from tokenizers import decoders, models

TEMPLATE = "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] + '\n' }}{% endfor %}a:"


def write_letters_tokenizer(folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json into a checkpoint's folder."""
    characters = [*string.printable[:95], "\n"]
    model = models.BPE(vocab={character: number for number, character in enumerate(characters)}, merges=[])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
