"""A replay as a picture: hit rates against capacity, and which experts were used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgemoe.bench.plot import DOTS_PER_INCH
from edgemoe.bench.replay_report import ReplayReport
from edgemoe.experts.policy import BELADY

SIZE_INCHES = (11.0, 5.5)


def draw_replay(report: ReplayReport, path: Path) -> None:
    """Draw curves of all policies below the optimum, and a map of uses, layers by experts. Raises OSError."""
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    routing = report.routing
    figure.suptitle(
        f"{report.shape.model or Path(report.trace).name}: {routing.prompt_tokens} tokens of prompt,"
        f" {routing.decode_tokens} generated"
    )
    curves, uses = figure.subplots(1, 2)
    _draw_curves(curves, report)
    _draw_uses(uses, figure, report)
    figure.savefig(path)


def _draw_curves(axes: Any, report: ReplayReport) -> None:
    first = sorted(report.rows_of(report.policies[0]), key=lambda row: row.result.capacity_percent)
    shares = [row.result.capacity_percent for row in first]
    axes.plot(shares, [100 * row.optimum_hit_rate for row in first], "k--", label="the optimum")
    for policy in report.policies:
        if policy != BELADY:
            rows = sorted(report.rows_of(policy), key=lambda row: row.result.capacity_percent)
            axes.plot(shares, [100 * row.result.hit_rate for row in rows], marker="o", markersize=3, label=policy)
    cycle = 100 * report.cycle_experts / report.total_experts
    axes.axvline(cycle, color="grey", linewidth=1, linestyle=":", label="experts that one token uses")
    if report.recommendation is not None:
        chosen = report.recommended.result
        axes.plot([chosen.capacity_percent], [100 * chosen.hit_rate], "o", fillstyle="none", color="red", markersize=10,
                  label="recommended", linestyle="none")  # fmt: skip
    axes.set_xlabel("% of all experts in memory")
    axes.set_ylabel("hit rate, % of uses")
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")


def _draw_uses(axes: Any, figure: Any, report: ReplayReport) -> None:
    """Draw each layer's experts, the most used first, to show at a glance how uneven routing is."""
    uses = report.routing.uses
    ordered = -np.sort(-uses, axis=1)
    image = axes.imshow(ordered, aspect="auto", interpolation="nearest", cmap="magma")
    axes.set_xlabel("experts of a layer, the most used first")
    axes.set_ylabel("layer")
    figure.colorbar(image, ax=axes, label="uses")
