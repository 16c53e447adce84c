"""An analysis of experts as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgemoe.analysis.report import AnalysisReport, LayerFigures

Rows = list[tuple[str, str]]

SHOWN_EXPERTS = 3
"""How many experts of a layer are named with their tokens or for their domain."""


def analysis_tables(report: AnalysisReport) -> list[tuple[str, Rows]]:
    """Tables with their titles: the text, the observations, each layer."""
    layers = report.layers
    text = f"{report.tokens} tokens of {', '.join(report.texts)}"
    rows: Rows = [
        ("text", f"{text}; {report.sample_tokens} of them through every expert of each layer"),
        ("experts", f"{sum(layer.num_experts for layer in layers)} in {len(layers)} layers, {_unused(layers)}"),
        ("likeness", _cosines(_mean_cosines(layers))),
        *_neuron_rows(layers),
        ("tokens", f"another occurrence predicts the first expert of {_mean(layers, lambda x: x.token_predicts):.0%},"
                   f" the most frequent expert {_mean(layers, lambda x: x.most_frequent):.0%}"),
    ]  # fmt: skip
    if len(report.texts) > 1:
        rows.append(
            ("domains", f"mutual information with experts {_mean(layers, lambda x: x.domain_information):.3f} nats")
        )
    tables = [(f"{report.model}, means over layers", rows)]
    for number, one in enumerate(report.observations, 1):
        tables.append((f"observation {number}: {one.claim}", [(one.verdict, one.found)]))
    return tables + [(f"layer {layer.layer}", _layer_rows(layer, report.texts)) for layer in layers]


def _layer_rows(layer: LayerFigures, texts: Sequence[str]) -> Rows:
    tracks = ", ".join(f"{part} {value:+.2f}" for part, value in layer.router_tracks.items())
    rows: Rows = [
        ("experts", f"{layer.num_experts}, {layer.top_k} for each token, {_unused([layer])}"),
        ("cosines", _cosines(layer.cosine)),
        ("R^2 with router rows", tracks),
    ]
    if layer.score_and_norm is not None:
        of_chosen = f"chosen experts give {layer.norm_of_chosen:.2f} x the mean norm"
        rows.append(("score and norm", f"rank correlation {layer.score_and_norm:+.2f}; {of_chosen}"))
    rows += _neuron_rows([layer])
    shares = [sum(of_text) / len(layer.domains) for of_text in zip(*layer.domains, strict=True)]
    most = sorted(range(layer.num_experts), key=lambda one: -shares[one])[:SHOWN_EXPERTS]
    named = (f"{one} {shares[one]:.0%}{_quoted(layer.tokens[one])}" for one in most)
    rows.append(("most used", "; ".join(named)))
    if len(texts) > 1:
        rows.append(("domains", f"mutual information with experts {layer.domain_information:.3f} nats"))
        rows += [(f"  {name}", _of_domain(own, shares)) for name, own in zip(texts, layer.domains, strict=True)]
    return rows


def _of_domain(own: Sequence[float], shares: Sequence[float]) -> str:
    """The experts that a text uses beyond their mean over texts."""
    most = sorted(range(len(own)), key=lambda one: shares[one] - own[one])[:SHOWN_EXPERTS]
    return ", ".join(f"expert {one} {own[one]:.0%} (mean {shares[one]:.0%})" for one in most)


def _quoted(tokens: Sequence[str]) -> str:
    return " (" + " ".join(repr(token) for token in tokens) + ")" if tokens else ""


def _unused(layers: Sequence[LayerFigures]) -> str:
    return f"{sum(layer.unused for layer in layers)} of them unused on this text"


def _mean_cosines(layers: Sequence[LayerFigures]) -> dict[str, float]:
    return {part: _mean(layers, lambda layer, part=part: layer.cosine[part]) for part in layers[0].cosine}  # type: ignore[misc]


def _cosines(cosine: object) -> str:
    assert isinstance(cosine, dict)
    return ", ".join(f"{part} {value:+.3f}" for part, value in cosine.items()) + " (mean cosine of two experts)"


def _neuron_rows(layers: Sequence[LayerFigures]) -> Rows:
    """A row about neurons, where there is something to tell."""
    some = [layer.neurons for layer in layers if layer.neurons is not None]
    if not some:
        return []
    own = {name: sum(one[name] for one in some) / len(some) for name in some[0]}
    match = f"a neuron's likest one in another expert has the cosine {own['best_match']:.2f}"
    beside = f"(chance {own['chance_match']:.2f})"
    return [("neurons", f"{own['at_work']:.0%} make 90 % of an output, {own['idle']:.1%} never do; {match} {beside}")]


def _mean(layers: Sequence[LayerFigures], of: Callable[[LayerFigures], float]) -> float:
    return sum(map(of, layers)) / len(layers)
