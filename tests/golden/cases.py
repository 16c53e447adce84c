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
    # DeltaNet and attention with an output gate, fused projections, values wider than a panel, a dense layer.
    "qwen3_next": Case(
        "qwen3_next",
        17,
        _common(
            48,
            4,
            4,
            2,
            head_dim=16,
            intermediate_size=40,
            moe_intermediate_size=20,
            shared_expert_intermediate_size=18,
            num_experts=8,
            num_experts_per_tok=3,
            mlp_only_layers=[1],
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=12,
            linear_value_head_dim=20,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        ),
    ),
    # One value head for each key head, a longer convolution, weights that do not sum to one, an interval of two, tied.
    "qwen3_next_fused": Case(
        "qwen3_next",
        18,
        _common(
            32,
            3,
            2,
            1,
            head_dim=8,
            intermediate_size=24,
            moe_intermediate_size=17,
            shared_expert_intermediate_size=16,
            num_experts=6,
            num_experts_per_tok=2,
            norm_topk_prob=False,
            layer_types=["linear_attention", "full_attention", "linear_attention"],
            linear_num_key_heads=3,
            linear_num_value_heads=3,
            linear_key_head_dim=16,
            linear_value_head_dim=16,
            linear_conv_kernel_dim=6,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
        layout="fused",
        legacy=True,
    ),
    # The text part of a model for images, three value heads for each key head.
    "qwen3_5_moe": Case(
        "qwen3_5_moe",
        19,
        {
            "text_config": _common(
                40,
                4,
                4,
                2,
                head_dim=16,
                moe_intermediate_size=20,
                shared_expert_intermediate_size=18,
                num_experts=8,
                num_experts_per_tok=3,
                linear_num_key_heads=2,
                linear_num_value_heads=6,
                linear_key_head_dim=12,
                linear_value_head_dim=12,
                rope_parameters={
                    "rope_type": "default",
                    "rope_theta": 1e6,
                    "partial_rotary_factor": 0.5,
                    "mrope_section": [2, 1, 1],
                    "mrope_interleaved": True,
                },
            ),
            "vision_config": {
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "num_position_embeddings": 16,
                "out_hidden_size": 40,
                "patch_size": 4,
                "spatial_merge_size": 1,
            },
            "image_token_id": 90,
            "video_token_id": 91,
            "vision_start_token_id": 92,
            "vision_end_token_id": 93,
            "tie_word_embeddings": False,
        },
    ),
    # The text part alone, one key head, experts fused.
    "qwen3_5_moe_text": Case(
        "qwen3_5_moe_text",
        20,
        _common(
            24,
            3,
            2,
            2,
            head_dim=12,
            moe_intermediate_size=17,
            shared_expert_intermediate_size=15,
            num_experts=6,
            num_experts_per_tok=2,
            layer_types=["linear_attention", "linear_attention", "full_attention"],
            linear_num_key_heads=1,
            linear_num_value_heads=2,
            linear_key_head_dim=24,
            linear_value_head_dim=8,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
        layout="fused",
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
    # Dense, tied, biases, one key head.
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
