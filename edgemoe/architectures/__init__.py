"""Model families: from a checkpoint's `config.json` to a `ModelSpec`, and where each tensor lies.

A family is a module with two names: `read`, which turns a config into a `ModelSpec`, and `TENSORS`, its table. A third
one, `tail_of`, has a family whose checkpoints keep parts of a tensor as tensors of their own.
Families that differ in little share one. Nothing else in the package knows one family from another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any

from edgemoe.architectures import (
    afmoe,
    arctic,
    axk1,
    bailing_hybrid,
    bailing_moe,
    carrier,
    cohere2_moe,
    dbrx,
    deepseek,
    deepseek_v2,
    deepseek_v3,
    deepseek_v4,
    deepseek_v32,
    dots1,
    edgemoe_mixture,
    ernie4_5_moe,
    exaone_moe,
    flex_olmo,
    flint,
    gemma4,
    glm4_moe,
    glm4_moe_lite,
    gpt_oss,
    granitemoe,
    granitemoe_swa,
    granitemoehybrid,
    granitemoeshared,
    grok_1,
    grok_2,
    grove_moe,
    hunyuan_v1_moe,
    hy_v3,
    jamba,
    kimi_linear,
    kolibri1,
    laguna,
    lfm2_moe,
    llama,
    llama4,
    longcat_flash,
    mellum,
    mimo_v2_flash,
    minimax,
    minimax_m2,
    mistral4,
    mixtral,
    mtp,
    nemotron_h,
    olmoe,
    phimoe,
    qwen2_moe,
    qwen3_5_moe,
    qwen3_moe,
    qwen3_next,
    qwen4_exp,
    smallthinker,
    step3p5,
    switch_transformers,
)
from edgemoe.architectures.config import DAMAGED, ConfigReader, show
from edgemoe.architectures.resolution import checkpoint_shapes as _checkpoint_shapes
from edgemoe.architectures.resolution import embedding_copies as _embedding_copies
from edgemoe.architectures.resolution import expert_sources as _expert_sources
from edgemoe.architectures.resolution import possible_shapes as _possible_shapes
from edgemoe.architectures.resolution import resolve_tensors
from edgemoe.architectures.table import Change, Row, SourceSlice
from edgemoe.architectures.tails import Tail, rank_name
from edgemoe.architectures.unused import AUDIO, FURTHER_TOKENS, INDEXER, VISION
from edgemoe.architectures.unused import unused_tensors as _unused_tensors
from edgemoe.errors import SourceError
from edgemoe.model.spec import ModelSpec

__all__ = [
    "AUDIO",
    "FAMILIES",
    "FURTHER_TOKENS",
    "INDEXER",
    "VISION",
    "Change",
    "SourceSlice",
    "Tail",
    "checkpoint_shapes",
    "embedding_copies",
    "expert_sources",
    "has_norms_from_one",
    "model_spec",
    "possible_shapes",
    "rank_name",
    "resolve",
    "tail_in",
    "unused_tensors",
]

FAMILIES: dict[str, ModuleType] = {
    "afmoe": afmoe,
    "arctic": arctic,
    "axk1": axk1,
    "bailing_hybrid": bailing_hybrid,
    "bailing_moe": bailing_moe,
    "bailing_moe_v2": bailing_moe,
    "cohere2_moe": cohere2_moe,
    "dbrx": dbrx,
    "deepseek": deepseek,
    "deepseek_v2": deepseek_v2,
    "deepseek_v3": deepseek_v3,
    "deepseek_v32": deepseek_v32,
    "deepseek_v4": deepseek_v4,
    "dots1": dots1,
    "edgemoe_carrier": carrier,
    "edgemoe_mixture": edgemoe_mixture,
    "ernie4_5_moe": ernie4_5_moe,
    "exaone_moe": exaone_moe,
    "flex_olmo": flex_olmo,
    "flint": flint,
    "gemma4": gemma4,
    "gemma4_text": gemma4,
    "git": grok_2,
    "glm4_moe": glm4_moe,
    "glm4_moe_lite": glm4_moe_lite,
    "glm_moe_dsa": deepseek_v32,
    "gpt_oss": gpt_oss,
    "granitemoe": granitemoe,
    "granitemoe_swa": granitemoe_swa,
    "granitemoehybrid": granitemoehybrid,
    "granitemoeshared": granitemoeshared,
    "grok-1": grok_1,
    "grove_moe": grove_moe,
    "hunyuan_v1_moe": hunyuan_v1_moe,
    "hy_v3": hy_v3,
    "jamba": jamba,
    "kimi_k2": deepseek_v3,
    "kimi_k25": deepseek_v3,
    "kimi_linear": kimi_linear,
    "kolibri1": kolibri1,
    "laguna": laguna,
    "lfm2_moe": lfm2_moe,
    "llama": llama,
    "llama4": llama4,
    "llama4_text": llama4,
    "longcat_flash": longcat_flash,
    "mellum": mellum,
    "mimo_v2_flash": mimo_v2_flash,
    "minimax": minimax,
    "minimax_m1": minimax,
    "minimax_m2": minimax_m2,
    "minimax_text_01": minimax,
    "mistral3": mistral4,
    "mistral4": mistral4,
    "mixtral": mixtral,
    "nemotron_h": nemotron_h,
    "olmoe": olmoe,
    "phimoe": phimoe,
    "qwen2_moe": qwen2_moe,
    "qwen3_5_moe": qwen3_5_moe,
    "qwen3_5_moe_text": qwen3_5_moe,
    "qwen3_moe": qwen3_moe,
    "qwen3_next": qwen3_next,
    "qwen4_exp": qwen4_exp,
    "qwen4_exp_text": qwen4_exp,
    "sarvam_mla": deepseek_v3,
    "sarvam_moe": bailing_moe,
    "smallthinker": smallthinker,
    "solar_open": glm4_moe,
    "step3p5": step3p5,
    "step3p7": step3p5,
    "switch_transformers": switch_transformers,
}
"""Family modules, keyed by the `model_type` of their config."""


def model_spec(config: Mapping[str, Any]) -> ModelSpec:
    """The model that a `config.json` describes. Raises SourceError."""
    if _is_head(config):
        return mtp.head_of(model_spec(config["of"]), config["layer"])
    reader = ConfigReader(config)
    spec: ModelSpec = _family(config).read(reader)
    reader.finish()
    return spec


def _is_head(config: Mapping[str, Any]) -> bool:
    return isinstance(config, Mapping) and config.get("model_type") == mtp.MODEL_TYPE and "of" in config


def _table(config: Mapping[str, Any]) -> tuple[Row, ...]:
    if _is_head(config):
        return mtp.table_of(_table(config["of"]))
    table: tuple[Row, ...] = _family(config).TENSORS
    return table


def resolve(
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    unlisted: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, SourceSlice]:
    """Locate each tensor of the model in a checkpoint whose tensors have these names and shapes.

    Keys are those of `ModelSpec.tensors()`, in that order. `unlisted` maps tensors that the checkpoint's index leaves
    out to their shards, so that an error can name them. Raises SourceError for a tensor that is missing, left over, or
    of another shape.
    """
    return resolve_tensors(model_spec(config), _table(config), shapes, unlisted)


def checkpoint_shapes(config: Mapping[str, Any], *, stacked: bool = False) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that a checkpoint with this config has. Raises SourceError.

    If the family has several layouts, the first one in its table is used; with `stacked`, a layout that keeps all
    experts of a layer in one tensor is preferred, if the family has one.
    """
    return _checkpoint_shapes(model_spec(config), _table(config), stacked)


def possible_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of all layouts that checkpoints with this config have. Raises SourceError."""
    return _possible_shapes(model_spec(config), _table(config))


def embedding_copies(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[SourceSlice]:
    """Find the tensors of a checkpoint that must repeat its embedding, such as a head that the config ties to it.

    Raises SourceError if the shape of one is not that of the embedding.
    """
    return _embedding_copies(model_spec(config), shapes)


def expert_sources(config: Mapping[str, Any]) -> dict[tuple[int, str], list[str]]:
    """The tensors of single experts in a checkpoint that has one for each, by layer and part (such as gate or up_bias).

    Raises SourceError.
    """
    return _expert_sources(model_spec(config), _table(config))


def has_norms_from_one(config: Mapping[str, Any]) -> bool:
    """Whether checkpoints of the family keep norms as distances from 1. Raises SourceError for an unknown family."""
    return any(row.change == "plus_one" for row in _table(config))


def tail_in(config: Mapping[str, Any], name: str) -> Tail | None:
    """The tensor of a checkpoint that is the end of this one in the family's table; None if it is whole.

    Raises SourceError for a family that is not known.
    """
    tail_of: Callable[[str], Tail | None] | None = getattr(_family(config), "tail_of", None)
    return tail_of(name) if tail_of else None


def unused_tensors(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """The tensors of a checkpoint that the model does not need, each with the reason. Raises SourceError."""
    return _unused_tensors(model_spec(config), names)


def _family(config: Mapping[str, Any]) -> ModuleType:
    if _is_head(config):
        return _family(config["of"])
    if not isinstance(config, Mapping):
        raise SourceError(f"config.json holds {show(config)}; expected an object.", DAMAGED)
    model_type = config.get("model_type")
    if model_type is None:
        raise SourceError(
            f"config.json: model_type is missing; expected one of {len(FAMILIES)} families, such as olmoe.", DAMAGED
        )
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise SourceError(
            f"config.json: model_type is {show(model_type)}, which edgemoe does not run; the nearest of the"
            f" {len(FAMILIES)} that it runs are {', '.join(_nearest(model_type))}.",
            "Choose a checkpoint of a family in the README's table.",
        )
    return FAMILIES[model_type]


def _nearest(name: Any) -> list[str]:
    """The five families whose names are most like a name."""
    from difflib import SequenceMatcher  # only this error asks

    def likeness(family: str) -> float:
        return SequenceMatcher(None, str(name)[:100].lower(), family).ratio()

    return sorted(FAMILIES, key=likeness, reverse=True)[:5]
