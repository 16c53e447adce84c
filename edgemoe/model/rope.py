"""Rotary positions as tables of cosines and sines, computed from a `RopeSpec`.

Angles are computed in float32, a float32 frequency times the position, as in training; cosines and
sines are then rounded once from double precision, so that they are the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgemoe.model.plain import ZERO_ALLOWED

Floats = npt.NDArray[np.float32]

_CHUNK_POSITIONS = 4096  # limits the size of double precision temporaries

_PARAMETERS = {
    "none": frozenset[str](),
    "linear": frozenset({"factor"}),
    "longrope": frozenset({"original_max_position_embeddings", "short_gain", "long_gain"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
    "proportional": frozenset({"factor", "pairs"}),
    "yarn": frozenset(
        {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "truncate"}
    ),
}
_SMALLEST_PARAMETER = 1e-12


@dataclass(frozen=True)
class RopeSpec:
    """Rotary positions of one layer. `scaling` names the rule; `parameters` has its numbers."""

    theta: float
    rotated: int
    """How many channels of each head are rotated, from the first one on; the others keep their values."""
    scaling: Literal["none", "linear", "llama3", "longrope", "proportional", "yarn"] = "none"
    parameters: Mapping[str, float] = field(default_factory=dict)
    pairing: Literal["halves", "neighbours"] = "halves"
    """Which channels are rotated together: those of two halves, or each even one with the odd one after it."""
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    """Divisors of each pair's frequency, of `longrope`: in contexts up to the original length, and in longer ones."""

    def __hash__(self) -> int:
        return hash((self.theta, self.rotated, self.scaling, tuple(sorted(self.parameters.items()))))

    @property
    def longest_short(self) -> int | None:
        """The longest context that has the short factors; None where all contexts have the same positions."""
        return int(self.parameters["original_max_position_embeddings"]) if self.scaling == "longrope" else None

    def check(self, head_dim: int) -> None:
        """Raise ValueError for numbers that contradict the rule, or a width that heads do not have."""
        p = self.parameters
        if p.keys() != _PARAMETERS[self.scaling] or self.theta <= 1:
            raise ValueError(f"rope {self.scaling} of theta {self.theta:g} with {', '.join(p) or 'no numbers'}")
        for name, number in p.items():
            if number < _SMALLEST_PARAMETER and name != "truncate":
                raise ValueError(f"rope: {name} is {number:g}")
        if self.scaling == "llama3" and p["low_freq_factor"] > p["high_freq_factor"]:
            raise ValueError("rope: low_freq_factor is above high_freq_factor")
        if self.scaling == "proportional" and not 1 <= p["pairs"] <= self.rotated // 2:
            raise ValueError(f"rope: {p['pairs']:g} of {self.rotated // 2} pairs turn")
        pairs = self.rotated // 2 if self.scaling == "longrope" else 0
        if len(self.short_factors) != pairs or len(self.long_factors) != pairs:
            found = f"{len(self.short_factors)} short and {len(self.long_factors)} long factors"
            raise ValueError(f"rope: {found} where {pairs} of each are expected")
        if self.rotated % 2 or not 0 < self.rotated <= head_dim:
            raise ValueError(f"rope: {self.rotated} of {head_dim} channels are rotated")


@dataclass(frozen=True)
class Temperature:
    """A factor of queries that grows with their position: `1 + scale * ln(1 + floor((position + first) / period))`.

    So softmax stays as sharp over many keys (Llama 4; Nakanishi 2025, arXiv 2501.19399).
    """

    scale: float
    period: int
    first: int = field(default=1, metadata=ZERO_ALLOWED)
    """The number of the first position, as a family counts: 1, or 0 (Mistral Small 4)."""


@dataclass(frozen=True)
class LogTemperature:
    """A factor of scores that is 1 up to the position `length`, and `ln(position) / ln(length)` beyond it (Grok-2).

    It applies after the cap of scores, whose bound it makes wider; one of queries would not.
    """

    length: int

    def check(self) -> None:
        """Raise ValueError for a length that has no logarithm to divide by."""
        if self.length < 2:
            raise ValueError(f"temperature: a length of {self.length}")


def temperature_factors(temperature: Temperature | LogTemperature, positions: int) -> Floats:
    """The factor of every position, `(positions,)`, float32."""
    if isinstance(temperature, LogTemperature):
        reached = np.maximum(np.arange(positions), temperature.length).astype(np.float64)
        factors: Floats = (np.log(reached) / math.log(temperature.length)).astype(np.float32)
        return factors
    periods = (np.arange(positions) + temperature.first) // temperature.period
    return (1 + temperature.scale * np.log1p(periods.astype(np.float64))).astype(np.float32)


def rope_tables(spec: RopeSpec, positions: int) -> tuple[Floats, Floats]:
    """Cosines and sines of every position, each `(positions, rotated // 2)`, float32.

    The attention factor of `yarn` and the gains of `longrope` are folded into both. The factors of `longrope` follow
    from the number of positions, which is the context that an engine was opened with: a token's positions then do not
    depend on how long its text has become, as keys that were stored before could not follow.
    """
    long = spec.longest_short is not None and positions > spec.longest_short
    frequencies = rope_frequencies(spec, long)
    gains = {"yarn": "attention_factor", "longrope": "long_gain" if long else "short_gain"}
    gain = np.float32(spec.parameters[gains[spec.scaling]] if spec.scaling in gains else 1)
    cosine = np.empty((positions, spec.rotated // 2), np.float32)
    sine = np.empty_like(cosine)
    for start in range(0, positions, _CHUNK_POSITIONS):
        chunk = slice(start, min(start + _CHUNK_POSITIONS, positions))
        angles = np.arange(chunk.start, chunk.stop, dtype=np.float32)[:, None] * frequencies
        exact = angles.astype(np.float64)
        cosine[chunk] = np.cos(exact).astype(np.float32) * gain
        sine[chunk] = np.sin(exact).astype(np.float32) * gain
    return cosine, sine


def rope_frequencies(spec: RopeSpec, long: bool = False) -> Floats:
    """Radians per position of each pair, `(rotated // 2,)` (Su et al. 2021), scaled by the spec's rule.

    `long` chooses the factors of `longrope` for long contexts.
    """
    exponents = np.arange(0, spec.rotated, 2, dtype=np.float32) / np.float32(spec.rotated)
    periods = np.power(np.float64(spec.theta), exponents.astype(np.float64)).astype(np.float32)
    plain = np.float32(1) / periods
    if spec.scaling == "linear":  # Chen et al. 2023
        return plain / np.float32(spec.parameters["factor"])
    if spec.scaling == "longrope":  # LongRoPE (Ding et al. 2024)
        factors = spec.long_factors if long else spec.short_factors
        divided: Floats = np.float32(1) / (np.array(factors, np.float32) * periods)
        return divided
    if spec.scaling == "proportional":  # Gemma 4: the first pairs of whole heads turn, the others stand still
        turning = np.arange(spec.rotated // 2) < spec.parameters["pairs"]
        return np.where(turning, plain / np.float32(spec.parameters["factor"]), np.float32(0))
    if spec.scaling == "llama3":
        return _llama3(plain, spec)
    if spec.scaling == "yarn":
        return _yarn(plain, periods, spec)
    return plain


def _llama3(plain: Floats, spec: RopeSpec) -> Floats:
    """Llama 3.1: divides the frequencies of long waves by the factor, keeps short ones, interpolates in between."""
    p = spec.parameters
    original = p["original_max_position_embeddings"]
    low, high = p["low_freq_factor"], p["high_freq_factor"]
    slowed = plain / np.float32(p["factor"])
    waves = np.float32(2 * math.pi) / plain
    if low == high:  # nothing is in between (Llama 4)
        short: Floats = np.where(waves > np.float32(original / low), slowed, plain)
        return short
    blend = (np.float32(original) / waves - np.float32(low)) / np.float32(high - low)
    between = (np.float32(1) - blend) * plain / np.float32(p["factor"]) + blend * plain
    kept = np.where(waves < np.float32(original / high), plain, between)
    scaled: Floats = np.where(waves > np.float32(original / low), slowed, kept)
    return scaled


def _yarn(plain: Floats, periods: Floats, spec: RopeSpec) -> Floats:
    """YaRN (Peng et al. 2023): pairs of high frequency keep it, those of low frequency are divided by the factor."""
    p, width = spec.parameters, spec.rotated

    def pair_turning(turns: float) -> float:
        """The (fractional) index of the pair that makes `turns` turns over the original context."""
        ratio = p["original_max_position_embeddings"] / (turns * 2 * math.pi)
        return width * math.log(ratio) / (2 * math.log(spec.theta))

    first, last = pair_turning(p["beta_fast"]), pair_turning(p["beta_slow"])
    if p["truncate"]:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    span = last - first if last != first else 0.001
    pairs = np.arange(width // 2, dtype=np.float32)
    slowing = np.clip((pairs - np.float32(first)) / np.float32(span), 0, 1).astype(np.float32)
    kept = np.float32(1) - slowing
    slowed = np.float32(1) / (np.float32(p["factor"]) * periods)
    scaled: Floats = slowed * (np.float32(1) - kept) + plain * kept
    return scaled
