"""An analysis of experts as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgemoe.analysis.report import AnalysisReport
from edgemoe.bench.plot import DOTS_PER_INCH

SIZE_INCHES = (11.0, 8.0)


def draw_analysis(report: AnalysisReport, path: Path) -> None:
    """Draw likeness, routers, norms and use over layers. Raises OSError."""
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    figure.suptitle(f"{report.model}: {report.tokens} tokens of {', '.join(report.texts)}")
    (likeness, routers), (norms, uses) = figure.subplots(2, 2)
    numbers = [layer.layer for layer in report.layers]
    for part in report.layers[0].cosine:
        likeness.plot(numbers, [layer.cosine[part] for layer in report.layers], ".-", label=part)
    likeness.set_title("mean cosine of two experts")
    for part in report.layers[0].router_tracks:
        routers.plot(numbers, [layer.router_tracks[part] for layer in report.layers], ".-", label=part)
    routers.set_title("R² of their likeness with that of router rows")
    scores = [layer.score_and_norm for layer in report.layers]
    norms.plot(numbers, [np.nan if score is None else score for score in scores], ".-", label="rank correlation")
    norms.plot(
        numbers, [layer.norm_of_chosen - 1 for layer in report.layers], ".-", label="norm of chosen, over the mean"
    )
    norms.set_title("router's score and norm of output")
    for axes in (likeness, routers, norms):
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xlabel("layer")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    _draw_uses(uses, figure, report)
    figure.savefig(path)


def _draw_uses(axes: Any, figure: Any, report: AnalysisReport) -> None:
    """Draw which experts are used, times their number: 1 is an even share; the most used first."""
    most = max(layer.num_experts for layer in report.layers)
    heat = np.full((len(report.layers), most), np.nan)
    for row, layer in enumerate(report.layers):
        shares = np.mean(np.array(layer.domains), axis=0)
        heat[row, : layer.num_experts] = -np.sort(-shares) * layer.num_experts
    image = axes.imshow(heat, aspect="auto", interpolation="nearest", vmin=0)
    figure.colorbar(image, ax=axes, label="use, over an even share")
    axes.set_yticks(range(len(report.layers)), [str(layer.layer) for layer in report.layers], fontsize="x-small")
    axes.set_xlabel("experts, the most used first")
    axes.set_ylabel("layer")
