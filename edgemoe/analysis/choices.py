"""Which experts of a layer stay, and which become one.

Pruning: REAP (Lasby et al. 2025, arXiv 2510.13999) keeps the experts of largest mean weight times norm of output, over
the tokens that are routed to them. Merging: HC-SMoE (Chen et al. 2024, arXiv 2410.08589) makes one expert of each
cluster of experts whose mean outputs are near each other, by average linkage, weighing members by their use.

Letters as in `text_pass.py`; `n` experts that a layer has afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgemoe.analysis.analyse import SAMPLE_TOKENS
from edgemoe.analysis.likeness import Doubles, all_outputs
from edgemoe.analysis.text_pass import LayerPass, TextPass
from edgemoe.conversion.calibration.settings import Windows
from edgemoe.errors import UsageError
from edgemoe.model.blocks import RoutedExperts
from edgemoe.store.reader import Store

PRUNINGS = ("REAP", "frequency", "random")
MERGERS = ("HC-SMoE", "average")
WITHOUT_TEXT = ("random", "average")
"""The methods that look at no text: what others are compared with."""
SEED = 0

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Choice:
    """The experts that a layer has afterwards: each is the mean of some of today's, or one of them as it is."""

    members: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, kept: Sequence[int]) -> Choice:
        """Keep these experts as they are."""
        return cls(tuple((expert,) for expert in kept), ((1.0,),) * len(kept))

    @property
    def plain(self) -> bool:
        """Whether no two experts become one."""
        return all(len(own) == 1 for own in self.members)


@dataclass(frozen=True)
class Method:
    """How experts become fewer."""

    name: str
    keep: float
    """The share of each layer's experts that is left, 0 to 1, both excluded."""

    @classmethod
    def of(cls, prune: str | None, merge: str | None, keep: str) -> Method:
        """The method that a person names; `keep` is a percentage such as `50%`. Raises UsageError."""
        if (prune is None) == (merge is None):
            found = "neither" if prune is None else "both"
            raise UsageError(f"expected `prune` or `merge`, found {found}.", "For example: `prune=REAP`.")
        name, known = (prune, PRUNINGS) if prune is not None else (merge, MERGERS)
        found_name = {one.lower(): one for one in known}.get(str(name).lower())
        if found_name is None:
            which = "prune" if prune is not None else "merge"
            raise UsageError(f"`{which}`: expected {', '.join(known[:-1])} or {known[-1]}, found {name}.")
        number = keep.removesuffix("%")
        try:
            share = float(number) / 100
        except ValueError:
            share = -1.0
        if not keep.endswith("%") or not 0 < share < 1:
            raise UsageError(
                f"`keep`: expected more than 0% and less than 100% of the experts, found {keep}.",
                "For example: `keep=50%`.",
            )
        return cls(found_name, share)

    def count(self, layer: int, routed: RoutedExperts) -> int:
        """How many experts a layer has afterwards. Raises UsageError where tokens choose more."""
        count = max(1, round(self.keep * routed.num_experts))
        if count >= routed.num_experts or count < routed.top_k:
            raise UsageError(
                f"`keep`: expected {routed.top_k} to {routed.num_experts - 1} of the {routed.num_experts} experts of"
                f" layer {layer}, of which a token uses {routed.top_k}; found {count}.",
                "Give another share.",
            )
        return count


def choices(
    store: Store,
    method: Method,
    routed: Mapping[int, RoutedExperts],
    groups: Mapping[int, int],
    windows: Windows | None,
    progress: Progress = lambda done, total: None,
) -> dict[int, Choice]:
    """The choice in each layer with routed experts. `groups`: in how many equal groups routers have them.

    `windows` are those of a text, which all methods need but those `WITHOUT_TEXT`. Raises UsageError for a share that
    leaves too few experts, and for a text that says nothing of an expert.
    """
    counts = {number: method.count(number, own) for number, own in routed.items()}
    if method.name == "random":
        generator = np.random.default_rng(SEED)
        return {
            number: _largest(generator.random(own.num_experts), counts[number], groups[number], number)
            for number, own in routed.items()
        }
    if method.name == "average":
        return {number: _runs(own.num_experts, counts[number]) for number, own in routed.items()}
    assert windows is not None
    text_pass, found = TextPass(store, windows), {}
    progress(0, text_pass.count)
    for layer in text_pass.layers():
        number, count = layer.number, counts[layer.number]
        if method.name == "HC-SMoE":
            means = all_outputs(layer, layer.sample(SAMPLE_TOKENS)).means
            found[number] = _weighed(average_linkage(means, count), layer.counts)
        else:
            scores = reap_scores(layer) if method.name == "REAP" else layer.counts.astype(np.float64)
            found[number] = _largest(scores, count, groups[number], number)
        progress(len(found), text_pass.count)
    return found


def reap_scores(layer: LayerPass) -> Doubles:
    """The mean of weight times norm of output over each expert's tokens `(E,)`. Raises UsageError without any."""
    counts = layer.counts
    unseen = np.flatnonzero(counts == 0)
    if len(unseen):
        raise UsageError(
            f"the text is too short for REAP: expected each expert to be chosen by a token, found {len(unseen)} of"
            f" {len(counts)} in layer {layer.number} that none chose, such as expert {unseen[0]}.",
            "Give a longer text, or `prune=frequency`.",
        )
    own = layer.chosen >= 0
    given = (layer.weights.astype(np.float64) * layer.norms)[own]
    scores: Doubles = np.bincount(layer.chosen[own], given, len(counts)) / counts
    return scores


def _largest(scores: Doubles, count: int, groups: int, layer: int) -> Choice:
    """Keep the experts of largest score, as many of each group (the lower number on a tie)."""
    if count % groups:
        raise UsageError(
            f"`keep`: expected a multiple of {groups} experts of layer {layer}, whose router has them in as many"
            f" groups; found {count}.",
            "Give another share.",
        )
    size = len(scores) // groups
    kept = [
        group * size + int(one)
        for group in range(groups)
        for one in np.argsort(-scores[group * size : (group + 1) * size], kind="stable")[: count // groups]
    ]
    return Choice.of(sorted(kept))


def _runs(experts: int, count: int) -> Choice:
    """Runs of neighbours, all weighed alike."""
    members = [tuple(map(int, own)) for own in np.array_split(np.arange(experts), count)]
    return Choice(tuple(members), tuple((1 / len(own),) * len(own) for own in members))


def _weighed(members: Sequence[tuple[int, ...]], counts: npt.NDArray[np.int64]) -> Choice:
    """Clusters whose members weigh as much as they are used; all the same where none is."""
    weights = []
    for own in members:
        used = counts[list(own)].astype(np.float64)
        used = used if used.any() else np.ones(len(own))
        weights.append(tuple((used / used.sum()).tolist()))
    return Choice(tuple(members), tuple(weights))


def average_linkage(points: Doubles, count: int) -> list[tuple[int, ...]]:
    """Clusters of points `(E, W)`, in the order of their first members.

    From one cluster for each point on, the two whose members' distances have the least mean become one.
    """
    apart = np.stack([np.linalg.norm(points - point, axis=1) for point in points])
    np.fill_diagonal(apart, np.inf)
    clusters: dict[int, tuple[int, ...]] = {number: (number,) for number in range(len(points))}
    while len(clusters) > count:
        one, other = sorted(divmod(int(apart.argmin()), len(points)))
        sizes = len(clusters[one]), len(clusters[other])
        mean = (sizes[0] * apart[one] + sizes[1] * apart[other]) / sum(sizes)
        mean[one] = np.inf
        apart[one], apart[:, one] = mean, mean
        apart[other], apart[:, other] = np.inf, np.inf
        clusters[one] = tuple(sorted(clusters[one] + clusters.pop(other)))
    return sorted(clusters.values())
