"""Describes every architecture of GGUF files that edgemoe reads or writes: one record each, in `FAMILIES`.

How a record becomes a checkpoint's config is in `family_config.py`, and in `windowed.py` where layers have windows, in
`latent.py` where attention is latent, and so on (CONTRIBUTING.md has them all);
which models a file of an architecture cannot express is in `expressible.py`.
"""

from __future__ import annotations

from dataclasses import replace

from edgemoe.architectures.table import SUM_SUFFIX
from edgemoe.conversion.gguf.compressed_tensors import ARCHITECTURE as COMPRESSED
from edgemoe.conversion.gguf.compressed_tensors import CHECKPOINT_NAMES as COMPRESSED_NAMES
from edgemoe.conversion.gguf.family import SIGMOID_ROUTER, Family
from edgemoe.conversion.gguf.gated_tensors import ARCHITECTURE as GATED
from edgemoe.conversion.gguf.gated_tensors import CHECKPOINT_NAMES as GATED_NAMES
from edgemoe.conversion.gguf.linear import LINEAR_NAMES, LINEAR_TAPS
from edgemoe.conversion.gguf.mamba_tensors import JAMBA_NAMES, MAMBA_FLAT, mamba_names
from edgemoe.model.blocks import RouterSpec

_SPLIT = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_W123 = {"gate": "w1", "up": "w3", "down": "w2"}
_FUSED = {"gate_up": "input_linear", "down": "output_linear"}
_QWEN_ROUTER, _QWEN_EXPERT = "mlp.gate.weight", "mlp.experts.{expert}.{matrix}.weight"
_SHARED_EXPERTS, _SHARED_MLP = "mlp.shared_experts.{matrix}.weight", "mlp.shared_mlp.{matrix}.weight"

_LFM2_NAMES = {
    "token_embd_norm.weight": "model.embedding_norm.weight",
    "output_norm.weight": "model.embedding_norm.weight",
    "attn_norm.weight": "operator_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "attn_output.weight": "self_attn.out_proj.weight",
    "attn_q_norm.weight": "self_attn.q_layernorm.weight",
    "attn_k_norm.weight": "self_attn.k_layernorm.weight",
    "shortconv.in_proj.weight": "conv.in_proj.weight",
    "shortconv.out_proj.weight": "conv.out_proj.weight",
    "ffn_gate.weight": "feed_forward.w1.weight",
    "ffn_up.weight": "feed_forward.w3.weight",
    "ffn_down.weight": "feed_forward.w2.weight",
    "exp_probs_b.bias": "feed_forward.expert_bias",
}
"""The norm before the head is called a norm of the embedding in files (`token_embd_norm`), as in checkpoints."""
_GEMMA_NAMES = {
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    "post_ffw_norm_1.weight": "post_feedforward_layernorm_1.weight",
    "pre_ffw_norm_2.weight": "pre_feedforward_layernorm_2.weight",
    "post_ffw_norm_2.weight": "post_feedforward_layernorm_2.weight",
    "layer_output_scale.weight": "layer_scalar",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
}
_AFMOE_NAMES = {
    "attn_gate.weight": "self_attn.gate_proj.weight",
    "ffn_norm.weight": "pre_mlp_layernorm.weight",
    "post_ffw_norm.weight": "post_mlp_layernorm.weight",
    "exp_probs_b.bias": "mlp.expert_bias",
}
_DBRX_NAMES = {
    "token_embd.weight": "transformer.wte.weight",
    "output_norm.weight": "transformer.norm_f.weight",
    "attn_norm.weight": "norm_attn_norm.norm_1.weight",
    "attn_output_norm.weight": "norm_attn_norm.norm_2.weight",
    "attn_output.weight": "norm_attn_norm.attn.out_proj.weight",
    "attn_qkv.weight": "norm_attn_norm.attn.Wqkv.weight",
}
_ARCTIC_NAMES = {
    "ffn_norm.weight": "residual_layernorm.weight",
    "ffn_norm_exps.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "residual_mlp.w1.weight",
    "ffn_up.weight": "residual_mlp.w3.weight",
    "ffn_down.weight": "residual_mlp.w2.weight",
}
_STEP_NAMES = {
    "output_norm.weight": "model.norm" + SUM_SUFFIX,
    "attn_norm.weight": "input_layernorm" + SUM_SUFFIX,
    "ffn_norm.weight": "post_attention_layernorm" + SUM_SUFFIX,
    "attn_q_norm.weight": "self_attn.q_norm" + SUM_SUFFIX,
    "attn_k_norm.weight": "self_attn.k_norm" + SUM_SUFFIX,
    "attn_gate.weight": "self_attn.g_proj.weight",
    "exp_probs_b.bias": "moe.router_bias",
}
_LLAMA4_NAMES = {f"ffn_{matrix}.weight": f"feed_forward.{matrix}_proj.weight" for matrix in ("gate", "up", "down")}
_HUNYUAN_NAMES = {
    "attn_q_norm.weight": "self_attn.query_layernorm.weight",
    "attn_k_norm.weight": "self_attn.key_layernorm.weight",
}
_LATENT_NAMES = {
    "attn_q_a.weight": "self_attn.q_a_proj.weight",
    "attn_q_a_norm.weight": "self_attn.q_a_layernorm.weight",
    "attn_q_b.weight": "self_attn.q_b_proj.weight",
    "attn_kv_a_mqa.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "attn_kv_a_norm.weight": "self_attn.kv_a_layernorm.weight",
    "attn_kv_b.weight": "self_attn.kv_b_proj.weight",
    "attn_k_b.weight": "self_attn.k_b_proj.weight",
    "attn_v_b.weight": "self_attn.v_b_proj.weight",
}
_INDEXER_NAMES = {
    "indexer.attn_k.weight": "self_attn.indexer.wk.weight",
    "indexer.attn_q_b.weight": "self_attn.indexer.wq_b.weight",
    "indexer.k_norm.weight": "self_attn.indexer.k_norm.weight",
    "indexer.k_norm.bias": "self_attn.indexer.k_norm.bias",
    "indexer.proj.weight": "self_attn.indexer.weights_proj.weight",
}
_LING_NAMES = {
    "token_embd.weight": "model.word_embeddings.weight",
    "attn_qkv.weight": "attention.query_key_value.weight",
    "attn_qkv.bias": "attention.query_key_value.bias",
    "attn_output.weight": "attention.dense.weight",
    "attn_q_norm.weight": "attention.query_layernorm.weight",
    "attn_k_norm.weight": "attention.key_layernorm.weight",
    "exp_probs_b.bias": "mlp.gate.expert_bias",
}

_KDA_NAMES = {
    "ssm_beta.weight": "self_attn.b_proj.weight",
    "ssm_dt.bias": "self_attn.dt_bias",
    "ssm_a": "self_attn.rate",
    "ssm_norm.weight": "self_attn.o_norm.weight",
    **{f"ssm_conv1d_{letter}.weight": f"self_attn.{letter}_conv1d.weight" for letter in "qkv"},
    **{f"ssm_{part}_{end}.weight": f"self_attn.{part}_{end}_proj.weight" for part in "fg" for end in "ab"},
}
_LING_3_NAMES = {
    name: own.replace("self_attn.", "attention.") for name, own in (_LATENT_NAMES | _KDA_NAMES).items()
} | {
    "token_embd.weight": "model.word_embeddings.weight",
    **{f"attn_{letter}.weight": f"attention.{letter}_proj.weight" for letter in "qkv"},
    "attn_output.weight": "attention.dense.weight",
    "attn_gate.weight": "attention.g_proj.weight",
    "ssm_f_a.weight": "attention.f_proj.weight",
    "ssm_g_a.weight": "attention.g_proj.weight",
    "ssm_a": "attention.rate_without_sign",
    "exp_probs_b.bias": "mlp.gate.expert_bias",
}
_LIGHTNING_NAMES = {
    "attn_qkv.weight": "self_attn.qkv_proj.weight",
    "attn_gate.weight": "self_attn.output_gate.weight",
    "attn_norm_2.weight": "self_attn.norm.weight",
}

_GROK_2_NAMES = {
    "attn_norm.weight": "pre_attn_norm.weight",
    "attn_output_norm.weight": "post_attn_norm.weight",
    "ffn_norm.weight": "pre_moe_norm.weight",
    **dict.fromkeys(("layer_output_norm.weight", "post_ffw_norm.weight"), "post_moe_norm.weight"),
}
_GROK_1_NAMES = (
    {"output_norm.weight": "model.norm.scale"}
    | {name: own.replace("weight", "scale") for name, own in _GROK_2_NAMES.items()}
    | {f"attn_{part}.weight": f"attn.{part[0]}_proj.weight" for part in ("q", "k", "v", "output")}
)
_PHI_NAMES = {
    "output_norm.bias": "model.norm.bias",
    "output.bias": "lm_head.bias",
    "attn_norm.bias": "input_layernorm.bias",
    "ffn_norm.bias": "post_attention_layernorm.bias",
}

_GRANITE_MAMBA_NAMES = mamba_names("mamba")
_NEMOTRON_NAMES = mamba_names("mixer") | {
    "token_embd.weight": "model.embeddings.weight",
    "output_norm.weight": "model.norm_f.weight",
    "attn_norm.weight": "norm.weight",
    **{f"attn_{letter}.weight": f"mixer.{letter}_proj.weight" for letter in "qkv"},
    "attn_output.weight": "mixer.o_proj.weight",
    "exp_probs_b.bias": "mixer.gate.e_score_correction_bias",
    "ffn_latent_down.weight": "mixer.fc1_latent_proj.weight",
    "ffn_latent_up.weight": "mixer.fc2_latent_proj.weight",
}

_DEEPSEEK = Family(
    "deepseek_v3",
    False,
    _QWEN_ROUTER,
    _QWEN_EXPERT,
    _SHARED_EXPERTS,
    partial_rotation=True,
    leading_dense=True,
    matrices=_SPLIT,
    own_names=_LATENT_NAMES,
    value_width=True,
)
_QWEN_3_5 = Family(
    "qwen3_5_moe",
    False,
    _QWEN_ROUTER,
    _QWEN_EXPERT,
    "mlp.shared_expert.{matrix}.weight",
    partial_rotation=True,
    matrices=_SPLIT,
    own_names=LINEAR_NAMES,
    taps=LINEAR_TAPS,
    linear_layers=True,
    heads_in_turn=True,
    routing=RouterSpec(normalise=True),
    width_keys="two",
    qk_norm=("head",),
)

FAMILIES: dict[str, Family] = {
    "bailingmoe2": Family(
        "bailing_moe_v2",
        False,
        _QWEN_ROUTER,
        _QWEN_EXPERT,
        _SHARED_EXPERTS,
        partial_rotation=True,
        leading_dense=True,
        matrices=_SPLIT,
        own_names=_LING_NAMES,
        routing=SIGMOID_ROUTER,
        grouped=True,
        several_shared="always",
        shared_keys="both",
        width_keys="two",
        qk_norm=("head",),
        full_width=True,
        never_tied=True,
    ),
    "bailingmoe3": Family(
        "bailing_hybrid",
        False,
        _QWEN_ROUTER,
        _QWEN_EXPERT,
        _SHARED_EXPERTS,
        partial_rotation=True,
        leading_dense=True,
        matrices=_SPLIT,
        own_names=_LING_3_NAMES,
        flat=frozenset({"ssm_a"}),
        value_width=True,
    ),
    "dbrx": Family(
        "dbrx",
        False,
        "ffn.router.layer.weight",
        "ffn.experts.{expert}.{matrix}.weight",
        matrices=_SPLIT,
        own_names=_DBRX_NAMES,
        routing=RouterSpec(normalise=True),
        full_width=True,
        never_tied=True,
        layer_norm=True,
        clipped=True,
        layers="transformer.blocks.{layer}.",
    ),
    "deepseek": Family(
        "deepseek",
        True,
        _QWEN_ROUTER,
        _QWEN_EXPERT,
        _SHARED_EXPERTS,
        leading_dense=True,
        matrices=_SPLIT,
        several_shared="always",
        shared_keys="count",
        width_keys="two",
        qkv_bias=True,
        full_width=True,
        never_tied=True,
    ),
    "deepseek2": _DEEPSEEK,
    "deepseek32": replace(_DEEPSEEK, model_type="deepseek_v32", own_names=_LATENT_NAMES | _INDEXER_NAMES),
    COMPRESSED: Family(
        "deepseek_v4",
        False,
        "ffn.gate.weight",
        "ffn.experts.{expert}.{matrix}.weight",
        "ffn.shared_experts.{matrix}.weight",
        partial_rotation=True,
        matrices=_W123,
        own_names=COMPRESSED_NAMES,
        layers="layers.{layer}.",
    ),
    "dots1": Family(
        "dots1",
        False,
        _QWEN_ROUTER,
        _QWEN_EXPERT,
        _SHARED_EXPERTS,
        leading_dense=True,
        matrices=_SPLIT,
        routing=SIGMOID_ROUTER,
        grouped=True,
        several_shared="always",
        shared_keys="count",
        width_keys="two",
        qk_norm=("head",),
        multi_head=True,
        never_tied=True,
    ),
    "ernie4_5-moe": Family(
        "ernie4_5_moe",
        False,
        _QWEN_ROUTER,
        _QWEN_EXPERT,
        _SHARED_EXPERTS,
        leading_dense=True,
        matrices=_SPLIT,
        routing=RouterSpec(normalise=True, choice_bias=True, least_sum=1e-12),
        routing_words=" with a bias for the choice",
        several_shared="maybe",
        width_keys="two",
        neighbours=True,
    ),
    "grok": Family(
        "grok-1",
        False,
        "moe_block.gate.weight",
        "moe_block.experts.{expert}.{matrix}.weight",
        matrices={"gate": "linear", "up": "linear_v", "down": "linear_1"},
        own_names=_GROK_1_NAMES,
        read_only=True,
    ),
    "grok with a dense FFN": Family(
        "git",
        False,
        "block_sparse_moe.gate.weight",
        "block_sparse_moe.experts.{expert}.{matrix}.weight",
        matrices=_W123,
        own_names=_GROK_2_NAMES,
        read_only=True,
    ),
    "hunyuan-moe": Family(
        "hunyuan_v1_moe",
        False,
        "mlp.gate.wg.weight",
        _QWEN_EXPERT,
        _SHARED_MLP,
        matrices=_SPLIT,
        own_names=_HUNYUAN_NAMES,
        routing=RouterSpec(normalise=True),
        several_shared="always",
        shared_keys="both",
        width_keys="twice",
        qk_norm=("head",),
        norm_after_rope=True,
        qkv_bias=True,
    ),
    "hy_v3": Family(
        "hy_v3",
        False,
        "mlp.router.gate.weight",
        _QWEN_EXPERT,
        _SHARED_MLP,
        matrices=_SPLIT,
        own_names=dict.fromkeys(("exp_probs_b", "exp_probs_b.bias"), "mlp.expert_bias"),
        routing=SIGMOID_ROUTER,
        several_shared="always",
        width_keys="two",
        dense_anywhere=True,
        qk_norm=("head",),
        qkv_bias=True,
    ),
    "llama": Family(
        "llama",
        True,
        routing=RouterSpec(normalise=True),
        qkv_bias=True,
        output_bias=True,
    ),
    "llama with experts": Family(
        "mixtral",
        True,
        "block_sparse_moe.gate.weight",
        "block_sparse_moe.experts.{expert}.{matrix}.weight",
        matrices=_W123,
        routing=RouterSpec(normalise=True),
        qkv_bias=True,
        output_bias=True,
    ),
    "gemma4": Family(
        "gemma4",
        False,
        "router.proj.weight",
        "experts.{matrix}",
        matrices={"gate_up": "gate_up_proj", "down": "down_proj"},
        own_names=_GEMMA_NAMES,
        own_divisors=True,
    ),
    "glm4moe": Family(
        "glm4_moe",
        False,
        _QWEN_ROUTER,
        _QWEN_EXPERT,
        _SHARED_EXPERTS,
        partial_rotation=True,
        leading_dense=True,
        matrices=_SPLIT,
        routing=SIGMOID_ROUTER,
        grouped=True,
        several_shared="always",
        shared_keys="count",
        width_keys="two",
        qk_norm=("none", "head"),
        qkv_bias=True,
    ),
    "glm-dsa": replace(_DEEPSEEK, model_type="glm_moe_dsa", own_names=_LATENT_NAMES | _INDEXER_NAMES),
    "gpt-oss": Family(
        "gpt_oss",
        False,
        "mlp.router.weight",
        "mlp.experts.{expert}.{matrix}.weight",
        matrices=_SPLIT,
        routing=RouterSpec(normalise=True, logit_bias=True),
        routing_words=" of the logits, which have biases",
        width_keys="twice",
        qkv_bias=True,
        output_bias=True,
        never_tied=True,
    ),
    "granitemoe": Family(
        "granitemoe",
        True,
        "block_sparse_moe.router.layer.weight",
        "block_sparse_moe.{matrix}.weight",
        "shared_mlp.{matrix}.weight",
        matrices=_FUSED,
        routing=RouterSpec(normalise=True),
        qkv_bias=True,
        output_bias=True,
        multipliers=True,
    ),
    "granitehybrid": Family(
        "granitemoehybrid",
        True,
        "block_sparse_moe.router.layer.weight",
        "block_sparse_moe.{matrix}.weight",
        "shared_mlp.{matrix}.weight",
        matrices=_FUSED,
        own_names=_GRANITE_MAMBA_NAMES,
        taps=("ssm_conv1d.weight", "mamba.conv1d.weight"),
        flat=MAMBA_FLAT,
    ),
    "nemotron_h_moe": Family(
        "nemotron_h",
        False,
        "mixer.gate.weight",
        "mixer.experts.{expert}.{matrix}.weight",
        "mixer.shared_experts.{matrix}.weight",
        matrices={"up": "up_proj", "down": "down_proj"},
        own_names=_NEMOTRON_NAMES,
        taps=("ssm_conv1d.weight", "mixer.conv1d.weight"),
        flat=MAMBA_FLAT,
    ),
    "jamba": Family(
        "jamba",
        False,
        "feed_forward.router.weight",
        "feed_forward.experts.{expert}.{matrix}.weight",
        matrices=_SPLIT,
        own_names=JAMBA_NAMES,
        taps=("ssm_conv1d.weight", "mamba.conv1d.weight"),
        full_width=True,
    ),
    "kimi-linear": Family(
        "kimi_linear",
        False,
        _QWEN_ROUTER,
        _QWEN_EXPERT,
        _SHARED_EXPERTS,
        partial_rotation=True,
        leading_dense=True,
        matrices=_SPLIT,
        own_names=_LATENT_NAMES | _KDA_NAMES,
        flat=frozenset({"ssm_a"}),
        value_width=True,
    ),
    "minimax-01": Family(
        "minimax",
        False,
        "block_sparse_moe.gate.weight",
        "block_sparse_moe.experts.{expert}.{matrix}.weight",
        partial_rotation=True,
        matrices=_W123,
        own_names=_LIGHTNING_NAMES,
    ),
    "lfm2moe": Family(
        "lfm2_moe",
        False,
        "feed_forward.gate.weight",
        "feed_forward.experts.{expert}.{matrix}.weight",
        leading_dense=True,
        matrices=_W123,
        own_names=_LFM2_NAMES,
        convolutions=True,
        taps=("shortconv.conv.weight", "conv.conv.weight"),
        routing=SIGMOID_ROUTER,
        plain_weights=True,
        width_keys="two",
        qk_norm=("head",),
    ),
    "minimax-m2": Family(
        "minimax_m2",
        False,
        "block_sparse_moe.gate.weight",
        "block_sparse_moe.experts.{expert}.{matrix}.weight",
        partial_rotation=True,
        matrices=_W123,
        own_names={"exp_probs_b.bias": "block_sparse_moe.e_score_correction_bias"},
        routing=SIGMOID_ROUTER,
        plain_weights=True,
        width_keys="twice",
        qk_norm=("full",),
        qkv_bias=True,
        never_tied=True,
    ),
    "olmoe": Family(
        "olmoe",
        False,
        _QWEN_ROUTER,
        _QWEN_EXPERT,
        matrices=_SPLIT,
        qk_norm=("full",),
        full_width=True,
        multi_head=True,
        never_tied=True,
    ),
    "qwen2moe": Family(
        "qwen2_moe",
        False,
        _QWEN_ROUTER,
        _QWEN_EXPERT,
        "mlp.shared_expert.{matrix}.weight",
        matrices=_SPLIT,
        width_keys="two",
        qkv_bias=True,
        full_width=True,
        never_tied=True,
    ),
    "qwen35moe": _QWEN_3_5,
    GATED: replace(_QWEN_3_5, model_type="qwen4_exp", own_names=GATED_NAMES),
    "qwen3moe": Family(
        "qwen3_moe",
        False,
        _QWEN_ROUTER,
        _QWEN_EXPERT,
        matrices=_SPLIT,
        routing=RouterSpec(normalise=True),
        width_keys="two",
        qk_norm=("head",),
    ),
    "qwen3next": replace(_QWEN_3_5, model_type="qwen3_next", heads_in_turn=False),
    "afmoe": Family(
        "afmoe",
        False,
        "mlp.router.gate.weight",
        _QWEN_EXPERT,
        _SHARED_EXPERTS,
        leading_dense=True,
        matrices=_SPLIT,
        own_names=_AFMOE_NAMES,
    ),
    "arctic": Family(
        "arctic",
        True,
        "block_sparse_moe.gate.weight",
        "block_sparse_moe.experts.{expert}.{matrix}.weight",
        matrices=_W123,
        own_names=_ARCTIC_NAMES,
        full_width=True,
    ),
    "cohere2moe": Family(
        "cohere2_moe", False, _QWEN_ROUTER, _QWEN_EXPERT, _SHARED_EXPERTS, leading_dense=True, matrices=_SPLIT
    ),
    "exaone-moe": Family(
        "exaone_moe", False, _QWEN_ROUTER, _QWEN_EXPERT, _SHARED_EXPERTS, leading_dense=True, matrices=_SPLIT
    ),
    "laguna": Family(
        "laguna",
        False,
        _QWEN_ROUTER,
        _QWEN_EXPERT,
        _SHARED_EXPERTS,
        partial_rotation=True,
        leading_dense=True,
        matrices=_SPLIT,
        own_names={"attn_gate.weight": "self_attn.g_proj.weight"},
    ),
    "llama4": Family(
        "llama4",
        False,
        "feed_forward.router.weight",
        "feed_forward.experts.{expert}.{matrix}.weight",
        "feed_forward.shared_expert.{matrix}.weight",
        matrices=_SPLIT,
        own_names=_LLAMA4_NAMES,
    ),
    "mistral4": replace(_DEEPSEEK, model_type="mistral4"),
    "mellum": Family("mellum", False, _QWEN_ROUTER, _QWEN_EXPERT, matrices=_SPLIT),
    "mimo2": Family(
        "mimo_v2_flash",
        False,
        _QWEN_ROUTER,
        _QWEN_EXPERT,
        partial_rotation=True,
        leading_dense=True,
        matrices=_SPLIT,
        value_width=True,
    ),
    "phimoe": Family(
        "phimoe",
        False,
        "block_sparse_moe.gate.weight",
        "block_sparse_moe.experts.{expert}.{matrix}.weight",
        matrices=_W123,
        own_names=_PHI_NAMES,
        longrope=True,
        read_only=True,
    ),
    "smallthinker": Family(
        "smallthinker",
        False,
        "block_sparse_moe.primary_router.weight",
        "block_sparse_moe.experts.{expert}.{matrix}.weight",
        matrices={"gate": "gate", "up": "up", "down": "down"},
    ),
    "step35": Family(
        "step3p5",
        False,
        "moe.gate.weight",
        "moe.{matrix}.weight",
        "share_expert.{matrix}.weight",
        leading_dense=True,
        matrices=_SPLIT,
        own_names=_STEP_NAMES,
        own_divisors=True,
    ),
}

ARCHITECTURES = {
    family.model_type: name.partition(" ")[0] for name, family in FAMILIES.items() if not family.read_only
} | {
    "bailing_moe": "bailingmoe2",
    "deepseek_v2": "deepseek2",
    "deepseek_v32": "deepseek2",
    "granitemoeshared": "granitemoe",
    "glm4_moe_lite": "deepseek2",
    "glm_moe_dsa": "deepseek2",
    "kimi_k2": "deepseek2",
    "kimi_k25": "deepseek2",
    "llama4_text": "llama4",
    "mistral3": "mistral4",
    "minimax_m1": "minimax-01",
    "minimax_text_01": "minimax-01",
    "sarvam_mla": "deepseek2",
    "sarvam_moe": "bailingmoe2",
    "solar_open": "glm4moe",
    "step3p7": "step35",
}
"""GGUF architecture of each family that is written, by `model_type`; without their indexers, which stores leave out,
DeepSeek-V3.2 and GLM-5 are as DeepSeek-V3."""

INTERLEAVED = frozenset(ARCHITECTURES[family.model_type] for family in FAMILIES.values() if family.interleaved_rotation)
"""Architectures that rotate neighbouring pairs: their rows of query and key are in the order of `pairs_order`."""

FAMILY = {name.partition(" ")[0]: family for name, family in FAMILIES.items()}
"""By architecture."""
