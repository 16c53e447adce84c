"""The result of an analysis: figures of each layer, and what they say about three observations of a paper.

The observations are those of Lo et al. 2024, "A Closer Look into Mixture-of-Experts in Large Language Models"
(arXiv 2406.18219).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

REPORT_VERSION = 1
TRACKS = 0.15
"""The least R^2 between routers' and gates' similarity in the paper: that of Grok-1 (Mixtral .33, DeepSeek .40)."""
ALIKE, UNLIKE = 0.2, 0.1
"""Experts of upcycled models had cosines of .2 to .4 in the paper, of models trained from scratch hardly any."""

Verdict = Literal["confirmed", "refuted", "undecided"]
Origin = Literal["upcycled", "scratch"]
ORIGINS = ("upcycled", "scratch")
"""Where a model's experts come from: a dense model's FFN, or a random start."""


@dataclass(frozen=True)
class LayerFigures:
    """One layer with routed experts."""

    layer: int
    num_experts: int
    top_k: int
    unused: int
    """Experts that no token of the text chose."""
    cosine: Mapping[str, float]
    """The mean cosine of two experts' matrices, by `gate`, `up` and `down`; of their rows of the `router`; and of what
    they make of the same token (`output`)."""
    router_tracks: Mapping[str, float]
    """R^2 of the similarity of two experts' router rows with that of their matrices, and of their outputs; negative
    where one falls as the other grows."""
    score_and_norm: float | None
    """The rank correlation, over all experts, of the router's score of a token and the norm of what the expert would
    give: its mean over tokens. None where logits do not choose."""
    norm_of_chosen: float
    """The norm of what chosen experts give over that of all, its mean over tokens."""
    neurons: Mapping[str, float] | None
    """`best_match`, `chance_match`, `at_work`, `idle`: see `likeness.Neurons`. None where the text is too short."""
    domain_information: float
    """Mutual information of domain and expert, nats; 0 for one text."""
    token_predicts: float
    most_frequent: float
    """See `usage.Usage`."""
    domains: Sequence[Sequence[float]]
    """The share of each domain's choices that each expert has."""
    tokens: Sequence[Sequence[str]]
    """Tokens that each expert takes most often."""


@dataclass(frozen=True)
class Observation:
    """An observation of the paper, with what this model shows."""

    claim: str
    found: str
    verdict: Verdict
    figures: Mapping[str, float]


@dataclass(frozen=True)
class AnalysisReport:
    """A model's experts over a text."""

    edgemoe_analysis: int
    version: str
    model: str
    family: str
    texts: Sequence[str]
    tokens: int
    sample_tokens: int
    """Tokens that all experts of a layer were run on."""
    layers: Sequence[LayerFigures]
    observations: Sequence[Observation]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: every field by its name."""
        return asdict(self)


def observations_of(layers: Sequence[LayerFigures], origin: Origin | None) -> tuple[Observation, ...]:
    """Hold what layers show against the three observations; the third one depends on where the model comes from."""
    found = [_tracking(layers), _norms(layers), _origin(layers, origin)]
    return tuple(one for one in found if one is not None)


def _tracking(layers: Sequence[LayerFigures]) -> Observation | None:
    name = "gate" if "gate" in layers[0].router_tracks else "up"
    if name not in layers[0].router_tracks:
        return None
    means = {part: float(np.mean([layer.router_tracks[part] for layer in layers])) for part in layers[0].router_tracks}
    verdict: Verdict = "confirmed" if means[name] >= TRACKS else "refuted"
    beside = ", ".join(f"{part} {mean:+.2f}" for part, mean in means.items() if part != name)
    return Observation(
        "experts whose router rows are alike have gate matrices that are alike (R^2 of .15 to .40)",
        f"R^2 {means[name]:+.2f} with {name}, mean over layers ({beside})",
        verdict,
        means,
    )


def _norms(layers: Sequence[LayerFigures]) -> Observation | None:
    values = [layer.score_and_norm for layer in layers if layer.score_and_norm is not None]
    if not values:
        return None
    mean = float(np.mean(values))
    spread = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("inf")
    verdict: Verdict = "confirmed" if mean - spread > 0 else "refuted" if mean + spread < 0 else "undecided"
    ratio = float(np.mean([layer.norm_of_chosen for layer in layers]))
    interval = f" ({mean - spread:+.2f} to {mean + spread:+.2f} over layers)" if len(values) > 1 else ""
    return Observation(
        "the router prefers experts that give larger outputs",
        f"rank correlation of score and norm {mean:+.2f}{interval}; chosen experts give {ratio:.2f} x the mean norm",
        verdict,
        {"rank_correlation": mean, "norm_of_chosen": ratio},
    )


def _origin(layers: Sequence[LayerFigures], origin: Origin | None) -> Observation:
    parts = [part for part in ("gate", "up", "down") if part in layers[0].cosine]
    means = {part: float(np.mean([layer.cosine[part] for layer in layers])) for part in parts}
    mean = float(np.mean(list(means.values())))
    likeness = "alike" if mean >= ALIKE else "hardly alike" if mean < UNLIKE else "a little alike"
    verdict: Verdict = "undecided"
    if origin is not None:
        as_claimed = mean >= ALIKE if origin == "upcycled" else mean < UNLIKE
        verdict = "confirmed" if as_claimed else "refuted"
    each = ", ".join(f"{part} {value:+.3f}" for part, value in means.items())
    of_origin = {"upcycled": "this one was upcycled", "scratch": "this one was trained from scratch"}
    told = "where this one comes from was not said" if origin is None else of_origin[origin]
    return Observation(
        "experts are alike in upcycled models (cosine .2 to .4), and hardly in models trained from scratch",
        f"mean cosine {each}: {likeness}; {told}",
        verdict,
        means,
    )
