"""Figures formatted for people."""

from __future__ import annotations

from edgemoe.engine.memory import MemoryPlan
from edgemoe.session.generate import GenerationStatistics
from edgemoe.sizes import format_size


def statistics_line(statistics: GenerationStatistics, generated_tokens: int, memory: MemoryPlan) -> str:
    """The quiet line after an answer: speed, expert hits, disk, memory."""
    parts = [f"{generated_tokens} tokens"]
    if statistics.decode_tokens_per_s is not None:
        parts.append(f"{statistics.decode_tokens_per_s:.1f} tokens/s")
    if memory.total_experts and memory.all_resident:
        parts.append("all experts in memory")
    elif statistics.expert_hit_rate is not None:
        parts.append(f"experts {statistics.expert_hit_rate:.0%} hit")
        parts.append(f"{format_size(statistics.disk_bytes_per_token)}/token from disk")
    parts.append(f"memory {format_size(statistics.peak_rss_bytes)}")
    return " · ".join(parts)


def format_duration(seconds: float) -> str:
    """Format a duration, such as `2 min 5 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_age(seconds: float) -> str:
    """Say how long ago something was, such as `3 days ago`."""
    for unit, length_s in (("year", 31_557_600), ("month", 2_629_800), ("day", 86_400), ("hour", 3600), ("minute", 60)):
        if (count := int(seconds / length_s)) > 0:
            return f"{count} {unit}{'s' * (count > 1)} ago"
    return "just now"


def format_rate(value: float | None, unit: str) -> str:
    """Format a rate; a dash for None."""
    return "-" if value is None else f"{value:.1f} {unit}"
