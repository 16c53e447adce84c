"""Writes a trained carrier as a checkpoint of the family `edgemoe_carrier`: `python export.py VARIANT --work FOLDER`.

VARIANT/hf in the work folder gets config.json, model.safetensors and the tokenizer; README.md lists fields and tensors.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from carrier import Carrier, load, load_settings
from ffns import Peer
from safetensors.torch import save_file
from texts import END
from torch import Tensor

TRAINING_ONLY = ("gate_noise", "query_norm")
"""Parts that inference has no use for: the noise of gates, and what is folded into queries."""


def config_of(model: Carrier) -> dict:
    """config.json."""
    body, variant = model.body, model.variant
    fields = {
        "architectures": ["EdgemoeCarrierForCausalLM"],
        "model_type": "edgemoe_carrier",
        "ffn": variant["ffn"],
        "vocab_size": body["vocab_size"],
        "hidden_size": body["hidden_size"],
        "num_hidden_layers": body["layers"],
        "num_attention_heads": body["heads"],
        "num_key_value_heads": body["kv_heads"],
        "head_dim": body["hidden_size"] // body["heads"],
        "max_position_embeddings": body["context"],
        "rms_norm_eps": body["norm_epsilon"],
        "rope_theta": body["rope_theta"],
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "float32",
    }
    own = {
        "dense": lambda: {"hidden_act": "silu", "intermediate_size": variant["intermediate_size"]},
        "moe": lambda: {
            "hidden_act": "silu",
            "moe_intermediate_size": variant["intermediate_size"],
            "num_experts": variant["num_experts"],
            "num_experts_per_tok": variant["top_k"],
            "norm_topk_prob": True,
        },
        "fff": lambda: {
            "hidden_act": "relu",
            "depth": variant["depth"],
            "leaf_width": variant["leaf_width"],
            "leaf_output_bias": False,
        },
        "peer": lambda: {
            "hidden_act": "gelu",
            "num_experts": variant["num_experts"],
            "peer_heads": variant["heads"],
            "num_experts_per_head": variant["top_k"],
            "dim_key": variant["key_size"],
        },
    }
    return fields | own[variant["ffn"]]()


@torch.no_grad()
def folded_queries(ffn: Peer) -> tuple[Tensor, Tensor]:
    """Weight and bias of the queries with the batch normalisation in them, as inference has it."""
    norm = ffn.query_norm
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return ffn.to_queries.weight * scale.unsqueeze(1), norm.bias - norm.running_mean * scale


def tensors_of(model: Carrier) -> dict[str, Tensor]:
    """Every tensor under its name in the checkpoint."""
    out = {
        f"model.{name}": value.detach().clone().contiguous()
        for name, value in model.state_dict().items()
        if not any(part in name for part in TRAINING_ONLY)
    }
    for index, ffn in enumerate(model.ffns()):
        if isinstance(ffn, Peer):
            prefix = f"model.layers.{index}.mlp.to_queries"
            out[f"{prefix}.weight"], out[f"{prefix}.bias"] = (part.contiguous() for part in folded_queries(ffn))
    return out


def write(model: Carrier, folder: Path, tokenizer: Path) -> None:
    """The whole folder, written beside its final name and renamed."""
    draft = folder.with_name(folder.name + ".part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(tensors_of(model), draft / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(tokenizer, draft / "tokenizer.json")
    names = {"bos_token": END, "eos_token": END}
    texts = {
        "config.json": config_of(model),
        "tokenizer_config.json": names
        | {
            "add_bos_token": False,
            "model_max_length": model.body["context"],
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": 0, "do_sample": True, "temperature": 0.7},
    }
    for name, value in texts.items():
        (draft / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def main() -> None:
    """Write checkpoints of trained variants."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("variants", nargs="+", metavar="VARIANT")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--settings", type=Path, help="another file in the place of config.toml")
    args = parser.parse_args()
    for name in args.variants:
        model = load(load_settings(args.settings), name, args.work)
        write(model, args.work / name / "hf", args.work / "tokenizer.json")


if __name__ == "__main__":
    main()
