"""The tensors that a checkpoint may have beside those of its model, each with the reason why no model needs it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

from edgemoe.model.spec import ModelSpec

_HARMLESS: tuple[tuple[str, str], ...] = (
    (r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", "rotary frequencies follow from config.json"),
    (
        r"model\.layers\.\d+\.self_attn\.(slope_rate|(query|key|diagonal)_decay)",
        "decays of lightning attention follow from config.json",
    ),
    (
        r"model\.(language_model\.)?layers\.\d+\.ple\.ple_embedding\.(layer_multipliers|ngram_heads_\w+)",
        "the rows of n-grams follow from config.json",
    ),
    (
        r"(encoder|decoder)\.block\.\d+\.layer\.\d+\.mlp\.w_noise",
        "noise of noisy top-k routing acts in training only",
    ),
)
"""Tensors that a checkpoint may carry and no model needs: name patterns, each with the reason."""

FURTHER_TOKENS = "a layer that predicts tokens after the next (MTP), which is converted by itself"
_FURTHER_TOKENS = re.compile(r"(model\.layers\.(\d{1,6})\.)eh_proj\.weight")
"""A tensor that only such layers have. They come after the others, and config.json does not count them."""
_NAMED_FURTHER_TOKENS = re.compile(r"(model\.)?mtp(_\w+)?\..+")
"""The tensors of such layers where they have names of their own."""

VISION = "a vision tower, which edgemoe does not run: it reads text alone"
_VISION = re.compile(
    r"(model\.)?(visual|vision_model|vision_tower|embed_vision|mm_projector|multi_modal_projector|vit_large_projector)\..+"
)
AUDIO = "an audio tower, which edgemoe does not run: it reads text alone"
_AUDIO = re.compile(r"(model\.)?(audio_tower|embed_audio)\..+")

INDEXER = "an indexer of attention, which chooses among more tokens than edgemoe runs of this model"
_INDEXER = re.compile(r"model\.(language_model\.)?layers\.\d+\.self_attn\.indexer\..+")
UNUSED_NORM = "a norm after a dense layer's FFN, which the model does not use"
_NORM_OF_FFN = re.compile(r"model\.layers\.(\d{1,6})\.post_mlp_layernorm\.weight")

NO_EXPERT = "a matrix of a choice that is of no expert, which passes on what experts read"
_EXPERT_MATRIX = re.compile(r"model\.layers\.(\d{1,6})\.mlp\.experts\.(\d{1,6})\.(gate|up|down)_proj\.weight")

BIAS_OF_IMAGES = "a bias by which experts are chosen for images, which edgemoe does not run: it reads text alone"
_BIAS_OF_IMAGES = re.compile(r"(model\.)?layers\.\d{1,6}\.ffn\.gate\.bias_vl")
UNREAD_BIAS = "a bias of experts, which the model's code does not read"
_UNREAD_BIAS = re.compile(r"model\.layers\.\d{1,6}\.mlp\.expert_bias")
_HEAD = "lm_head.weight"
TIED_HEAD = "a copy of the embedding, which config.json says is the head (tie_word_embeddings)"
STACKS_EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
STACKS_EMBEDDING = "a copy of the embedding, which encoder and decoder share"


def unused_tensors(spec: ModelSpec, names: Iterable[str]) -> dict[str, str]:
    """The tensors among `names` that the model does not need, each with the reason."""
    reasons, names = {}, list(names)
    found = filter(None, map(_FURTHER_TOKENS.fullmatch, names))
    further = tuple(match[1] for match in found if int(match[2]) >= len(spec.layers))
    normed = {number for number, layer in enumerate(spec.layers) if layer.blocks[-1].post_norm}
    unnormed = set(range(len(spec.layers))) - normed if normed else set()
    passing = {number: routed.num_experts for number, routed in spec.routed.items() if routed.passing}
    for name in names:
        if (further and name.startswith(further)) or _NAMED_FURTHER_TOKENS.fullmatch(name):
            reasons[name] = FURTHER_TOKENS
        if _VISION.fullmatch(name):
            reasons[name] = VISION
        if _AUDIO.fullmatch(name):
            reasons[name] = AUDIO
        if spec.positions_limit == "indexer" and _INDEXER.fullmatch(name):
            reasons[name] = INDEXER
        norm = _NORM_OF_FFN.fullmatch(name)
        if norm and int(norm[1]) in unnormed:
            reasons[name] = UNUSED_NORM
        matrix = _EXPERT_MATRIX.fullmatch(name) if passing else None
        if matrix and int(matrix[2]) >= passing.get(int(matrix[1]), sys.maxsize):
            reasons[name] = NO_EXPERT
        if spec.family == "grove_moe" and _UNREAD_BIAS.fullmatch(name):
            reasons[name] = UNREAD_BIAS
        if spec.family == "deepseek_v4" and _BIAS_OF_IMAGES.fullmatch(name):
            reasons[name] = BIAS_OF_IMAGES
        if name == _HEAD and spec.tied_embeddings:
            reasons[name] = TIED_HEAD
        if name in STACKS_EMBEDDINGS and spec.encoder:
            reasons[name] = STACKS_EMBEDDING
        for pattern, reason in _HARMLESS:
            if re.fullmatch(pattern, name):
                reasons[name] = reason
    return reasons
