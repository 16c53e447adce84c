"""GET /metrics: counters and gauges in Prometheus's text format."""

from __future__ import annotations

from starlette.responses import Response

from edgemoe.process import peak_rss_bytes, rss_bytes
from edgemoe.server.exchange import Exchange

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def metrics(exchange: Exchange) -> Response:
    """Tell all counters since the start, and the state of now."""
    service = exchange.service
    engine, scheduler = service.model.engine, service.engine.scheduler
    assert scheduler is not None
    totals, experts, memory = scheduler.totals, engine.statistics, engine.memory
    counters: dict[str, tuple[str, float]] = {
        "requests_begun": ("Answers that were begun.", totals.begun),
        "requests_finished": ("Answers that came to their end.", totals.finished),
        "requests_failed": ("Answers that ended by an error.", totals.failed),
        "requests_cancelled": ("Answers whose client left.", totals.cancelled),
        "requests_refused": ("Requests refused because the queue was full.", totals.refused),
        "prompt_tokens": ("Tokens of prompts, cached ones included.", totals.prompt_tokens),
        "cached_prompt_tokens": ("Tokens of prompts that were found in the prefix cache.", totals.cached_tokens),
        "generated_tokens": ("Tokens of answers that have ended.", totals.generated_tokens),
        "prompt_seconds": ("Seconds in which answers that have ended read their prompts.", totals.prompt_seconds),
        "decode_seconds": ("Seconds in which answers that have ended were written.", totals.decode_seconds),
        "steps": ("Steps of the engine.", totals.steps),
        "step_seconds": ("Seconds in steps of the engine.", totals.step_seconds),
        "expert_hits": ("Experts that were in RAM when a step asked for them.", experts.expert_hits),
        "expert_misses": ("Experts that a step had to read from disk.", experts.expert_misses),
        "expert_read_bytes": ("Bytes of experts read from disk for tokens.", experts.disk_bytes),
    }
    tier = engine.sequences.tier
    if tier is not None:
        counters["prefix_disk_read_bytes"] = ("Bytes of prefixes read from disk.", tier.disk.read_bytes)
    gauges: dict[str, tuple[str, float]] = {
        "sequences_in_use": ("Answers that are being written, or whose prompt is being read.", service.engine.running),
        "sequences": ("Answers that may be written at a time.", scheduler.most_running),
        "waiting": ("Answers that wait for a sequence.", service.engine.waiting),
        "context_tokens": ("Positions of each sequence.", engine.context_length),
        "experts_in_ram_most": ("Experts that RAM has room for.", min(memory.slots, memory.total_experts)),
        "experts": ("Experts of the model.", memory.total_experts),
        "budget_bytes": ("The memory budget.", memory.budget_bytes),
        "resident_bytes": ("Memory of this process now.", rss_bytes()),
        "peak_resident_bytes": ("The most memory that this process has had.", peak_rss_bytes()),
    }
    if tier is not None:
        gauges["prefix_disk_bytes"] = ("Bytes of prefixes on disk.", tier.disk.held_bytes)
    lines = [
        line
        for kind, suffix, entries in (("counter", "_total", counters), ("gauge", "", gauges))
        for name, (help_text, value) in entries.items()
        for line in (
            f"# HELP edgemoe_{name}{suffix} {help_text}",
            f"# TYPE edgemoe_{name}{suffix} {kind}",
            f"edgemoe_{name}{suffix} {value:.6f}" if isinstance(value, float) else f"edgemoe_{name}{suffix} {value}",
        )
    ]
    return Response("\n".join(lines) + "\n", media_type=CONTENT_TYPE)
