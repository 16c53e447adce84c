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


MARKERS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
TOOL_TEMPLATE = """{% if tools %}<|im_start|>system
{{ tools | tojson }}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.reasoning_content %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def write_tool_tokenizer(folder: Path) -> int:
    """Writes the same with the markers of calls and thoughts; returns the number of tokens."""
    write_letters_tokenizer(folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(list(MARKERS[:2]))
    tokenizer.add_tokens(list(MARKERS[2:]))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"chat_template": TOOL_TEMPLATE, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return int(tokenizer.get_vocab_size())
