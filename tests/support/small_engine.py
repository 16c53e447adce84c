"""A model of three layers of eight experts, and its greedy answer to a prompt."""

from __future__ import annotations

import numpy as np

from edgemoe.engine.engine import Engine

CONFIG = {
    "model_type": "mixtral",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 131,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
}
EXPERTS = 3 * 8
SLOTS = 6
PROMPT = np.random.default_rng(11).integers(0, 131, 60)


def answer(engine: Engine, count: int, tokens: list[int] | None = None) -> list[int]:
    """Greedy tokens, put into `tokens` one by one."""
    tokens = [] if tokens is None else tokens
    engine.turn.begin()
    logits = engine.forward(PROMPT)
    engine.turn.begin_decoding()
    for _ in range(count):
        tokens.append(int(logits.argmax()))
        logits = engine.forward(tokens[-1:])
    return tokens
