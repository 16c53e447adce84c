"""Reads rotary positions: `rope_theta` and `rope_scaling` of older files, `rope_parameters` of newer ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from edgemoe.architectures.config import DAMAGED, ConfigReader, checked_number, show, unsupported
from edgemoe.errors import SourceError
from edgemoe.model.rope import RopeSpec

LARGEST_THETA = 1e12
SMALLEST_NUMBER = 1e-6
"""Exclusive lower bound of every parameter of a rule, so that no float32 quotient of two of them overflows."""
LAYER_TYPES = ("full_attention", "sliding_attention")
"""The types of layers that positions may differ between."""
_NUMBERS = {
    "default": (),
    "dynamic": ("alpha", "factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    "linear": ("factor",),
    "longrope": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "short_factor",
        "long_factor",
        "short_mscale",
        "long_mscale",
    ),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "proportional": ("factor",),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
}
"""The scaling rules, each with its keys."""
_OF_IMAGES = frozenset({"mrope_section", "mrope_interleaved"})
"""Keys that say which channels rotate by a place in an image or video. In text all of them rotate by the position."""


def read_rope(
    reader: ConfigReader,
    head_dim: int,
    default_theta: float,
    max_positions: int,
    default_partial: float | None = None,
    fixed_alpha: bool = False,
    layer_type: str = "",
    theta_key: str = "rope_theta",
    others: frozenset[str] = frozenset(),
) -> RopeSpec:
    """The rotary positions of heads of width `head_dim`, every parameter filled in. Raises SourceError.

    `default_partial` is the part of each head that is rotated, if the file does not say; None: whole heads only. With
    `fixed_alpha` the rule that is called dynamic stretches all periods by `alpha`, however long a text is.
    With a `layer_type` the file may have an object for each type of layer, of which this type's is read; without such
    objects all types have the same positions, but for a theta under a `theta_key` of the type.
    The objects may have the keys of `others` too, which the caller reads.
    A file may contain both forms, and the two often differ in which parameters they leave to the defaults. Each form is
    read separately, with the keys beside it; both must give the same positions.
    """
    theta, partial = reader.value(theta_key), reader.value("partial_rotary_factor")
    found = {}
    for name in ("rope_scaling", "rope_parameters"):
        value = reader.value(name)
        if value is not None and not isinstance(value, Mapping):
            raise SourceError(f"config.json: {name} is {show(value)}; expected an object or null.", DAMAGED)
        if value:
            found[name] = {
                key: inner for key, inner in _of_layer_type(name, value, layer_type).items() if key not in others
            }
    specs = {
        name: _read_form(
            name,
            parameters,
            head_dim,
            _rotated(name, parameters, head_dim, partial, default_partial),
            _theta(name, parameters, theta, default_theta),
            max_positions,
            fixed_alpha,
        )
        for name, parameters in (found or {"rope_parameters": {}}).items()
    }
    if len(specs) == 2 and specs["rope_scaling"] != specs["rope_parameters"]:
        raise SourceError(
            "config.json: rope_scaling and rope_parameters differ: "
            + " and ".join(f"{name} means {_describe(spec)}" for name, spec in specs.items())
            + "; expected the same positions from both.",
            DAMAGED,
        )
    return next(iter(specs.values()))


def _of_layer_type(form: str, value: Mapping[Any, Any], layer_type: str) -> Mapping[Any, Any]:
    """The parameters of one type of layer, out of an object for each type or of one for all."""
    if not layer_type or not any(isinstance(inner, Mapping) for inner in value.values()):
        return value
    inner = value.get(layer_type)
    if not isinstance(inner, Mapping):
        raise SourceError(f"config.json: {form}.{layer_type} is {show(inner)}; expected an object.", DAMAGED)
    for name, other in value.items():
        if name not in LAYER_TYPES and other is not None:
            raise unsupported(f"{form}.{show(name)}", other, "an object for each type of layer")
    return inner


def _read_form(
    form: str,
    parameters: dict[Any, Any],
    head_dim: int,
    rotated: int,
    theta: float,
    max_positions: int,
    fixed_alpha: bool,
) -> RopeSpec:
    """The positions that one object describes. `form` is its name in the file."""
    rule = _rule(parameters)
    if rule == "dynamic" and not (fixed_alpha and parameters.get("alpha")):
        fixed = f"rope_type {show(rule)} with {form}.alpha, or " * fixed_alpha
        raise unsupported("rope_type", rule, fixed + ", ".join(show(name) for name in _NUMBERS if name != rule))

    def number(name: str, default: float | None = None) -> float:
        return checked_number(f"{form}.{name}", parameters.get(name), default, above=SMALLEST_NUMBER)

    for name, value in parameters.items():
        stretches_nothing = rule == "default" and name == "factor" and value is not None and number("factor") == 1
        known = name in _NUMBERS[rule] or name in _OF_IMAGES
        if value is not None and not known and not stretches_nothing:
            raise unsupported(f"{form}.{show(name)}", value, f"rope_type {show(rule)} without it")
    if rule == "default":
        return RopeSpec(theta, rotated)
    if rule == "dynamic":
        return RopeSpec(_stretched(number("alpha"), rotated, theta), rotated)
    if rule == "linear":
        factor = number("factor")
        return RopeSpec(theta, rotated) if factor == 1 else RopeSpec(theta, rotated, "linear", {"factor": factor})
    if rule == "proportional":
        return RopeSpec(theta, head_dim, "proportional", {"factor": number("factor", 1.0), "pairs": rotated // 2})
    original = number("original_max_position_embeddings", float(max_positions))
    if rule == "llama3":
        return RopeSpec(theta, rotated, "llama3", _llama3(form, number, original))
    if rule == "longrope":
        return _longrope(form, parameters, number, original, RopeSpec(theta, rotated), max_positions)
    return RopeSpec(theta, rotated, "yarn", _yarn(form, parameters, number, original, max_positions))


def _rotated(form: str, parameters: dict[Any, Any], head_dim: int, outer: Any, default: float | None) -> int:
    """The channels of each head that are rotated: the whole part of the head width times the factor."""
    inner = parameters.pop("partial_rotary_factor", None)
    if outer is not None and inner is not None and outer != inner:
        raise SourceError(
            f"config.json: partial_rotary_factor is {show(outer)}, but {show(inner)} in {form}; expected one value.",
            DAMAGED,
        )
    factor = outer if inner is None else inner
    if default is None:
        if factor is not None and (isinstance(factor, bool) or factor != 1):
            raise unsupported("partial_rotary_factor", factor, "rotation of whole heads (1.0)")
        return head_dim
    rotated = int(head_dim * checked_number("partial_rotary_factor", factor, default, maximum=1.0))
    if rotated % 2 or not rotated:
        raise SourceError(
            f"config.json: partial_rotary_factor is {show(factor)}, which rotates {rotated} of {head_dim} channels of "
            "a head; expected an even number of at least 2, as positions rotate pairs.",
            DAMAGED,
        )
    return rotated


def _describe(spec: RopeSpec) -> str:
    """Format a RopeSpec for a message."""
    numbers = [f"{name} {value:g}" for name, value in spec.parameters.items()]
    return f"{spec.scaling} ({', '.join([f'rope_theta {spec.theta:g}', *numbers])})"


def _theta(form: str, parameters: dict[Any, Any], outer: Any, default: float) -> float:
    inner = parameters.pop("rope_theta", None)
    theta = outer if inner is None else inner
    value = checked_number("rope_theta", theta, default, above=1.0, maximum=LARGEST_THETA)
    if outer is not None and inner is not None and outer != inner:
        raise SourceError(
            f"config.json: rope_theta is {show(outer)}, but {show(inner)} in {form}; expected one value.",
            DAMAGED,
        )
    return value


def _rule(parameters: dict[Any, Any]) -> str:
    old, new = parameters.pop("type", None), parameters.pop("rope_type", None)
    rule = old if new is None else new
    if rule is None:
        rule = "default"
    if rule == "deepseek_yarn":  # another program's name of it
        rule = "yarn"
    if old is not None and new is not None and old != new:
        raise SourceError(f"config.json: rope_type is {show(new)}, but type is {show(old)}; expected one.", DAMAGED)
    if not isinstance(rule, str) or rule not in _NUMBERS:
        raise unsupported("rope_type", rule, ", ".join(map(show, _NUMBERS)))
    return rule


def _stretched(alpha: float, rotated: int, theta: float) -> float:
    """The theta of NTK-aware positions (Hunyuan): the longest period grows by `alpha`, the shortest stays."""
    if rotated < 4:
        raise unsupported("head_dim", rotated, 'rope_type "dynamic" for heads of at least 4 channels')
    stretched = theta * min(alpha, LARGEST_THETA) ** (rotated / (rotated - 2))
    return checked_number("rope_theta", stretched, above=1.0, maximum=LARGEST_THETA)


def _llama3(form: str, number: Callable[..., float], original: float) -> dict[str, float]:
    low, high = number("low_freq_factor"), number("high_freq_factor")
    if high < low:
        raise SourceError(
            f"config.json: {form}.high_freq_factor is {high:g}; expected at least low_freq_factor, {low:g}.",
            DAMAGED,
        )
    return {
        "factor": number("factor"),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _longrope(
    form: str,
    parameters: dict[Any, Any],
    number: Callable[..., float],
    original: float,
    plain: RopeSpec,
    max_positions: int,
) -> RopeSpec:
    """LongRoPE (Ding et al. 2024): divisors of each pair for short contexts and for long ones, and a gain for each."""
    if not original.is_integer() or original < 2:
        expected = "expected a whole number of at least 2"
        raise SourceError(f"config.json: {form}.original_max_position_embeddings is {original:g}; {expected}.", DAMAGED)
    stretched = number("factor", max_positions / original)
    usual = math.sqrt(1 + math.log(stretched) / math.log(original)) if stretched > 1 else 1.0
    gain = number("attention_factor", usual)
    return replace(
        plain,
        scaling="longrope",
        parameters={
            "original_max_position_embeddings": original,
            "short_gain": number("short_mscale", gain),
            "long_gain": number("long_mscale", gain),
        },
        short_factors=_factors(form, parameters, "short_factor", plain.rotated // 2),
        long_factors=_factors(form, parameters, "long_factor", plain.rotated // 2),
    )


def _factors(form: str, parameters: dict[Any, Any], name: str, pairs: int) -> tuple[float, ...]:
    listed = parameters.get(name)
    if not isinstance(listed, (list, tuple)) or len(listed) != pairs:
        found = f"{len(listed)} numbers" if isinstance(listed, (list, tuple)) else show(listed)
        raise SourceError(f"config.json: {form}.{name} is {found}; expected a list of {pairs} numbers.", DAMAGED)
    return tuple(checked_number(f"{form}.{name}", value, above=SMALLEST_NUMBER) for value in listed)


def _yarn(
    form: str, parameters: dict[Any, Any], number: Callable[..., float], original: float, max_positions: int
) -> dict[str, float]:
    fast, slow = number("beta_fast", 32.0), number("beta_slow", 1.0)
    if fast < slow:
        raise SourceError(f"config.json: {form}.beta_fast is {fast:g}; expected at least beta_slow, {slow:g}.", DAMAGED)
    truncate = parameters.get("truncate")
    if truncate is not None and not isinstance(truncate, bool):
        raise SourceError(f"config.json: {form}.truncate is {show(truncate)}; expected true or false.", DAMAGED)
    factor = number("factor", max_positions / original)
    return {
        "factor": factor,
        "original_max_position_embeddings": original,
        "attention_factor": number("attention_factor", _yarn_attention_factor(parameters, number, factor)),
        "beta_fast": fast,
        "beta_slow": slow,
        "truncate": 0.0 if truncate is False else 1.0,
    }


def _yarn_attention_factor(parameters: dict[Any, Any], number: Callable[..., float], factor: float) -> float:
    """YaRN's attention factor: Peng et al. 2023, section 3.4; the two `mscale` numbers come from DeepSeek-V2."""

    def gain(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        return gain(number("mscale")) / gain(number("mscale_all_dim"))
    return gain(1.0)
