"""Looks at a model's routed experts on a text: how alike they are, what they give, and which tokens they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version

import numpy as np
import numpy.typing as npt

from edgemoe.analysis.likeness import Doubles, all_outputs, cosines, matrix_cosines, neurons, pairs
from edgemoe.analysis.report import ORIGINS, REPORT_VERSION, AnalysisReport, LayerFigures, Origin, observations_of
from edgemoe.analysis.text_pass import LayerPass, TextPass
from edgemoe.analysis.usage import Texts, usage_of
from edgemoe.conversion.calibration.settings import Windows
from edgemoe.errors import UsageError
from edgemoe.model.description import store_spec
from edgemoe.store.reader import Store

SAMPLE_TOKENS = 256
"""How many tokens of the text go through each expert of a layer."""
NEURON_TOKENS = 64
"""How many tokens of an expert its neurons are looked at with."""

Spell = Callable[[int], str]
"""Gives the text of a token's id."""
Progress = Callable[[int, int], None]
"""Called with the layers that have been looked at, and their number."""


def analyse(
    store: Store,
    name: str,
    windows: Windows,
    domains: npt.NDArray[np.int32],
    names: Sequence[str],
    *,
    spell: Spell = str,
    origin: str | None = None,
    progress: Progress = lambda done, total: None,
) -> AnalysisReport:
    """Look at every layer with routed experts. `names` are the texts', `windows` and `domains` those of `cut_texts`.

    Raises UsageError for a model that has none, and what running a model raises.
    """
    if origin is not None and origin not in ORIGINS:
        raise UsageError(f"`origin`: expected {' or '.join(ORIGINS)}, found {origin}.", "Leave it out if nobody knows.")
    text_pass = TextPass(store, windows)
    used = text_pass.windows
    body = used.ids[:, used.head :]
    texts = Texts(tuple(names), body.reshape(-1), np.repeat(domains[: len(body)], body.shape[1]))
    layers: list[LayerFigures] = []
    progress(0, text_pass.count)
    for layer in text_pass.layers():
        layers.append(_figures(layer, texts, spell))
        progress(len(layers), text_pass.count)
    spec = store_spec(store)
    known: Origin | None = "upcycled" if origin == "upcycled" else "scratch" if origin == "scratch" else None
    return AnalysisReport(
        REPORT_VERSION,
        version("edgemoe"),
        name,
        spec.family,
        tuple(names),
        body.size,
        min(SAMPLE_TOKENS, body.size),
        tuple(layers),
        observations_of(layers, known),
    )


def _figures(layer: LayerPass, texts: Texts, spell: Spell) -> LayerFigures:
    by_matrix = {part: matrix_cosines(layer, part) for part in layer.parts}
    tokens = layer.sample(SAMPLE_TOKENS)
    outputs = all_outputs(layer, tokens)
    rows = layer.router.astype(np.float64)
    router = cosines(rows @ rows.T)
    alike = {**by_matrix, "output": outputs.cosines}
    usage = usage_of(layer, texts)
    chosen_norms = np.where(layer.chosen[tokens] >= 0, layer.norms[tokens], np.nan)
    mean_of_all = outputs.norms.mean(axis=1)
    own = neurons(layer, NEURON_TOKENS)
    return LayerFigures(
        layer=layer.number,
        num_experts=layer.num_experts,
        top_k=layer.chosen.shape[1],
        unused=int((layer.counts == 0).sum()),
        cosine={part: float(pairs(found).mean()) for part, found in {**alike, "router": router}.items()},
        router_tracks={part: _signed_square(pairs(router), pairs(found)) for part, found in alike.items()},
        score_and_norm=None if layer.logits is None else _rank_correlation(layer.logits[tokens], outputs.norms),
        norm_of_chosen=_mean(np.nanmean(chosen_norms, axis=1) / np.where(mean_of_all > 0, mean_of_all, np.nan)),
        neurons=None if own is None else vars(own),
        domain_information=usage.domain_information,
        token_predicts=usage.token_predicts,
        most_frequent=usage.most_frequent,
        domains=usage.shares.tolist(),
        tokens=[[spell(token) for token in some] for some in usage.tokens],
    )


def _mean(values: npt.NDArray[np.floating]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0


def _signed_square(one: Doubles, other: Doubles) -> float:
    """R^2 of two series with the sign of their correlation; 0 where one does not vary."""
    if len(one) < 2 or one.std() < 1e-12 or other.std() < 1e-12:
        return 0.0
    correlation = float(np.corrcoef(one, other)[0, 1])
    return correlation * abs(correlation)


def _rank_correlation(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Spearman's correlation of each two rows, its mean."""
    ranks = [np.argsort(np.argsort(values, axis=1), axis=1).astype(np.float64) for values in (one, other)]
    ranks = [own - own.mean(axis=1, keepdims=True) for own in ranks]
    scale = np.sqrt((ranks[0] ** 2).sum(axis=1) * (ranks[1] ** 2).sum(axis=1))
    return _mean((ranks[0] * ranks[1]).sum(axis=1) / np.where(scale > 0, scale, np.nan))
