"""From logits to the next token.

Filters act in this order, each on what the one before left: temperature, top-k, top-p, min-p. It is the
order of transformers, so that a model's published settings mean the same here.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe.errors import EdgemoeError, UsageError

TOP_CANDIDATES = 512
"""The likeliest tokens are sorted among so many first; the whole vocabulary only where these do not reach."""


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn. Raises UsageError for values out of range.

    temperature: 0 takes the likeliest token (the lowest id on a tie), whatever the filters say.
    top_k: keep so many of the likeliest; 0 keeps all.
    top_p: keep the likeliest that together reach this probability; 1 keeps all.
    min_p: keep those at least this fraction as likely as the likeliest; 0 keeps all.
    seed: the same seed gives the same tokens; None draws a new one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, lambda x: 0.0 <= x <= 100.0, "0 (greedy) to 100")
        _check("top-k", self.top_k, lambda x: x >= 0, "0 (off) or more", whole=True)
        _check("top-p", self.top_p, lambda x: 0.0 < x <= 1.0, "above 0, up to 1 (off)")
        _check("min-p", self.min_p, lambda x: 0.0 <= x <= 1.0, "0 (off) to 1")
        if self.seed is not None:
            _check("seed", self.seed, lambda x: 0 <= x < 2**64, "0 to 2^64 - 1", whole=True)

    def changed(self, **given: Any) -> SamplingOptions:
        """These options, but for those given that are not None."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any]) -> SamplingOptions:
        """The defaults of a model's generation_config.json: greedy where it does not ask for sampling."""
        if not config.get("do_sample"):
            return cls()
        names = ("temperature", "top_k", "top_p", "min_p")
        return cls(temperature=1.0).changed(**{name: config.get(name) for name in names})


def _check(name: str, value: Any, valid: Callable[[Any], bool], expected: str, whole: bool = False) -> None:
    if not isinstance(value, numbers.Integral if whole else numbers.Real) or not valid(value):  # NaN is never valid
        raise UsageError(f"{name}: expected {expected}, found {str(value)[:80]}.", "See edgemoe run --help.")


class Sampler:
    """Draws tokens by the options, from one random stream."""

    def __init__(self, options: SamplingOptions) -> None:
        self.options = options

    @cached_property
    def _random(self) -> np.random.Generator:
        return np.random.default_rng(self.options.seed)  # whose import greedy decoding does without

    def sample(self, logits: npt.NDArray[np.float32]) -> int:
        """The next token. Shapes: logits `(V,)`. Raises EdgemoeError where a logit is not a finite number."""
        best = int(np.argmax(logits))
        if not (math.isfinite(logits[best]) and math.isfinite(logits.min())):
            raise EdgemoeError(
                "the model's logits are not all finite numbers.",
                "Its weights are damaged or overflow: check the store with edgemoe verify.",
            )
        if self.options.temperature == 0:
            return best
        tokens, probabilities = candidates(logits, self.options)
        # Inverse of the cumulative distribution: one draw per token, whatever the filters.
        cumulative = np.cumsum(probabilities)
        place = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        return int(tokens[min(place, len(tokens) - 1)])


def candidates(
    logits: npt.NDArray[np.float32], options: SamplingOptions
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The tokens that the filters leave, with their probabilities.

    In order of falling likelihood (the lower id first on a tie) under top-k or top-p, else of ids.

    Shapes: logits `(V,)`, results `(n,)`, the probabilities summing to one. The temperature is above 0.
    """
    scaled = logits.astype(np.float64)
    # a tiny temperature may overflow the differences to -inf, whose weight is rightly 0
    with np.errstate(over="ignore"):
        scaled = (scaled - scaled.max()) / options.temperature
    weights = np.exp(scaled)  # the likeliest has weight 1
    if options.top_k:
        tokens = _likeliest(weights, options.top_k)
    elif options.top_p < 1.0:
        tokens = _likeliest(weights, TOP_CANDIDATES)
        if weights[tokens].sum() < options.top_p * weights.sum():
            tokens = _likeliest(weights, len(weights))
    else:
        tokens = np.arange(len(weights))
    kept = weights[tokens]
    if options.top_p < 1.0:
        total = kept.sum() if options.top_k else weights.sum()
        # a token stays while those before it have not yet reached p; the first always does
        kept = kept[np.cumsum(kept) - kept < options.top_p * total]
        tokens = tokens[: len(kept)]
    if options.min_p > 0.0:
        likely = kept >= options.min_p
        tokens, kept = tokens[likely], kept[likely]
    return tokens, kept / kept.sum()


def _likeliest(weights: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """The `count` largest weights' positions, largest first, the lower position on a tie."""
    count = min(count, len(weights))
    if count < len(weights):
        # every weight equal to the last one kept is taken along, so that ties go by position
        smallest = np.partition(weights, len(weights) - count)[len(weights) - count]
        positions = np.flatnonzero(weights >= smallest)
    else:
        positions = np.arange(len(weights))
    return positions[np.argsort(-weights[positions], kind="stable")][:count]
