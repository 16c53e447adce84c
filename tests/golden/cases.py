"""The configurations behind the golden data: one line says what each adds to the others.

`layout` is how the checkpoint is written: `files` as transformers saves it, `fused` under the names that
transformers 5 uses while it runs. `legacy` writes config.json with the keys of transformers 4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128}
YARN_WITH_ALL = YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False, "mscale": 0.7, "mscale_all_dim": 0.4}


@dataclass(frozen=True)
class Case:
    """One golden checkpoint: what it is made of, and how it is written."""

    model_type: str
    seed: int
    config: dict[str, Any] = field(default_factory=dict)
    layout: Literal["files", "fused"] = "files"
    legacy: bool = False

    @property
    def text(self) -> dict[str, Any]:
        """The config of the model of texts, within that of a model for images too."""
        found: dict[str, Any] = self.config.get("text_config", self.config)
        return found


def _common(model: int, layers: int, heads: int, kv_heads: int, **others: Any) -> dict[str, Any]:
    return {
        "hidden_size": model,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 512,
        "vocab_size": 96,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        **others,
    }


GEMMA4 = _common(
    40,
    4,
    4,
    2,
    attention_k_eq_v=True,
    enable_moe_block=True,
    final_logit_softcapping=3.0,
    global_head_dim=32,
    head_dim=16,
    hidden_size_per_layer_input=0,
    intermediate_size=44,
    layer_types=["sliding_attention", "full_attention"] * 2,
    moe_intermediate_size=20,
    num_experts=8,
    num_global_key_value_heads=1,
    pad_token_id=0,
    rope_parameters={
        "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
    sliding_window=8,
    tie_word_embeddings=True,
    top_k_experts=2,
    vocab_size_per_layer_input=96,
)

CASES: dict[str, Case] = {
    # Four query heads on two key heads, linear positions, a width of 40.
    "mixtral": Case(
        "mixtral",
        1,
        _common(48, 2, 4, 2, intermediate_size=40, num_local_experts=4, rope_parameters=LINEAR),
        legacy=True,
    ),
    # Heads wider than the model asks for, an odd vocabulary, one expert per token, tied.
    "mixtral_fused": Case(
        "mixtral",
        2,
        _common(
            32,
            2,
            3,
            1,
            head_dim=20,
            intermediate_size=33,
            num_local_experts=5,
            num_experts_per_tok=1,
            tie_word_embeddings=True,
            vocab_size=101,
        ),
        layout="fused",
    ),
    # A gated shared expert, a dense layer named by number, weights that do not sum to one.
    "qwen2_moe": Case(
        "qwen2_moe",
        3,
        _common(
            32,
            3,
            4,
            2,
            intermediate_size=56,
            moe_intermediate_size=24,
            shared_expert_intermediate_size=40,
            num_experts=6,
            num_experts_per_tok=2,
            mlp_only_layers=[1],
        ),
        legacy=True,
    ),
    # Every second layer sparse, no biases, weights that do sum to one.
    "qwen2_moe_step": Case(
        "qwen2_moe",
        4,
        _common(
            40,
            4,
            2,
            2,
            intermediate_size=24,
            moe_intermediate_size=17,
            shared_expert_intermediate_size=8,
            num_experts=7,
            num_experts_per_tok=3,
            norm_topk_prob=True,
            qkv_bias=False,
            decoder_sparse_step=2,
            tie_word_embeddings=True,
        ),
        layout="fused",
    ),
    # More experts than a machine word has bits.
    "qwen3_moe": Case(
        "qwen3_moe",
        5,
        _common(
            32,
            2,
            4,
            2,
            head_dim=16,
            intermediate_size=24,
            moe_intermediate_size=20,
            num_experts=72,
            num_experts_per_tok=8,
            norm_topk_prob=True,
            mlp_only_layers=[0],
            rope_parameters=YARN,
        ),
        legacy=True,
    ),
    # One key head, biases on all projections, every parameter that yarn has.
    "qwen3_moe_fused": Case(
        "qwen3_moe",
        6,
        _common(
            32,
            2,
            3,
            1,
            head_dim=24,
            intermediate_size=24,
            moe_intermediate_size=31,
            num_experts=5,
            num_experts_per_tok=5,
            attention_bias=True,
            rope_parameters=YARN_WITH_ALL,
        ),
        layout="fused",
    ),
    "olmoe": Case(
        "olmoe", 7, _common(48, 2, 4, 4, intermediate_size=18, num_experts=8, num_experts_per_tok=3), legacy=True
    ),
    # Grouped heads under a norm over the whole projection.
    "olmoe_fused": Case(
        "olmoe",
        8,
        _common(
            64,
            2,
            4,
            2,
            intermediate_size=16,
            num_experts=6,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            attention_bias=True,
        ),
        layout="fused",
    ),
    # Norms after attention and experts, none before.
    "flex_olmo": Case(
        "flex_olmo",
        17,
        _common(40, 3, 4, 2, intermediate_size=18, num_experts=7, num_experts_per_tok=3, norm_topk_prob=True),
    ),
    # A leading dense layer, four groups of which two are kept, norms of heads, biases, a quarter of each head rotated.
    "glm4_moe": Case(
        "glm4_moe",
        13,
        _common(
            32,
            3,
            4,
            2,
            head_dim=16,
            intermediate_size=40,
            moe_intermediate_size=20,
            n_routed_experts=8,
            num_experts_per_tok=3,
            n_shared_experts=2,
            n_group=4,
            topk_group=2,
            routed_scaling_factor=2.5,
            first_k_dense_replace=1,
            use_qk_norm=True,
            attention_bias=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        ),
    ),
    # One group, weights that do not sum to one, half of each head rotated and YaRN.
    "glm4_moe_fused": Case(
        "glm4_moe",
        14,
        _common(
            24,
            3,
            2,
            1,
            head_dim=24,
            intermediate_size=18,
            moe_intermediate_size=17,
            n_routed_experts=6,
            num_experts_per_tok=2,
            n_shared_experts=1,
            routed_scaling_factor=1.5,
            first_k_dense_replace=2,
            norm_topk_prob=False,
            rope_parameters=YARN | {"partial_rotary_factor": 0.5},
        ),
        layout="fused",
        legacy=True,
    ),
    # Convolutions around two layers with attention, a dense layer, biases for the choice and on the convolutions.
    "lfm2_moe": Case(
        "lfm2_moe",
        15,
        _common(
            32,
            5,
            4,
            2,
            intermediate_size=40,
            moe_intermediate_size=20,
            num_experts=8,
            num_experts_per_tok=3,
            layer_types=["conv", "full_attention", "conv", "full_attention", "conv"],
            num_dense_layers=1,
            conv_bias=True,
            routed_scaling_factor=2.0,
            norm_eps=1e-3,
        ),
    ),
    # A longer convolution, no biases, weights that do not sum to one, a head of its own.
    "lfm2_moe_fused": Case(
        "lfm2_moe",
        16,
        _common(
            24,
            3,
            3,
            1,
            intermediate_size=18,
            moe_intermediate_size=17,
            num_experts=6,
            num_experts_per_tok=2,
            layer_types=["full_attention", "conv", "conv"],
            num_dense_layers=0,
            conv_L_cache=5,
            use_expert_bias=False,
            norm_topk_prob=False,
            tie_word_embeddings=False,
            rope_parameters=LLAMA3,
        ),
        layout="fused",
        legacy=True,
    ),
    # A window that is odd and shorter than the text in every second layer, sinks, biases, and a limit that bites.
    "gpt_oss": Case(
        "gpt_oss",
        16,
        _common(
            32,
            3,
            4,
            2,
            head_dim=12,
            intermediate_size=20,
            num_local_experts=6,
            num_experts_per_tok=3,
            sliding_window=37,
            swiglu_limit=0.75,
            swiglu_alpha=1.3,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters=YARN | {"rope_theta": 150_000.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
        ),
    ),
    # Windows of all layers but the first, as wide as a page, no biases of attention, an odd width of experts.
    "gpt_oss_legacy": Case(
        "gpt_oss",
        15,
        _common(
            40,
            2,
            3,
            3,
            head_dim=8,
            intermediate_size=17,
            num_local_experts=5,
            num_experts_per_tok=2,
            sliding_window=64,
            attention_bias=False,
            tie_word_embeddings=True,
            vocab_size=101,
            layer_types=["full_attention", "sliding_attention"],
            rope_parameters=LINEAR,
        ),
        legacy=True,
    ),
    "granitemoe": Case(
        "granitemoe",
        9,
        _common(
            32,
            2,
            4,
            2,
            intermediate_size=24,
            num_local_experts=6,
            num_experts_per_tok=3,
            embedding_multiplier=12.0,
            attention_multiplier=0.2,
            residual_multiplier=0.22,
            logits_scaling=6.0,
            tie_word_embeddings=True,
        ),
        legacy=True,
    ),
    # The form of the bundled model: a shared expert beside the routed ones.
    "granitemoeshared": Case(
        "granitemoeshared",
        10,
        _common(
            48,
            2,
            6,
            3,
            intermediate_size=20,
            shared_intermediate_size=72,
            num_local_experts=8,
            num_experts_per_tok=2,
            attention_multiplier=0.125,
            attention_bias=True,
            tie_word_embeddings=True,
            rope_parameters=LLAMA3,
        ),
    ),
    "granitemoeshared_fused": Case(
        "granitemoeshared",
        11,
        _common(
            34,
            2,
            1,
            1,
            intermediate_size=16,
            shared_intermediate_size=15,
            num_local_experts=3,
            num_experts_per_tok=2,
            residual_multiplier=0.7,
            logits_scaling=0.5,
        ),
        layout="fused",
    ),
    # Shared and leading dense layers, windows of which the third layer has none, a factor of the embedding.
    "afmoe": Case(
        "afmoe",
        18,
        _common(
            40,
            4,
            4,
            2,
            head_dim=12,
            intermediate_size=56,
            moe_intermediate_size=20,
            num_experts=8,
            num_experts_per_tok=3,
            num_shared_experts=2,
            num_dense_layers=1,
            route_scale=2.0,
            global_attn_every_n_layers=3,
            sliding_window=37,
            mup_enabled=True,
            rope_parameters=LINEAR,
        ),
    ),
    # Biases of attention, one key head, a head of its own as the embedding, no dense layer.
    "afmoe_fused": Case(
        "afmoe",
        19,
        _common(
            24,
            2,
            3,
            1,
            head_dim=8,
            intermediate_size=18,
            moe_intermediate_size=17,
            num_experts=5,
            num_experts_per_tok=2,
            num_shared_experts=1,
            num_dense_layers=0,
            layer_types=["full_attention", "sliding_attention"],
            sliding_window=64,
            attention_bias=True,
            tie_word_embeddings=True,
        ),
        layout="fused",
        legacy=True,
    ),
    # Four groups of experts, a dense layer, windows in all layers but the second.
    "exaone_moe": Case(
        "exaone_moe",
        20,
        _common(
            32,
            4,
            4,
            2,
            head_dim=16,
            intermediate_size=40,
            moe_intermediate_size=20,
            num_experts=8,
            num_experts_per_tok=3,
            num_shared_experts=2,
            n_group=4,
            topk_group=2,
            sliding_window=37,
            sliding_window_pattern=2,
            rope_parameters=LLAMA3,
        ),
    ),
    # A dense layer in the middle, weights that do not sum to one, positions in one layer alone.
    "exaone_moe_fused": Case(
        "exaone_moe",
        21,
        _common(
            24,
            3,
            2,
            1,
            head_dim=12,
            intermediate_size=18,
            moe_intermediate_size=17,
            num_experts=6,
            num_experts_per_tok=2,
            routed_scaling_factor=1.5,
            norm_topk_prob=False,
            sliding_window=100,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
            mlp_layer_types=["sparse", "dense", "sparse"],
            rope_parameters=YARN,
        ),
        layout="fused",
        legacy=True,
    ),
    # YaRN where the whole context is seen, another theta within windows.
    "mellum": Case(
        "mellum",
        22,
        _common(
            32,
            3,
            4,
            2,
            head_dim=16,
            intermediate_size=40,
            moe_intermediate_size=20,
            num_local_experts=7,
            num_experts_per_tok=3,
            sliding_window=37,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={
                "full_attention": YARN | {"rope_theta": 500_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        ),
    ),
    # Biases of attention, a dense layer, weights that do not sum to one.
    "mellum_fused": Case(
        "mellum",
        23,
        _common(
            24,
            3,
            3,
            1,
            head_dim=8,
            intermediate_size=18,
            moe_intermediate_size=17,
            num_local_experts=5,
            num_experts_per_tok=2,
            norm_topk_prob=False,
            attention_bias=True,
            tie_word_embeddings=True,
            sliding_window=100,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
            mlp_layer_types=["sparse", "dense", "sparse"],
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": LLAMA3,
            },
        ),
        layout="fused",
    ),
    # A layer without positions, another theta within windows, sinks.
    "granitemoe_swa": Case(
        "granitemoe_swa",
        24,
        _common(
            32,
            4,
            4,
            2,
            intermediate_size=24,
            shared_intermediate_size=40,
            num_local_experts=6,
            num_experts_per_tok=3,
            embedding_multiplier=12.0,
            attention_multiplier=0.2,
            residual_multiplier=0.22,
            logits_scaling=6.0,
            sliding_window=37,
            layer_rope_theta=[0, 10_000.0, 50_000.0, 10_000.0],
            attention_bias=True,
            tie_word_embeddings=True,
        ),
    ),
    # Values narrower than keys, twice as many key heads within windows, a third of each head rotated.
    "mimo_v2_flash": Case(
        "mimo_v2_flash",
        25,
        _common(
            32,
            3,
            4,
            1,
            head_dim=24,
            v_head_dim=16,
            intermediate_size=40,
            moe_intermediate_size=20,
            n_routed_experts=8,
            num_experts_per_tok=3,
            n_group=4,
            topk_group=2,
            routed_scaling_factor=1.5,
            attention_value_scale=0.707,
            sliding_window=37,
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        ),
    ),
    # Biases of query, key and value, other parts of each head rotated, no factor of the values.
    "mimo_v2_flash_fused": Case(
        "mimo_v2_flash",
        26,
        _common(
            24,
            3,
            4,
            2,
            head_dim=8,
            v_head_dim=12,
            intermediate_size=18,
            moe_intermediate_size=17,
            n_routed_experts=6,
            num_experts_per_tok=2,
            norm_topk_prob=False,
            attention_bias=True,
            attention_value_scale=None,
            sliding_window=100,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            mlp_layer_types=["sparse", "sparse", "dense"],
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
            },
        ),
        layout="fused",
    ),
    # Layers of both types by the family's own pattern, two dense layers.
    "flint": Case(
        "flint",
        27,
        _common(
            32,
            5,
            4,
            2,
            head_dim=16,
            intermediate_size=40,
            moe_intermediate_size=20,
            shared_expert_intermediate_size=24,
            num_experts=8,
            num_experts_per_tok=3,
            sliding_window=37,
        ),
    ),
    # Biases of attention, weights that do not sum to one, no dense layer.
    "flint_fused": Case(
        "flint",
        28,
        _common(
            24,
            2,
            3,
            1,
            head_dim=8,
            intermediate_size=18,
            moe_intermediate_size=17,
            shared_expert_intermediate_size=9,
            num_experts=5,
            num_experts_per_tok=2,
            norm_topk_prob=False,
            attention_bias=True,
            mlp_only_layers=[],
            sliding_window=65,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters=YARN,
        ),
        layout="fused",
        legacy=True,
    ),
    # Every third layer sees all tokens, without positions; weights that do not sum to one.
    "kolibri1": Case(
        "kolibri1",
        29,
        _common(
            32,
            4,
            4,
            2,
            head_dim=12,
            moe_intermediate_size=20,
            shared_expert_intermediate_size=24,
            num_experts=8,
            num_experts_per_tok=3,
            sliding_window=37,
            layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters=YARN,
        ),
    ),
    # Weights that sum to one, one key head, a head that is the embedding.
    "kolibri1_fused": Case(
        "kolibri1",
        30,
        _common(
            24,
            2,
            3,
            1,
            head_dim=8,
            moe_intermediate_size=17,
            shared_expert_intermediate_size=9,
            num_experts=5,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            sliding_window=65,
            layer_types=["full_attention", "sliding_attention"],
            tie_word_embeddings=True,
        ),
        layout="fused",
        legacy=True,
    ),
    # A gate for each head, six heads within windows and four elsewhere, capped logits, half of each head rotated.
    "laguna": Case(
        "laguna",
        31,
        _common(
            32,
            4,
            4,
            2,
            head_dim=16,
            intermediate_size=40,
            moe_intermediate_size=20,
            shared_expert_intermediate_size=24,
            num_experts=8,
            num_experts_per_tok=3,
            num_attention_heads_per_layer=[4, 6, 4, 6],
            moe_router_logit_softcapping=2.0,
            moe_routed_scaling_factor=2.0,
            sliding_window=37,
            layer_types=["full_attention", "sliding_attention"] * 2,
        ),
    ),
    # A gate for each channel, biases, YaRN on a part of each head.
    "laguna_fused": Case(
        "laguna",
        32,
        _common(
            24,
            3,
            3,
            1,
            head_dim=8,
            intermediate_size=18,
            moe_intermediate_size=17,
            shared_expert_intermediate_size=9,
            num_experts=5,
            num_experts_per_tok=2,
            gating="per-element",
            attention_bias=True,
            sliding_window=65,
            layer_types=["sliding_attention", "full_attention", "full_attention"],
            mlp_layer_types=["sparse", "sparse", "dense"],
            rope_parameters={
                "full_attention": YARN | {"partial_rotary_factor": 0.5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e4},
            },
        ),
        layout="fused",
    ),
    # Dense, tied, biases, one key head.
    # The text part of a model for images: key heads that are values too, positions of a quarter of the pairs, a cap.
    "gemma4": Case(
        "gemma4",
        62,
        {
            "text_config": GEMMA4,
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "patch_size": 2,
                "position_embedding_size": 8,
            },
            "audio_config": None,
            "tie_word_embeddings": True,
        },
    ),
    # A text model alone: values of their own, biases, heads as many in all layers, no cap, a head of its own.
    "gemma4_text": Case(
        "gemma4_text",
        64,
        GEMMA4
        | {
            "attention_bias": True,
            "attention_k_eq_v": False,
            "final_logit_softcapping": None,
            "global_head_dim": 24,
            "num_experts": 5,
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "sliding_window": 70,
            "tie_word_embeddings": False,
            "top_k_experts": 3,
        },
        layout="fused",
    ),
    "llama": Case(
        "llama",
        12,
        _common(
            36,
            2,
            3,
            1,
            intermediate_size=50,
            attention_bias=True,
            tie_word_embeddings=True,
            vocab_size=159,
            rope_parameters=LLAMA3,
        ),
        legacy=True,
    ),
}

ROPE_CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "none": (64, {"rope_type": "default", "rope_theta": 1e6}),
    "linear": (10, LINEAR),
    "llama3": (64, LLAMA3 | {"original_max_position_embeddings": 2048}),
    "yarn": (64, YARN),
    "yarn_with_all": (48, YARN_WITH_ALL),
    "yarn_attention_factor": (32, YARN | {"attention_factor": 1.3}),
}
"""Head width and parameters of the rotary tables that are kept."""

PROMPT_TOKENS = 300
KEPT_POSITIONS = (0, 1, 2, 6, 15, 16, 31, 32, 63, 64, 100, 127, 128, 200, 255, 256, 298, 299)
"""The positions whose logits are kept: a model sees no later token, so each is a prompt of its own length."""
ROPE_POSITIONS = (0, 1, 2, 63, 64, 127, 128, 511, 4000)
