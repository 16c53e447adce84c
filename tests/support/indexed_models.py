"""Small models with latent attention and an indexer, as checkpoints and as the GGUF files that converters write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.support.checkpoints import read_tensors, write_checkpoint
from tests.support.gguf_files import Tensors, write_gguf

_COMMON: dict[str, Any] = {
    "first_k_dense_replace": 1,
    "hidden_size": 64,
    "index_head_dim": 64,
    "index_n_heads": 2,
    "index_topk": 96,
    "intermediate_size": 96,
    "kv_lora_rank": 64,
    "max_position_embeddings": 512,
    "moe_intermediate_size": 32,
    "n_group": 3,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "q_lora_rank": 96,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "routed_scaling_factor": 2.5,
    "topk_group": 2,
    "v_head_dim": 24,
    "vocab_size": 399,  # that of the tokenizer of the files
}
INDEXED: dict[str, dict[str, Any]] = {
    "deepseek_v32": _COMMON
    | {
        "model_type": "deepseek_v32",
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 128,
        },
    },
    "glm_moe_dsa": _COMMON | {"model_type": "glm_moe_dsa", "n_group": 1, "topk_group": 1},
}


def write_indexed(
    folder: Path, config: dict[str, Any], metadata: dict[str, Any] | None = None, others: Tensors | None = None
) -> Path:
    """Write a random checkpoint into `folder`, and the file of it with an indexer and `others`. Returns the file."""
    write_checkpoint(folder, config, dtype="F32")
    rng = np.random.default_rng(3)
    tensors = {  # norms near 1, and matrices that leave values about as large as they were
        name: 1 + values if name.endswith("norm.weight") else 4 * values
        for name, values in read_tensors(folder).items()
    }
    width, heads, rank = config["index_head_dim"], config["index_n_heads"], config["q_lora_rank"]
    shapes = {
        "attn_k.weight": (width, config["hidden_size"]),
        "attn_q_b.weight": (heads * width, rank),
        "k_norm.weight": (width,),
        "k_norm.bias": (width,),
        "proj.weight": (heads, config["hidden_size"]),
    }
    tensors |= {
        f"blk.{layer}.indexer.{name}": rng.standard_normal(shape, np.float32)
        for layer in range(config["num_hidden_layers"])
        for name, shape in shapes.items()
    }
    return write_gguf(folder / "model.gguf", config, tensors | dict(others or {}), metadata=metadata)
