"""Writes the golden data beside this file: `python -m tests.golden.generate [CASE ...]`. Needs torch and transformers.

Each case becomes a folder with a checkpoint (config.json, model.safetensors) and `golden.npz`: the prompt
`ids`, and the `logits` of transformers in float32 at `positions`. `rope.npz` holds rotary tables.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tests.golden.cases import (
    CASES,
    ENCODER_CASES,
    INPUT_TOKENS,
    KEPT_POSITIONS,
    PROMPT_TOKENS,
    ROPE_CASES,
    ROPE_POSITIONS,
    TEXT_TOKENS,
)
from tests.golden.oracle import make_model, prompt, recurrent, run, run_with_input, save

FOLDER = Path(__file__).parent


def main(names: list[str]) -> None:
    for name, case in CASES.items():
        if names and name not in names:
            continue
        model, ids = make_model(case), prompt(case, PROMPT_TOKENS)
        with recurrent(model):
            logits, clear = run(model, ids)
        if not clear.all():
            raise SystemExit(f"{name}: a token's routing hangs on rounding; choose another seed.")
        save(model, case, FOLDER / name)
        positions = np.array(KEPT_POSITIONS)
        np.savez_compressed(
            FOLDER / name / "golden.npz", ids=ids.astype(np.int32), positions=positions, logits=logits[positions]
        )
        print(f"{name}: largest logit {np.abs(logits).max():.1f}")
    for name, case in ENCODER_CASES.items():
        if names and name not in names:
            continue
        model, ids = make_model(case), prompt(case, INPUT_TOKENS + TEXT_TOKENS).astype(np.int64)
        read, text = ids[:INPUT_TOKENS], ids[INPUT_TOKENS:]
        text[0] = case.config["decoder_start_token_id"]
        logits, clear = run_with_input(model, read, text)
        if not clear:
            raise SystemExit(f"{name}: a token's routing hangs on rounding; choose another seed.")
        save(model, case, FOLDER / name)
        np.savez_compressed(
            FOLDER / name / "golden.npz", input=read.astype(np.int32), ids=text.astype(np.int32), logits=logits
        )
        print(f"{name}: largest logit {np.abs(logits).max():.1f}")
    if not names:
        np.savez_compressed(FOLDER / "rope.npz", **_rope_tables())


def _rope_tables() -> dict[str, np.ndarray]:
    tables = {}
    for name, (head_width, parameters) in ROPE_CASES.items():
        config = transformers.LlamaConfig(
            hidden_size=head_width,
            num_attention_heads=1,
            head_dim=head_width,
            max_position_embeddings=8192,
            rope_parameters=dict(parameters),
        )
        cosine, sine = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.tensor([ROPE_POSITIONS]))
        half = head_width // 2
        tables[name] = np.stack([cosine[0, :, :half].numpy(), sine[0, :, :half].numpy()])
    return tables


if __name__ == "__main__":
    main(sys.argv[1:])
