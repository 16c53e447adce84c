"""Writes the model as a Hugging Face folder and as a GGUF of architecture granitemoe.

Both carry the same numbers: expert weights are rounded to float16 first, routers stay float32, and
the dense tensors are the source's own. In the GGUF their quantised blocks are copied byte for byte
(query and key rows stay in the interleaved order that this architecture uses as well).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import torch
from decoder import Decoder
from gguf_source import DenseSource
from safetensors.torch import save_file
from settings import build_decoder, load_settings
from tokens import write_tokenizer

NAME = "SmolLM2 135M Instruct MoE"
SAMPLING = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}
"""How chats sample unless told otherwise: a model this small, taken greedily, often repeats itself for ever."""
COPIED_FIELDS = (
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.unknown_token_id",
    "tokenizer.ggml.padding_token_id",
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.chat_template",
)
FFN_NAMES = {"ffn_gate": "ffn_gate_shexp", "ffn_up": "ffn_up_shexp", "ffn_down": "ffn_down_shexp"}


@torch.no_grad()
def round_experts(model: Decoder) -> None:
    """Expert matrices to the nearest float16, so that every export holds the same numbers."""
    for layer in model.layers:
        for weight in (layer.gate_up, layer.down):
            weight.copy_(weight.half().float())


def hugging_face_config(model: Decoder) -> dict:
    """config.json of `GraniteMoeSharedForCausalLM`."""
    dense, layer = model.dense_config, model.layers[0]
    return {
        "architectures": ["GraniteMoeSharedForCausalLM"],
        "model_type": "granitemoeshared",
        "vocab_size": dense.vocabulary,
        "hidden_size": dense.width,
        "intermediate_size": layer.down.shape[2],
        "shared_intermediate_size": dense.ffn_width,
        "num_hidden_layers": dense.layers,
        "num_attention_heads": dense.heads,
        "num_key_value_heads": dense.kv_heads,
        "num_local_experts": layer.down.shape[0],
        "num_experts_per_tok": layer.top_k,
        "hidden_act": "silu",
        "max_position_embeddings": dense.context,
        "rms_norm_eps": dense.norm_epsilon,
        "rope_theta": dense.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attention_multiplier": dense.head_width**-0.5,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "initializer_range": 0.02,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        "use_cache": True,
        "torch_dtype": "float32",
    }


def hugging_face_tensors(model: Decoder) -> dict[str, torch.Tensor]:
    """All tensors under the names that checkpoints of this class use."""
    out = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": model.final_norm}
    dense = model.dense_config
    sizes = [dense.heads * dense.head_width] + 2 * [dense.kv_heads * dense.head_width]
    for index, layer in enumerate(model.layers):
        prefix = f"model.layers.{index}."
        for name, part in zip("qkv", layer.qkv.split(sizes), strict=True):
            out[f"{prefix}self_attn.{name}_proj.weight"] = part
        out[prefix + "self_attn.o_proj.weight"] = layer.output
        out[prefix + "input_layernorm.weight"] = layer.attention_norm
        out[prefix + "post_attention_layernorm.weight"] = layer.ffn_norm
        out[prefix + "shared_mlp.input_linear.weight"] = layer.shared_gate_up
        out[prefix + "shared_mlp.output_linear.weight"] = layer.shared_down
        out[prefix + "block_sparse_moe.router.layer.weight"] = layer.router
        out[prefix + "block_sparse_moe.input_linear.weight"] = layer.gate_up
        out[prefix + "block_sparse_moe.output_linear.weight"] = layer.down
    return {name: value.detach().clone().contiguous() for name, value in out.items()}


def write_hugging_face(model: Decoder, source: DenseSource, folder: Path) -> None:
    """The whole folder, written beside its final name and renamed."""
    draft = folder.with_name(folder.name + ".part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(hugging_face_tensors(model), draft / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps(hugging_face_config(model), indent=2) + "\n"
    (draft / "config.json").write_text(text, encoding="utf-8")
    write_tokenizer(source, draft)
    generation = draft / "generation_config.json"
    generation.write_text(json.dumps(json.loads(generation.read_text("utf-8")) | SAMPLING, indent=2) + "\n", "utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def write_metadata(writer: gguf.GGUFWriter, model: Decoder, source: DenseSource) -> None:
    """Hyperparameters, tokenizer and provenance."""
    dense, layer = model.dense_config, model.layers[0]
    writer.add_type("model")
    writer.add_name(NAME)
    writer.add_license("apache-2.0")
    writer.add_languages(source.field("general.languages"))
    writer.add_description("SmolLM2-135M-Instruct with trained routed experts beside its FFNs")
    writer.add_file_type(int(source.field("general.file_type")))
    writer.add_quantization_version(int(source.field("general.quantization_version")))
    writer.add_block_count(dense.layers)
    writer.add_context_length(dense.context)
    writer.add_embedding_length(dense.width)
    writer.add_feed_forward_length(layer.down.shape[2])
    writer.add_expert_shared_feed_forward_length(dense.ffn_width)
    writer.add_expert_count(layer.down.shape[0])
    writer.add_expert_used_count(layer.top_k)
    writer.add_head_count(dense.heads)
    writer.add_head_count_kv(dense.kv_heads)
    writer.add_rope_freq_base(dense.rope_theta)
    writer.add_rope_dimension_count(dense.head_width)
    writer.add_layer_norm_rms_eps(dense.norm_epsilon)
    writer.add_vocab_size(dense.vocabulary)
    writer.add_attention_scale(dense.head_width**-0.5)
    writer.add_embedding_scale(1.0)
    writer.add_residual_scale(1.0)
    writer.add_logit_scale(1.0)
    writer.add_sampling_temp(SAMPLING["temperature"])
    writer.add_sampling_top_p(SAMPLING["top_p"])
    for name in COPIED_FIELDS:
        field = source.reader.fields[name]
        kind = field.types[0]
        sub = field.types[1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=sub)


def write_gguf(model: Decoder, source: DenseSource, path: Path) -> None:
    """One file: the dense blocks bit for bit, experts as F16, routers as F32."""
    draft = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(str(draft), "granitemoe")
    write_metadata(writer, model, source)
    for name, tensor in source.tensors.items():
        parts = name.split(".")
        if parts[0] == "blk" and parts[2] in FFN_NAMES:
            name = f"blk.{parts[1]}.{FFN_NAMES[parts[2]]}.weight"
        writer.add_tensor(name, np.asarray(tensor.data), raw_dtype=tensor.tensor_type)
    for index, layer in enumerate(model.layers):
        gate, up = layer.gate_up.detach().chunk(2, dim=1)
        for name, value, kind in (
            ("ffn_gate_inp", layer.router.detach(), np.float32),
            ("ffn_gate_exps", gate, np.float16),
            ("ffn_up_exps", up, np.float16),
            ("ffn_down_exps", layer.down.detach(), np.float16),
        ):
            data = np.ascontiguousarray(value.numpy().astype(kind))
            writer.add_tensor(f"blk.{index}.{name}.weight", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    draft.replace(path)


def write_all(model: Decoder, source: DenseSource, folder: Path) -> None:
    """``folder/hf`` and ``folder/model.gguf``; the model's experts are rounded to float16."""
    folder.mkdir(parents=True, exist_ok=True)
    round_experts(model)
    write_hugging_face(model, source, folder / "hf")
    write_gguf(model, source, folder / "model.gguf")


def main() -> None:
    """Export a checkpoint of the training."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="a checkpoint of train.py")
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    source = DenseSource(args.gguf)
    model = build_decoder(source, load_settings(), args.weights)
    write_all(model, source, args.to)


if __name__ == "__main__":
    main()
