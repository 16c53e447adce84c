"""Makes random models with transformers, whose logits are the reference. Needs torch and transformers.

Families without a class there are computed by `published_code.py`, through the same functions.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from tests.golden import mixtures, published_carriers, published_code, published_more
from tests.golden.cases import PROMPT_TOKENS, Case

_CLASSES = {
    "afmoe": "Afmoe",
    "axk1": "AXK1",
    "bailing_hybrid": "BailingHybrid",
    "cohere2_moe": "Cohere2Moe",
    "exaone_moe": "ExaoneMoe",
    "flint": "Flint",
    "granitemoe_swa": "GraniteMoeSWA",
    "kolibri1": "Kolibri1",
    "laguna": "Laguna",
    "mellum": "Mellum",
    "mimo_v2_flash": "MiMoV2Flash",
    "dbrx": "Dbrx",
    "deepseek_v2": "DeepseekV2",
    "deepseek_v3": "DeepseekV3",
    "deepseek_v32": "DeepseekV32",
    "deepseek_v4": "DeepseekV4",
    "dots1": "Dots1",
    "ernie4_5_moe": "Ernie4_5_Moe",
    "flex_olmo": "FlexOlmo",
    "gemma4": "Gemma4",
    "gemma4_text": "Gemma4",
    "glm4_moe": "Glm4Moe",
    "glm4_moe_lite": "Glm4MoeLite",
    "glm_moe_dsa": "GlmMoeDsa",
    "gpt_oss": "GptOss",
    "granitemoe": "GraniteMoe",
    "granitemoeshared": "GraniteMoeShared",
    "granitemoehybrid": "GraniteMoeHybrid",
    "hunyuan_v1_moe": "HunYuanMoEV1",
    "hy_v3": "HYV3",
    "jamba": "Jamba",
    "kimi_k2": "DeepseekV3",
    "kimi_k25": "Kimi_K25",
    "kimi_linear": "KimiLinear",
    "lfm2_moe": "Lfm2Moe",
    "llama": "Llama",
    "llama4": "Llama4",
    "longcat_flash": "LongcatFlash",
    "llama4_text": "Llama4",
    "minimax": "MiniMax",
    "minimax_m1": "MiniMax",
    "minimax_m2": "MiniMaxM2",
    "minimax_text_01": "MiniMax",
    "mistral3": "Mistral3",
    "mistral4": "Mistral4",
    "mixtral": "Mixtral",
    "nemotron_h": "NemotronH",
    "olmoe": "Olmoe",
    "phimoe": "Phimoe",
    "qwen2_moe": "Qwen2Moe",
    "qwen3_5_moe": "Qwen3_5Moe",
    "qwen3_5_moe_text": "Qwen3_5Moe",
    "qwen3_moe": "Qwen3Moe",
    "qwen3_next": "Qwen3Next",
    "qwen4_exp": "Qwen4Exp",
    "qwen4_exp_text": "Qwen4Exp",
    "sarvam_mla": "SarvamMLA",
    "sarvam_moe": "SarvamMoE",
    "solar_open": "SolarOpen",
    "step3p5": "Step3p7",
    "step3p7": "Step3p7",
    "switch_transformers": "SwitchTransformers",
}
_CONFIG_CLASSES = {
    "gemma4_text": "Gemma4TextConfig",
    "llama4_text": "Llama4TextConfig",
    "qwen3_5_moe_text": "Qwen3_5MoeTextConfig",
    "qwen4_exp_text": "Qwen4ExpTextConfig",
}
"""Where it is not `Config` behind the name above."""
_MODELS = {
    "gemma4": "Gemma4ForConditionalGeneration",
    "kimi_k25": "Kimi_K25ForConditionalGeneration",
    "llama4": "Llama4ForConditionalGeneration",
    "mistral3": "Mistral3ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen4_exp": "Qwen4ExpForConditionalGeneration",
    "sarvam_mla": "DeepseekV3ForCausalLM",
    "sarvam_moe": "Glm4MoeForCausalLM",
    "step3p5": "Step3p7ForConditionalGeneration",
    "step3p7": "Step3p7ForConditionalGeneration",
    "switch_transformers": "SwitchTransformersForConditionalGeneration",
}
"""The class of the model, where it is not `ForCausalLM` behind the name above. Of one for images the text part is the
reference."""
STEP_VISION = {"width": 8, "heads": 1, "layers": 1, "image_size": 28, "mlp_ratio": 1.0}
"""The smallest vision tower of Step 3.7, whose class is the only one for the text model too."""
AROUND_ZERO = ("qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next", "qwen4_exp", "qwen4_exp_text", "step3p5", "step3p7")
"""Families whose norms add 1 to their weights, except that of the heads of a linear layer."""
KDA = ("kimi_linear", "bailing_hybrid")
PUBLISHED_MINIMAX = ("minimax_m1", "minimax_text_01")
TRANSPOSED = ("gpt_oss", "llama4", "llama4_text")
"""Families whose matrices of experts have a row for each input."""
_LISTED = (
    "dots1",
    "gpt_oss",
    "lfm2_moe",
    "afmoe",
    "cohere2_moe",
    "exaone_moe",
    "flint",
    "granitemoe_swa",
    "granitemoehybrid",
    "kolibri1",
    "qwen3_next",
)
"""Families whose layers are of two kinds in older files too, which list them."""
CLEAR_ROUTING = 2e-5
"""A token whose last chosen and first unchosen expert differ by less may be routed either way by rounding."""


def make_model(case: Case) -> Any:
    """A model with random weights that bfloat16 holds exactly, in float32."""
    if case.model_type in published_code.FAMILIES:
        kinds = published_more.KINDS | {"edgemoe_carrier": published_carriers.Carrier}
        return published_code.make_model(case, kinds.get(case.model_type, published_code.Model))
    if case.model_type == mixtures.FAMILY:
        return mixtures.make_model(case)
    torch.set_num_threads(1)  # the models are too small for more to help
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    name = _CLASSES[case.model_type]
    config_class = _CONFIG_CLASSES.get(case.model_type, f"{name}Config")
    given = json.loads(json.dumps(case.config))
    if case.model_type == "step3p5":
        given = {"text_config": given, "vision_config": dict(STEP_VISION)}
    config = getattr(transformers, config_class)(**given)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model_class = _MODELS.get(case.model_type, f"{name}ForCausalLM")
    model = getattr(transformers, model_class)(config).float().eval()
    for module in model.modules():
        if case.model_type == "nemotron_h" and hasattr(module, "time_step_limit"):
            # The class holds the steps of prompts, not those of single tokens, above a minimum that the published code
            # of the model has for its training alone.
            module.time_step_limit = (0.0, float("inf"))
    if case.model_type == "bailing_hybrid":
        _limit_experts(model, case)
    random = torch.Generator().manual_seed(case.seed)
    if case.model_type == "switch_transformers":
        model.set_input_embeddings(model.shared)  # one for both stacks, though the head is not tied
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=random)
            is_norm = "norm" in parameter_name.replace("norm_attn_norm", "")
            is_norm = is_norm and not parameter_name.endswith("norm.bias")
            if is_norm or parameter_name.endswith("scale"):
                around_zero = case.model_type in AROUND_ZERO and "linear_attn.norm" not in parameter_name
                values = 0.3 * values if around_zero else 1 + 0.2 * values
            elif parameter_name.endswith(("A_log", "dt_bias")):
                values = 0.5 * values if case.model_type in KDA and parameter_name.endswith("A_log") else values
            elif parameter_name.endswith("sinks"):
                values = 2 * values  # as large as scores are
            elif parameter_name.endswith("moe_statics.e_score_correction_bias"):
                values = 0.1 * values  # about as far apart as shares by softmax are
            elif parameter_name.endswith("bias"):
                values = 0.3 * values
            elif "embed" in parameter_name or "wte" in parameter_name:
                # A tied head would mostly say the last token again, and hide what the layers add.
                values = 0.25 * values if getattr(config, "tie_word_embeddings", False) else values
            else:
                routers = ("router", "mlp.gate.", "feed_forward.gate.", "mixer.gate.")
                spread = 2.0 if any(name in parameter_name for name in routers) else 1.0
                transposed = case.model_type in TRANSPOSED and "experts" in parameter_name
                values = values * spread / parameter.shape[-2 if transposed else -1] ** 0.5
            parameter.copy_(values.bfloat16().float())
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith(("e_score_correction_bias", "expert_bias")):
                spread = 0.1 if case.model_type == "longcat_flash" else 0.3  # of shares by softmax or sigmoids
                buffer.copy_((spread * torch.randn(buffer.shape, generator=random)).bfloat16().float())
            elif buffer_name.endswith("layer_scalar"):
                buffer.copy_((0.6 + 0.2 * torch.randn(buffer.shape, generator=random)).bfloat16().float())
            elif buffer_name.endswith("tid2eid"):  # of each token as many experts as it uses, in any order
                experts = torch.rand(buffer.shape[0], config.n_routed_experts, generator=random).argsort(dim=1)
                buffer.copy_(experts[:, : buffer.shape[1]])
    if case.model_type == "phimoe":
        # The class asks for the factors of LongRoPE without a length, and so has those of short contexts in all.
        positions = model.model.rotary_emb
        if positions.rope_type == "longrope":
            positions.rope_init_fn = functools.partial(positions.rope_init_fn, seq_len=PROMPT_TOKENS)
    return model


class _Capped:
    """The result of an activation whose product with up's numbers is held to a limit on both sides."""

    def __init__(self, gated: torch.Tensor, limit: float) -> None:
        self._gated, self._limit = gated.clamp(max=limit), limit

    def __mul__(self, up: torch.Tensor) -> torch.Tensor:
        return self._gated * up.clamp(-self._limit, self._limit)


class _CappedSilu(torch.nn.Module):
    def __init__(self, limit: float) -> None:
        super().__init__()
        self._limit = limit

    def forward(self, gate: torch.Tensor) -> _Capped:
        return _Capped(torch.nn.functional.silu(gate), self._limit)


def _limit_experts(model: Any, case: Case) -> None:
    """Apply the limits of a config, which the class ignores, as the vLLM of the model's makers does."""
    for part, name in (("experts", "expert_swiglu_limit_list"), ("shared_experts", "share_expert_swiglu_limit_list")):
        for layer, limit in zip(model.model.layers, case.config.get(name) or (), strict=False):
            if limit and hasattr(layer.mlp, part):  # not in dense layers
                getattr(layer.mlp, part).act_fn = _CappedSilu(limit)


def prompt(case: Case, tokens: int) -> np.ndarray:
    return np.random.default_rng(case.seed).integers(0, case.text["vocab_size"], tokens)


@contextlib.contextmanager
def recurrent(model: Any) -> Iterator[None]:
    """Linear layers take one token after another, as when they generate, not chunks of 64."""
    modules = {sys.modules[type(module).__module__] for module in getattr(model, "modules", tuple)()}
    with contextlib.ExitStack() as changes:
        for module in modules:
            if hasattr(module, "torch_chunk_gated_delta_rule"):
                recurrence = module.torch_recurrent_gated_delta_rule
                changes.enter_context(mock.patch.object(module, "torch_chunk_gated_delta_rule", recurrence))
            if hasattr(module, "chunk_kimi_delta_attention"):
                recurrence = module.recurrent_kimi_delta_attention
                changes.enter_context(mock.patch.object(module, "chunk_kimi_delta_attention", recurrence))
            if hasattr(module, "mamba2_chunk_scan"):
                scan = functools.partial(_scan_by_token, module.mamba2_selective_state_update)
                changes.enter_context(mock.patch.object(module, "mamba2_chunk_scan", scan))
        yield


def _scan_by_token(
    update: Any,
    values: torch.Tensor,
    steps: torch.Tensor,
    rates: torch.Tensor,
    keys: torch.Tensor,
    queries: torch.Tensor,
    *,
    D: torch.Tensor,
    dt_bias: torch.Tensor,
    initial_states: torch.Tensor | None,
    return_final_states: bool,
    dt_limit: tuple[float, float],
    **others: Any,
) -> Any:
    """The scan of Mamba-2 by the function that transformers has for single tokens, which knows no limits of steps."""
    assert tuple(dt_limit) == (0, float("inf"))
    batch, tokens, heads, width = values.shape
    size = keys.shape[-1]
    state = torch.zeros(batch, heads, width, size) if initial_states is None else initial_states.clone()
    wide = rates[:, None, None].expand(-1, width, size)
    outputs = []
    for t in range(tokens):
        step = steps[:, t, :, None].expand(-1, -1, width)
        more = {"D": D[:, None].expand(-1, width), "dt_bias": dt_bias[:, None].expand(-1, width), "dt_softplus": True}
        outputs.append(update(state, values[:, t], step, wide, keys[:, t], queries[:, t], **more))
    stacked = torch.stack(outputs, dim=1)
    return (stacked, state) if return_final_states else stacked


def run(model: Any, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits `(T, V)`, and for each token whether its routing is clear in every layer, `(T,)`."""
    if isinstance(model, published_code.Model):
        return published_code.run(model, ids)
    margins = []

    def add_margin(scores: torch.Tensor, kept: int) -> None:
        """How clear it is which `kept` scores of each row are the largest."""
        ordered = torch.sort(scores, dim=-1, descending=True).values
        if kept < ordered.shape[1]:
            margins.append((ordered[:, kept - 1] - ordered[:, kept]).numpy())

    def add_nearness(logits: torch.Tensor, jitter: float) -> None:
        """How clear it is which logits are near the largest, and which is that, for both of the experts of a token."""
        add_margin(logits, 1)
        ordered = torch.sort(logits, dim=-1, descending=True).values
        for place in (0, 1):
            largest = ordered[:, place : place + 1]
            far = (largest - logits) / torch.maximum(logits.abs(), largest)
            margins.append((far - 2 * jitter).abs().min(dim=-1).values.numpy())

    def watch(module: Any, inputs: Any, output: Any) -> None:
        name = type(module).__name__
        if name == "DbrxRouter":
            add_margin(output, model.config.ffn_config.moe_top_k)
            return
        if name == "Llama4Router":
            add_margin(output[1], module.top_k)
            return
        if name == "PhimoeTopKRouter":
            add_nearness(output[0], module.router_jitter_noise)
        scores = output[0].float()
        if name == "DeepseekV4TopKRouter":
            add_margin(torch.nn.functional.softplus(scores).sqrt() + module.e_score_correction_bias, module.top_k)
            return
        if name == "Mistral4TopkRouter":
            scores = scores.softmax(dim=-1)
        bias = getattr(module, "e_score_correction_bias", None)
        if len(inputs) > 1:
            bias = inputs[1] if getattr(module, "use_expert_bias", True) else 0
        if bias is not None:
            scores = (scores if "Kolibri" in type(module).__name__ else scores.sigmoid()) + bias
        if getattr(module, "num_group", None):
            groups = scores.view(len(scores), module.num_group, -1)
            best = 1 if "DeepseekV2" in type(module).__name__ else 2
            sums = groups.topk(best).values.sum(dim=-1)
            add_margin(sums, module.topk_group)
            kept = sums >= sums.sort(dim=-1, descending=True).values[:, module.topk_group - 1, None]
            scores = groups.masked_fill(~kept[:, :, None], -torch.inf).flatten(1)
        elif "Longcat" in type(module).__name__:
            scores = output[0].softmax(dim=-1) + bias
        elif hasattr(module, "moe_statics"):
            scores = scores.softmax(dim=-1) + module.moe_statics.e_score_correction_bias
        add_margin(scores, module.config.top_k_experts if "Gemma" in type(module).__name__ else module.top_k)

    def watch_choice(indexer: Any, module: Any, inputs: Any, output: torch.Tensor) -> None:
        """How clear it is which blocks each token chooses of those that it may see."""
        scores, kept = output[0], indexer.index_topk
        seen = (torch.arange(len(scores)) + 1) // indexer.compress_rate
        visible = torch.arange(scores.shape[1]) < seen[:, None]
        ordered = torch.sort(scores.masked_fill(~visible, -torch.inf), dim=-1, descending=True).values
        if kept < ordered.shape[1]:
            gaps = ordered[:, kept - 1] - ordered[:, kept]
            margins.append(torch.where(seen > kept, gaps, torch.inf).numpy())

    routers = ("topkrouter", "moev1gate", "choicerouter", "textrouter", "llama4router", "dbrxrouter")
    hooks = [
        module.register_forward_hook(watch)
        for module in model.modules()
        if type(module).__name__.lower().endswith(routers)
    ]
    for indexer in model.modules():
        if type(indexer).__name__ == "DeepseekV4Indexer":
            hooks.append(indexer.scorer.register_forward_hook(functools.partial(watch_choice, indexer)))
    # The model for images too cannot run without one in this class; the text part is the same.
    text = model.language_model if type(model).__name__ == "Llama4ForConditionalGeneration" else model
    with torch.no_grad():
        logits = text(torch.from_numpy(ids)[None]).logits[0].numpy()
    for hook in hooks:
        hook.remove()
    clear = np.min(margins, axis=0) > CLEAR_ROUTING if margins else np.ones(len(ids), bool)
    # What a token says is seen by every later one.
    return logits, np.logical_and.accumulate(clear)


def run_with_input(model: Any, read: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, bool]:
    """Logits `(T, V)` of a text that is written token by token after an input, and whether all routing is clear.

    Not in one pass: there the decoder's experts would have a capacity too.
    """
    margins: list[torch.Tensor] = []

    def watch(module: Any, inputs: Any, output: Any) -> None:
        ordered = torch.sort(output[2].flatten(0, 1), dim=-1, descending=True).values
        if ordered.shape[1] > 1:
            margins.append(ordered[:, 0] - ordered[:, 1])

    hooks = [m.register_forward_hook(watch) for m in model.modules() if type(m).__name__.endswith("Top1Router")]
    rows = []
    with torch.no_grad():
        encoded = model.encoder(torch.from_numpy(read)[None])
        cache = None
        for token in torch.from_numpy(ids):
            step = model(encoder_outputs=encoded, decoder_input_ids=token[None, None], cache=cache, use_cache=True)
            cache = step.cache
            rows.append(step.logits[0, 0].numpy())
    for hook in hooks:
        hook.remove()
    return np.stack(rows), not margins or bool(torch.cat(margins).min() > CLEAR_ROUTING)


def save(model: Any, case: Case, folder: Path) -> None:
    """Write a checkpoint in the case's layout, weights in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, published_code.Model):
        published_code.save(model, folder)
        return
    if case.model_type == mixtures.FAMILY:
        mixtures.save(model, case, folder)
        return
    model.save_pretrained(folder)  # float32, for config.json and the names of the files layout
    (folder / "generation_config.json").unlink(missing_ok=True)
    if case.layout == "files":
        from safetensors.torch import load_file

        state = load_file(folder / "model.safetensors")
        # A rule for its vision tower renames the layers of the text part too, which published files call so.
        state = {
            name.replace("language_model.model.blocks.", "language_model.model.layers."): state[name] for name in state
        }
        if "linear_attn_config" in case.config:  # as published, where a rule for experts leaves dense layers alone
            state = {re.sub(r"block_sparse_moe\.(\w+_proj)", r"mlp.\1", name): state[name] for name in state}
        if case.model_type == "step3p5":
            state = {name: tensor for name, tensor in state.items() if not name.startswith("vi")}
    else:
        state = {name: tensor for name, tensor in model.state_dict().items() if not _is_tied(name, case)}
    kept = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_file({name: tensor.contiguous() for name, tensor in kept.items()}, folder / "model.safetensors")
    path = folder / "config.json"
    if case.model_type == "step3p5":  # the class writes the other kind of config
        config = {"architectures": ["Step3p5ForCausalLM"], "model_type": "step3p5", **case.config}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        return
    config = json.loads(path.read_text()) | {"model_type": case.model_type}  # some classes have several
    if case.model_type in PUBLISHED_MINIMAX:
        config = _published_minimax(config)
    path.write_text(json.dumps(_legacy(config) if case.legacy else config, indent=2, sort_keys=True) + "\n")


def _published_minimax(config: dict[str, Any]) -> dict[str, Any]:
    """The same config with the keys of published files, of which transformers has a copy with others."""
    config = dict(config)
    kinds = config.pop("layer_types")
    for kind, older in (("full_attn", "full_attention"), ("linear_attn", "linear_attention"), ("mlp", "mlp")):
        for letter in ("alpha", "beta"):
            config[f"layernorm_{older}_{letter}"] = config.pop(f"{kind}_{letter}_factor")
    config |= {"attn_type_list": [int(kind == "full_attention") for kind in kinds], "postnorm": True}
    return config | {"rotary_dim": config["head_dim"], "shared_intermediate_size": 0}


def _is_tied(name: str, case: Case) -> bool:
    return name == "lm_head.weight" and bool(case.text.get("tie_word_embeddings"))


def _legacy(config: dict[str, Any]) -> dict[str, Any]:
    """The same config with the keys of transformers 4."""
    config = dict(config)
    scaling = dict(config.pop("rope_parameters"))
    config["rope_theta"] = scaling.pop("rope_theta")
    kind = scaling.pop("rope_type")
    if "partial_rotary_factor" in scaling:
        config["partial_rotary_factor"] = scaling.pop("partial_rotary_factor")
    plain = kind == "default" and config["model_type"] != "gpt_oss"  # its classes take null for YaRN
    config["rope_scaling"] = None if plain else {"type": kind, **scaling}
    config["torch_dtype"] = config.pop("dtype")
    if config["model_type"] not in _LISTED:
        config.pop("layer_types", None)
    if "num_local_experts" in config and config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.pop("num_local_experts")
    return config
