"""From logits to the next token.

The processors change the logits first. Then filters act in this order, each on the tokens that the previous one left:
temperature, top-k, top-p, min-p, typical-p. It is the order of transformers, so that a model's published settings mean
the same here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from edgemoe.errors import UsageError
from edgemoe.model.sampling import SamplingOptions
from edgemoe.session.processors import processors

TOP_CANDIDATES = 512
"""The likeliest tokens are sorted among this many first; the whole vocabulary only where these do not reach."""


class Sampler:
    """Draws the tokens of one answer by the options, from one random stream."""

    def __init__(
        self, options: SamplingOptions, prompt_ids: Sequence[int] = (), stop_ids: Collection[int] = frozenset()
    ) -> None:
        """`prompt_ids` stand before the answer, which any of `stop_ids` ends."""
        self.options = options
        self._processors = processors(options, prompt_ids, stop_ids)

    @cached_property
    def _random(self) -> np.random.Generator:
        return np.random.default_rng(self.options.seed)  # greedy decoding does not import it

    def sample(self, logits: npt.NDArray[np.float32]) -> int:
        """The next token. Shapes: logits `(V,)`, finite numbers, which penalties change in place.

        Raises UsageError where the options leave no token.
        """
        for processor in self._processors:
            processor.apply(logits)
        best = int(np.argmax(logits))
        if self._processors and not math.isfinite(logits[best]):
            raise UsageError(
                "no token is left to choose: the settings forbid the whole vocabulary.",
                "Relax no_repeat_ngram_size, bad_words_ids, suppress_tokens or min_new_tokens.",
            )
        token = best if self.options.temperature == 0 else self._draw(logits)
        self.add(token)
        return token

    def add(self, token: int) -> None:
        """Note a token of the answer; `sample` notes the one that it chooses."""
        for processor in self._processors:
            processor.add(token)

    def _draw(self, logits: npt.NDArray[np.float32]) -> int:
        tokens, probabilities = candidates(logits, self.options)
        # Inverse of the cumulative distribution: one draw per token, whatever the filters. The place lies below the
        # whole, even where rounding says otherwise, so that no token of probability 0 is drawn.
        cumulative = np.cumsum(probabilities)
        place = min(self._random.random() * cumulative[-1], np.nextafter(cumulative[-1], 0.0))
        return int(tokens[np.searchsorted(cumulative, place, side="right")])


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
    if options.typical_p < 1.0:
        typical = _typical(kept / kept.sum(), options.typical_p)
        tokens, kept = tokens[typical], kept[typical]
    return tokens, kept / kept.sum()


def _typical(probabilities: npt.NDArray[np.float64], mass: float) -> npt.NDArray[np.bool_]:
    """The tokens whose surprise is nearest to the expected one, that together reach `mass` (TypicalLogitsWarper)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(probabilities)
        distance = np.abs(surprise - np.nansum(surprise * probabilities))
    order = np.argsort(distance, kind="stable")
    reached = int(np.searchsorted(np.cumsum(probabilities[order]), mass))
    typical: npt.NDArray[np.bool_] = distance <= distance[order[min(reached, len(order) - 1)]]
    return typical


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
