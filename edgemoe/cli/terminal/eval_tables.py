"""An evaluation's report as tables for people."""

from __future__ import annotations

from pathlib import Path

from edgemoe.bench.evaluation_report import EvaluationReport, ModelFacts, ModelResult, ReferenceReport
from edgemoe.lab.divergence import Estimate
from edgemoe.session.default_model import model_name
from edgemoe.sizes import format_size

Rows = list[tuple[str, str]]


def evaluation_tables(report: EvaluationReport) -> list[tuple[str, Rows]]:
    """Tables with their titles: the text, the reference, each model."""
    windows = f"{report.windows} windows of {report.context} tokens, {report.stride} further each"
    text = f"{report.text}, {'' if report.whole_text else 'its first '}{report.tokens} tokens"
    rows = [("text", text), ("read in", windows)]
    tables = [("evaluation, with intervals of 95 %", rows)]
    if report.reference is not None:
        name = report.reference.run or model_name(Path(report.reference.model["path"]))
        tables.append((f"reference: {name}", _reference_rows(report.reference)))
    for result in report.models:
        tables.append((model_name(Path(result.model.path)), _model_rows(result, report)))
    return tables


def _reference_rows(reference: ReferenceReport) -> Rows:
    rows = []
    if reference.run is not None:
        rows.append(("model", f"{model_name(Path(reference.model['path']))}, {reference.windows} windows"))
    rows.append(("size", f"{format_size(reference.model['bytes'])}, {reference.model['bits_per_weight']:.2f} bits"))
    if reference.perplexity is not None:
        rows.append(("perplexity", estimate_text(reference.perplexity, ".4f")))
    if reference.top is not None:
        rows.append(("kept", f"{reference.top} tokens of each position: KL divergences are lower bounds"))
    return rows


def _model_rows(result: ModelResult, report: EvaluationReport) -> Rows:
    scored = f"{result.positions} tokens in {result.windows} windows, {result.seconds:.1f} s"
    rows = [
        ("size", _size(result.model)),
        *((f"part {name}", _part(part)) for name, part in result.model.parts.items()),
        ("scored", scored + ("" if result.kv == "f16" else f", keys and values in {result.kv}")),
        ("perplexity", estimate_text(result.perplexity, ".4f")),
    ]
    divergence = result.divergence
    if divergence is not None:
        bound = " or more" if report.reference is not None and report.reference.top is not None else ""
        points = [f"{'median' if name == '50' else name + ' %'} {x:.5f}" for name, x in divergence.percentiles.items()]
        rows += [
            ("KL divergence", f"{estimate_text(divergence.nats, '.5f')} nats{bound} (mean, reference || model)"),
            ("KL percentiles", ", ".join([*points, f"largest {divergence.largest:.4f}"])),
            ("same top token", f"{estimate_text(divergence.same_top, '.2%')} of positions"),
        ]
        if divergence.loss_difference is not None:
            rows.append(("loss over reference", f"{estimate_text(divergence.loss_difference, '+.5f')} nats"))
    return rows


def _size(model: ModelFacts) -> str:
    return (
        f"{model.parameters / 1e6:,.1f} million parameters in {format_size(model.bytes)},"
        f" {model.bits_per_weight:.2f} bits per weight"
    )


def _part(part: object) -> str:
    assert isinstance(part, dict)
    formats = ", ".join(part["formats"])
    return (
        f"{formats}: {part['parameters'] / 1e6:,.1f} million in {format_size(part['bytes'])},"
        f" {part['bits_per_weight']:.2f} bits per weight"
    )


def estimate_text(estimate: Estimate, form: str) -> str:
    """A mean with its interval, where there is one."""
    if estimate.low is None or estimate.high is None:
        return format(estimate.mean, form)
    return f"{estimate.mean:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"
