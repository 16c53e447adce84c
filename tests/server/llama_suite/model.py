"""The model that llama.cpp's server tests ask: a small random mixture of experts with a tokenizer like Llama's.

Their own model (a dense one of 260,000 weights that writes stories) is on the hub alone. This one has as many tokens,
of the same kinds: special ones, all bytes, and 250 pieces of words, which are those of the tests' own texts. It never
writes a special token or a byte, so that all answers have the length that was asked for and are whole texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from safetensors.numpy import load_file, save_file
from tokenizers import decoders, models, normalizers, processors, trainers

from edgemoe.conversion.pipeline import convert_checkpoint
from tests.support.checkpoints import SMALL_MIXTRAL, write_checkpoint

VOCABULARY = 512
SPECIAL = ["<unk>", "<s>", "</s>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
NEVER_WRITTEN = len(SPECIAL) + len(BYTES)
CONFIG = {**SMALL_MIXTRAL, "vocab_size": VOCABULARY, "max_position_embeddings": 8192, "eos_token_id": 2}


def write_store(folder: Path, texts: Iterable[str], template: str, generation: dict[str, Any]) -> None:
    """Write the model, with a chat template and the settings of its answers."""
    source = folder / "source"
    write_checkpoint(source, CONFIG, dtype="F32", side_files={"tokenizer.json": trained(texts).to_str().encode()})
    _keep_special_tokens_unlikely(source / "model.safetensors")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (source / "tokenizer_config.json").write_text(json.dumps({**names, "chat_template": template}))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **generation}))
    convert_checkpoint(str(source), folder / "model.gguf", experts="q8", dense="q8")


def trained(texts: Iterable[str]) -> tokenizers.Tokenizer:
    """A tokenizer in the manner of Llama's: words begin with a mark, and what is no piece is spelled in bytes."""
    learning = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    learning.normalizer = _marked()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - len(BYTES), special_tokens=SPECIAL, show_progress=False)
    learning.train_from_iterator([word for text in texts for word in text.split()], trainer)
    learnt = json.loads(learning.to_str())["model"]
    pieces = [piece for piece in learnt["vocab"] if piece not in SPECIAL]
    vocabulary = {piece: number for number, piece in enumerate([*SPECIAL, *BYTES, *pieces])}
    merges = [tuple(pair) for pair in learnt["merges"]]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = _marked()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(strip)
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def _marked() -> Any:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def _keep_special_tokens_unlikely(path: Path) -> None:
    """Give all embeddings one number in common, and the tokens that are never written a dislike of it."""
    tensors = load_file(path)
    embeddings, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    embeddings[:, 0] = 8 * abs(embeddings).max()
    head[:, 0] = 0
    head[:NEVER_WRITTEN, 0] = -1000 * abs(head).max()
    save_file(tensors, path)
