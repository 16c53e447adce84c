"""A benchmark's report as tables for people."""

from __future__ import annotations

from pathlib import Path

from edgemoe.bench.report import EngineReport, LedgerReport, Report
from edgemoe.bench.spread import Spread
from edgemoe.model.memory import format_size
from edgemoe.session.default_model import model_name

Rows = list[tuple[str, str]]

NOTED_IDLE_SHARE, NOTED_BUSY_CORES = 0.02, 0.1
"""What engines use of a core while they wait, and what other programs use, is told above these."""


def report_tables(report: Report) -> list[tuple[str, Rows]]:
    """Tables with their titles: each engine, the ratios, and where the time went."""
    settings = report.settings
    count = "1 round" if settings.repeats == 1 else f"{settings.repeats} rounds"
    rounds = f"{count}, medians (least to most); random tokens"
    tables = [(f"edgemoe: {rounds}", _edgemoe_rows(report))]
    if report.peer is not None and report.ratios is not None:
        ratios = report.ratios
        rows = [("version", report.peer.about["version"]), *_engine_rows(report, report.peer)]
        tables.append((f"{report.peer.name}, in turn with edgemoe on the same weights and tokens", rows))
        rows = [("decode", _spread(ratios.decode)), ("prefill", _spread(ratios.prefill))]
        if ratios.startup is not None:
            rows.append(("start-up", _spread(ratios.startup)))
        tables.append((f"edgemoe over {report.peer.name}: above 1, edgemoe is faster", rows))
    tables.append(("a decoded token", _ledger_rows(report.decode_ledger)))
    tables.append(("a token of the prompt", _ledger_rows(report.prefill_ledger)))
    return tables


def _edgemoe_rows(report: Report) -> Rows:
    kernels, memory = report.edgemoe.about["kernels"], report.edgemoe.about["memory"]
    slots = f"{memory['slots']} of {memory['total_experts']} experts in memory"
    rows = [
        ("model", f"{model_name(Path(report.model['path']))} ({report.model['family']})"),
        ("kernels", f"{kernels['backend']} {kernels['isa']}, {kernels['threads']} threads"),
        ("budget", format_size(memory["budget_bytes"]) + (f", {slots}" if memory["total_experts"] else "")),
        *_engine_rows(report, report.edgemoe),
        ("reads per token", f"{report.bytes_per_token / 1e6:.1f} MB from memory"),
    ]
    if report.roofline is None:
        rows.append(("roofline", "not measured: it takes the native kernels"))
    else:
        roof = report.roofline
        rows.append(
            ("roofline", f"{_spread(roof.share, '.0%')} of what memory gives,"
             f" {_spread(roof.read_bytes_per_s, '.1f', 1e9)} GB/s ({format_size(roof.buffer_bytes)} read)")
        )  # fmt: skip
    if report.experts is not None:
        used = report.experts.distinct_per_layer
        rows.append(
            ("experts used", f"{sum(used) / len(used):.1f} of {report.experts.per_layer} in a layer"
             f" ({min(used):.1f} to {max(used):.1f}), {report.experts.per_token} for each token")
        )  # fmt: skip
        if not memory["all_resident"] and report.experts.hit_rate is not None:
            disk = format_size(report.experts.disk_bytes_per_token)
            rows.append(("expert hits", f"{report.experts.hit_rate:.1%}, {disk} per token from disk"))
    if report.idle_cpu_share > NOTED_IDLE_SHARE:
        rows.append(("beware", f"waiting engines used {report.idle_cpu_share:.0%} of a core"))
    if report.others_busy_cores > NOTED_BUSY_CORES:
        busy = f"{report.others_busy_cores:.1f} of {report.machine['cores']} cores"
        rows.append(("beware", f"other programs kept {busy} busy: measure again when they rest"))
    return rows


def _engine_rows(report: Report, engine: EngineReport) -> Rows:
    settings = report.settings
    after = f"{settings.decode_tokens} tokens after {settings.prompt_tokens}"
    rows = [
        ("decode", f"{_spread(engine.decode_tokens_per_s, '.1f')} tokens/s, {after}"),
        ("prefill", f"{_spread(engine.prefill_tokens_per_s, '.1f')} tokens/s, {settings.prefill_tokens} tokens"),
    ]
    if engine.startup_s is not None:
        rows.append(("start-up", f"{_spread(engine.startup_s)} s to the first token"))
    rows.append(("peak memory", format_size(engine.peak_rss_bytes)))
    return rows


def _ledger_rows(ledger: LedgerReport) -> Rows:
    total_ms = sum(ledger.parts_ms.values())
    rows = []
    for part, ms in ledger.parts_ms.items():
        rate = f", reads {ledger.bytes_per_s[part] / 1e9:.1f} GB/s" if part in ledger.bytes_per_s else ""
        rows.append((part.replace("_", " "), f"{ms:.3f} ms, {ms / total_ms:.1%}{rate}"))
    rows.append(("all parts", f"{total_ms:.3f} ms, of {ledger.wall_ms:.3f} ms by the wall clock"))
    return rows


def _spread(spread: Spread, form: str = ".2f", unit: float = 1.0) -> str:
    low, middle, high = (format(value / unit, form) for value in (spread.min, spread.median, spread.max))
    return f"{middle} ({low} to {high})"
