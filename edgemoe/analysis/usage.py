"""Which experts a text uses: by domain, and by token.

Letters as in `text_pass.py`; `G` domains, `U` different tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgemoe.analysis.text_pass import Integers, LayerPass

Counts = npt.NDArray[np.int64]

SHOWN_TOKENS = 5
"""How many tokens of an expert are named."""
LEAST_TIMES = 3
"""A token is named that an expert takes at least as often."""


@dataclass(frozen=True)
class Texts:
    """The tokens of one or more texts, in the order in which they go through a model."""

    names: tuple[str, ...]
    """The names of the texts: a domain each."""
    ids: Integers
    """`(N,)`."""
    domain: Integers
    """The number of each token's text `(N,)`."""


@dataclass(frozen=True)
class Usage:
    """How the text's tokens use the experts of a layer."""

    shares: npt.NDArray[np.float64]
    """The share of each domain's choices that each expert has `(G, E)`."""
    domain_information: float
    """The mutual information of a choice's domain and its expert, nats."""
    token_predicts: float
    """The share of tokens whose first expert is the one that other occurrences of the same token have most often."""
    most_frequent: float
    """The share of tokens whose first expert is the one that most tokens have: what a guess without a look has."""
    tokens: tuple[tuple[int, ...], ...]
    """For each expert the ids of tokens that it takes most often, beyond the share of choices that it has of all."""


def usage_of(layer: LayerPass, texts: Texts) -> Usage:
    """Count the layer's choices."""
    total = layer.num_experts
    by_domain = np.stack([_counts(layer.chosen[texts.domain == domain], total) for domain in range(len(texts.names))])
    shares = by_domain / np.maximum(by_domain.sum(axis=1, keepdims=True), 1)
    kinds, which = np.unique(texts.ids, return_inverse=True)
    first = layer.chosen[:, 0]
    known = first >= 0
    table = np.zeros((len(kinds), total), np.int64)
    np.add.at(table, (which[known], first[known]), 1)
    counts = np.zeros((len(kinds), total), np.int64)
    for choice in layer.chosen.T:
        some = choice >= 0
        np.add.at(counts, (which[some], choice[some]), 1)
    return Usage(
        shares,
        information(by_domain),
        _predicted(table, which[known], first[known]),
        float(table.sum(axis=0).max() / max(table.sum(), 1)),
        tuple(_named(counts[:, expert], counts.sum(axis=1), kinds) for expert in range(total)),
    )


def _counts(chosen: Integers, total: int) -> Counts:
    return np.bincount(chosen[chosen >= 0], minlength=total)


def information(counts: Counts) -> float:
    """The mutual information of rows and columns of a table of counts, in nats."""
    joint = counts / max(counts.sum(), 1)
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    some = joint > 0
    return float((joint[some] * np.log(joint[some] / apart[some])).sum())


def _predicted(table: Counts, which: npt.NDArray[np.int64], first: Integers) -> float:
    """The share of tokens that others of the same kind predict, of those that have others."""
    others = table[which].copy()
    others[np.arange(len(first)), first] -= 1
    some = others.any(axis=1)
    return float((others[some].argmax(axis=1) == first[some]).mean()) if some.any() else 0.0


def _named(own: Counts, of_all: Counts, kinds: Integers) -> tuple[int, ...]:
    """The tokens that an expert takes most often, of those that it takes more often than its share of choices."""
    usual = own.sum() / max(of_all.sum(), 1)
    marked = np.flatnonzero((own >= LEAST_TIMES) & (own > usual * of_all))
    order = marked[np.argsort(-own[marked], kind="stable")][:SHOWN_TOKENS]
    return tuple(int(kinds[one]) for one in order)
