"""A benchmark's report as tables for people."""

from __future__ import annotations

from pathlib import Path

from edgemoe.bench.device import DeviceReport
from edgemoe.bench.forced import RoutingReport
from edgemoe.bench.limits import ForecastReport
from edgemoe.bench.report import EngineReport, LedgerReport, Report
from edgemoe.bench.spread import Spread
from edgemoe.cli.terminal.text import printable
from edgemoe.session.default_model import model_name
from edgemoe.sizes import format_size

Rows = list[tuple[str, str]]

NOTED_IDLE_SHARE, NOTED_BUSY_CORES = 0.02, 0.1
"""Thresholds above which a note reports the core share of waiting engines, and the cores of other programs."""


def report_tables(report: Report) -> list[tuple[str, Rows]]:
    """Tables with their titles: each engine, the ratios, and where the time went."""
    settings = report.settings
    count = "1 round" if settings.repeats == 1 else f"{settings.repeats} rounds"
    rounds = f"{count}, medians (least to most); random tokens"
    if report.routing is not None:
        rounds += ", routing of a trace"
    tables = [(f"edgemoe: {rounds}", _edgemoe_rows(report))]
    if report.peer is not None and report.ratios is not None:
        ratios = report.ratios
        rows = [("version", report.peer.about["version"]), *_engine_rows(report, report.peer)]
        tables.append((f"{report.peer.name}, interleaved with edgemoe on the same weights and tokens", rows))
        rows = [("decode", spread_text(ratios.decode)), ("prefill", spread_text(ratios.prefill))]
        if ratios.startup is not None:
            rows.append(("start-up", spread_text(ratios.startup)))
        tables.append((f"edgemoe over {report.peer.name}: above 1, edgemoe is faster", rows))
    if report.device is not None:
        tables.append(("the device", _device_rows(report.device)))
    tables.append(("time of a decoded token", _ledger_rows(report.decode_ledger)))
    tables.append(("time of a prompt token", _ledger_rows(report.prefill_ledger)))
    return tables


def _device_rows(device: DeviceReport) -> Rows:
    rows = [("device", device.device or device.failure or "none that works: edgemoe info --measure says why")]
    bits = f"{device.equal_logits:,} of {device.logits:,} logits are the processor's, bit for bit"
    rows.append(("answers", bits))
    for way in device.ways:
        budget = "" if way.budget_bytes is None else f" ({format_size(way.budget_bytes)})"
        slots = f", {way.slot_share:.0%} of choices in device slots" if way.slot_share else ""
        rates = f"{spread_text(way.tokens_per_s, '.1f')} tokens/s, prompt {spread_text(way.prompt_tokens_per_s, '.0f')}"
        rows.append((way.name + budget, rates + slots))
    if device.rates is not None:
        to, back, copy, product = (f"{rate / 1e9:.1f}" for rate in vars(device.rates).values())
        rows.append(("copies", f"{to} GB/s to the device, {back} GB/s back, {copy} GB/s there"))
        rows.append(("q4 products", f"{product} GB/s"))
    return rows


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
        rows.append(("roofline", "not measured: it needs the native kernels"))
    else:
        roof = report.roofline
        rows.append(
            ("roofline", f"{spread_text(roof.share, '.0%')} of the memory's read rate,"
             f" {spread_text(roof.read_bytes_per_s, '.1f', 1e9)} GB/s ({format_size(roof.buffer_bytes)} read)")
        )  # fmt: skip
    if report.experts is not None:
        used = report.experts.distinct_per_layer
        rows.append(
            ("experts used", f"{sum(used) / len(used):.1f} of {report.experts.per_layer} per layer"
             f" ({min(used):.1f} to {max(used):.1f}), {report.experts.per_token} per token")
        )  # fmt: skip
    if report.routing is not None:
        rows += _routing_rows(report.routing)
    if not memory["all_resident"]:
        rows += _streaming_rows(report)
    if report.forecast is not None:
        rows.append(("predicted", _forecast(report.forecast)))
    if report.idle_cpu_share > NOTED_IDLE_SHARE:
        rows.append(("note", f"waiting engines used {report.idle_cpu_share:.0%} of a core"))
    if report.others_busy_cores > NOTED_BUSY_CORES:
        busy = f"{report.others_busy_cores:.1f} of {report.machine['cores']} cores"
        rows.append(("note", f"other programs kept {busy} busy: measure again when they are idle"))
    if report.edgemoe.startup_s is not None and not report.machine["python_keeps_bytecode"]:
        rows.append(("note", "Python keeps no compiled code here (PYTHONDONTWRITEBYTECODE), which slows every start"))
    return rows


def _streaming_rows(report: Report) -> Rows:
    rows = []
    if report.experts is not None and report.experts.hit_rate is not None:
        rates = report.experts.round_hit_rates
        steady = f" (first round {rates[0]:.1%}, last {rates[-1]:.1%})" if len(rates) > 1 else ""
        disk = format_size(report.experts.disk_bytes_per_token)
        rows.append(("expert hits", f"{report.experts.hit_rate:.1%}{steady}, {disk} per token from disk"))
    if report.limits is not None:
        limits = report.limits
        how = "direct reads" if limits.direct else "reads through the page cache"
        rows.append(
            ("disk", f"{spread_text(limits.disk_bytes_per_s, '.2f', 1e9)} GB/s,"
             f" {how} of {format_size(limits.read_bytes)} by {limits.readers} threads")
        )  # fmt: skip
        disk_limit = limits.disk_tokens_per_s
        rows.append(
            ("disk's limit", f"{spread_text(disk_limit, '.1f') if disk_limit else 'none'} tokens/s:"
             f" {limits.missed_bytes_per_token.median / 1e6:.1f} MB missed per token")
        )  # fmt: skip
        if limits.memory_tokens_per_s is not None:
            rows.append(("memory's limit", f"{spread_text(limits.memory_tokens_per_s, '.1f')} tokens/s"))
        if limits.share is not None:
            rows.append(("reached", f"{spread_text(limits.share, '.0%')} of the lower limit"))
    if report.guesses is not None and report.guesses.recall is not None:
        guesses = report.guesses
        used = "" if guesses.useful_share is None else f", {guesses.useful_share:.0%} of them used"
        rows.append(
            ("prefetch", f"recall {guesses.recall:.0%}, {guesses.reads_per_token:.2f} experts read per token{used}")
        )
    return rows


def _forecast(forecast: ForecastReport) -> str:
    expected, hits = forecast.tokens_per_s, forecast.hit_rates.likely
    speed = (
        f"{expected.likely:.1f} ({expected.low:.1f} to {expected.high:.1f}) tokens/s, {forecast.error_percent:+.0f}%"
    )
    if hits == 1.0:
        return f"{speed}, {forecast.routing}"
    return (
        f"{speed}, for {hits:.1%} hits ({forecast.routing}); for the measured hit rate"
        f" {forecast.at_measured_hits.likely:.1f}, {forecast.error_at_measured_hits_percent:+.0f}%"
    )


def _routing_rows(routing: RoutingReport) -> Rows:
    used = f"{routing.top_k} experts per token"
    if routing.top_k != routing.model_top_k:
        used += f" (the model's own: {routing.model_top_k})"
    ahead = "no prefetch"
    if routing.recall is not None:
        ahead = f"simulated prefetch, recall {routing.recall:.0%}"
    rows = [
        ("routing", f"{printable(routing.trace)}, recorded from {printable(routing.model)}; {used}; {ahead}"),
        (
            "steps",
            f"{routing.steps} measured, {routing.distinct_steps} distinct, of {routing.decode_steps} recorded",
        ),
    ]
    if routing.hit_rate is not None and routing.replay_hit_rate is not None:
        rows.append(
            ("replayed hits", f"{routing.replay_hit_rate:.1%} in {routing.slots} slots ({routing.policy}),"
             f" {100 * (routing.hit_rate - routing.replay_hit_rate):+.2f} points when measured")
        )  # fmt: skip
    return rows


def _engine_rows(report: Report, engine: EngineReport) -> Rows:
    settings = report.settings
    tokens = settings.decode_tokens
    if engine is report.peer and settings.peer_decode_tokens is not None:
        tokens = settings.peer_decode_tokens
    after = f"{tokens} tokens after a prompt of {settings.prompt_tokens}"
    rows = [
        ("decode", f"{spread_text(engine.decode_tokens_per_s, '.1f')} tokens/s, {after}"),
        ("prefill", f"{spread_text(engine.prefill_tokens_per_s, '.1f')} tokens/s, {settings.prefill_tokens} tokens"),
    ]
    if engine.startup_s is not None:
        rows.append(("start-up", f"{spread_text(engine.startup_s)} s to the first token"))
    rows.append(("peak memory", format_size(engine.peak_rss_bytes)))
    if engine.limit is not None:
        peak, cache = engine.limit.peak_bytes, engine.limit.cache_bytes
        taken = "" if peak is None else f", at most {format_size(peak)} taken, page cache included"
        held = "" if cache is None else f" ({format_size(cache)} of it at the end)"
        rows.append(("limit", f"{format_size(engine.limit.limit_bytes)}{taken}{held}"))
    if engine.major_faults_per_token:
        rows.append(("major faults", f"{engine.major_faults_per_token:.1f} per decoded token"))
    return rows


def _ledger_rows(ledger: LedgerReport) -> Rows:
    total_ms = sum(ledger.parts_ms.values())
    rows = []
    for part, ms in ledger.parts_ms.items():
        rate = f", reads {ledger.bytes_per_s[part] / 1e9:.1f} GB/s" if part in ledger.bytes_per_s else ""
        rows.append((part.replace("_", " "), f"{ms:.3f} ms, {ms / total_ms:.1%}{rate}"))
    rows.append(("all parts", f"{total_ms:.3f} ms, of {ledger.wall_ms:.3f} ms by the wall clock"))
    return rows


def spread_text(spread: Spread, form: str = ".2f", unit: float = 1.0) -> str:
    """The median, and in brackets the minimum and the maximum."""
    low, middle, high = (format(value / unit, form) for value in (spread.min, spread.median, spread.max))
    return f"{middle} ({low} to {high})"
