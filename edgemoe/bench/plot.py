"""A benchmark as a picture."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgemoe.bench.report import LedgerReport, Report
from edgemoe.bench.spread import Spread
from edgemoe.errors import UsageError
from edgemoe.session.default_model import model_name

INSTALL_HINT = "Install it with: pip install 'edgemoe[plot]'."
SIZE_INCHES = (10.0, 7.0)
DOTS_PER_INCH = 150


def check_plot(path: Path) -> None:
    """Raises UsageError if matplotlib is missing, or does not know this picture format."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("`plot`: matplotlib is not installed.", INSTALL_HINT)
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise UsageError(f"{path}: expected a picture: {', '.join(sorted(kinds))}.", "For example: `plot=speed.png`.")


def draw_report(report: Report, path: Path) -> None:
    """Rates of each engine with all their samples, and a decoded token's time by part. Raises OSError."""
    from matplotlib.figure import Figure

    settings, threads = report.settings, report.edgemoe.about["kernels"]["threads"]
    figure: Any = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    figure.suptitle(f"{model_name(Path(report.model['path']))}, {threads} threads, {report.machine['processor']}")
    rates, ledger = figure.subfigures(2, 1, height_ratios=(3, 2))
    decode, prefill = rates.subplots(1, 2)
    engines = [report.edgemoe, *([report.peer] if report.peer else [])]
    roof = report.roofline.read_bytes_per_s.median / report.bytes_per_token if report.roofline else None
    _draw_rates(decode, {engine.name: engine.decode_tokens_per_s for engine in engines}, roof)
    decode.set_title(f"decode: {settings.decode_tokens} tokens after {settings.prompt_tokens}")
    _draw_rates(prefill, {engine.name: engine.prefill_tokens_per_s for engine in engines}, None)
    prefill.set_title(f"prefill: {settings.prefill_tokens} tokens")
    _draw_ledger(ledger, report.decode_ledger)
    figure.savefig(path)


def _draw_rates(axes: Any, rates: Mapping[str, Spread], roof: float | None) -> None:
    """Draw bars of medians with all samples, below the rate at which reading memory would limit decoding."""
    for number, spread in enumerate(rates.values()):
        axes.bar(number, spread.median, width=0.6)
        axes.plot([number] * len(spread.samples), spread.samples, ".", color="black")
        axes.annotate(f"{spread.median:.1f}", (number, spread.median / 2), color="white", ha="center", va="center")
    highest = max(spread.max for spread in rates.values())
    if roof is not None:
        axes.axhline(roof, color="black", linestyle="--", linewidth=1)
        above = {"xytext": (0, 3), "textcoords": "offset points", "ha": "right"}
        axes.annotate("the memory's limit", (len(rates) - 0.7, roof), **above)
    axes.set_ylim(0, 1.15 * max(highest, roof or 0.0))
    axes.set_xticks(range(len(rates)), list(rates))
    axes.set_ylabel("tokens/s")


def _draw_ledger(figure: Any, ledger: LedgerReport) -> None:
    axes, left_ms = figure.subplots(), 0.0
    for part, ms in ledger.parts_ms.items():
        axes.barh(0, ms, left=left_ms, label=f"{part.replace('_', ' ')} {ms:.2f} ms")
        left_ms += ms
    axes.set_xlim(0, left_ms)
    axes.set_yticks([])
    axes.set_xlabel("ms of a decoded token")
    figure.legend(loc="outside lower center", ncols=4)
