"""An evaluation as a picture: error against bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgemoe.bench.evaluation_report import EvaluationReport, ModelResult
from edgemoe.bench.plot import DOTS_PER_INCH
from edgemoe.lab.divergence import Estimate
from edgemoe.session.default_model import model_name

SIZE_INCHES = (8.0, 5.5)
ROOM_FOR_LABELS = 1.25
"""The end of the axis of bytes over the largest model."""


def draw_evaluation(report: EvaluationReport, path: Path) -> None:
    """Draw each model's error with its interval over the bytes of its weights. Raises OSError.

    The error is the KL divergence from the reference, else the perplexity.
    """
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    figure.suptitle(f"{report.text}: {report.tokens} tokens in windows of {report.context}")
    for result in report.models:
        error = _error(result)
        bounds = None
        if error.low is not None and error.high is not None:
            bounds = [error.mean - error.low], [error.high - error.mean]
        size = result.model.bytes / 1e6
        axes.errorbar(size, error.mean, yerr=bounds, fmt="o", capsize=3)
        label = f"{model_name(Path(result.model.path))}\n{result.model.bits_per_weight:.2f} bits"
        axes.annotate(label, (size, error.mean), xytext=(6, 6), textcoords="offset points", fontsize="small")
    compared = report.models[0].divergence is not None
    axes.margins(y=0.15)
    if compared:
        axes.set_ylim(bottom=0)
    axes.set_ylabel("KL divergence from the reference, nats" if compared else "perplexity")
    axes.set_xlim(0, ROOM_FOR_LABELS * max(result.model.bytes for result in report.models) / 1e6)
    axes.set_xlabel("MB of weights")
    axes.grid(alpha=0.3)
    figure.savefig(path)


def _error(result: ModelResult) -> Estimate:
    return result.perplexity if result.divergence is None else result.divergence.nats
