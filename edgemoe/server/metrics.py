"""GET /metrics: counters and gauges in Prometheus's text format, under names of edgemoe and of llama-server.

Programs that watch llama-server read the latter.
"""

from __future__ import annotations

from starlette.responses import Response

from edgemoe.process import peak_rss_bytes, rss_bytes
from edgemoe.server.engine_thread import EngineThread
from edgemoe.server.exchange import Exchange
from edgemoe.server.scheduler import Totals

Entries = dict[str, tuple[str, float]]
"""The meaning and the value of each name."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def metrics(exchange: Exchange) -> Response:
    """Tell all counters since the start, and the state of now."""
    service = exchange.service
    engine, scheduler = service.model.engine, service.engine.scheduler
    assert scheduler is not None
    totals, experts, memory = scheduler.totals, engine.statistics, engine.memory
    counters: Entries = {
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
    gauges: Entries = {
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
        *_lines("edgemoe_{}_total", "counter", counters),
        *_lines("edgemoe_{}", "gauge", gauges),
        *_lines("llamacpp:{}", "counter", _llama_counters(totals)),
        *_lines("llamacpp:{}", "gauge", _llama_gauges(totals, service.engine)),
    ]
    headers = {"process-start-time-unix": str(int(service.began_s))}
    return Response("\n".join(lines) + "\n", media_type=CONTENT_TYPE, headers=headers)


def _llama_counters(totals: Totals) -> Entries:
    """The counters of llama-server."""
    return {
        "prompt_tokens_total": ("Tokens of prompts that were run.", totals.prompt_tokens - totals.cached_tokens),
        "prompt_tokens_cached_total": ("Tokens of prompts that were found in the cache.", totals.cached_tokens),
        "prompt_seconds_total": ("Seconds of prompts.", totals.prompt_seconds),
        "tokens_predicted_total": ("Tokens of answers.", totals.generated_tokens),
        "tokens_predicted_seconds_total": ("Seconds of answers.", totals.decode_seconds),
        "n_decode_total": ("Steps of the engine.", totals.steps),
        "n_tokens_max": ("The longest prompt with its answer.", totals.longest),
        "spec_decode_num_draft_tokens_total": ("Tokens of drafts.", totals.draft_tokens),
        "spec_decode_num_accepted_tokens_total": ("Tokens of drafts that were chosen.", totals.accepted_tokens),
        "spec_decode_num_drafts_total": ("Steps of answers with drafts.", totals.drafts),
    }


def _llama_gauges(totals: Totals, engine: EngineThread) -> Entries:
    prompt_tokens = totals.prompt_tokens - totals.cached_tokens
    decoded = totals.generated_tokens - totals.finished
    return {
        "prompt_tokens_seconds": ("Tokens of prompts a second.", _ratio(prompt_tokens, totals.prompt_seconds)),
        "predicted_tokens_seconds": ("Tokens of answers a second.", _ratio(max(0, decoded), totals.decode_seconds)),
        "requests_processing": ("Answers with a sequence.", engine.running),
        "requests_deferred": ("Answers that wait for one.", engine.waiting),
        "n_busy_slots_per_decode": ("Sequences of a step, in the mean.", _ratio(totals.sequence_steps, totals.steps)),
    }


def _ratio(count: float, of: float) -> float:
    return count / of if of else 0.0


def _lines(form: str, kind: str, entries: Entries) -> list[str]:
    return [
        line
        for name, (help_text, value) in entries.items()
        for line in (
            f"# HELP {form.format(name)} {help_text}",
            f"# TYPE {form.format(name)} {kind}",
            f"{form.format(name)} {value:.6f}" if isinstance(value, float) else f"{form.format(name)} {value}",
        )
    ]
