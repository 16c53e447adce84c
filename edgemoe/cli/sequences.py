"""`edgemoe bench --sequences`: several sequences that decode together, as a table and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgemoe.sizes import format_size

if TYPE_CHECKING:
    from edgemoe.bench.measure import Settings
    from edgemoe.bench.sequences import SequencesReport, TogetherReport
    from edgemoe.engine.options import EngineOptions


def measure_sequences(
    model: str | None,
    counts: list[int],
    settings: Settings,
    options: EngineOptions,
    routing: Path | None,
    recall: float | None,
) -> SequencesReport:
    """Measure and show. Raises what `SequencesMeasurement` raises."""
    from edgemoe.bench.sequences import SequencesMeasurement
    from edgemoe.cli.terminal.render import ProgressBar
    from edgemoe.cli.terminal.screen import open_screen
    from edgemoe.kernels.select import describe_backend
    from edgemoe.session.stores import find_runnable

    with ProgressBar("measuring", still=True) as bar:
        report = SequencesMeasurement(
            find_runnable(model),
            settings,
            describe_backend(options.threads),
            options,
            counts,
            lambda doing, done, total: bar.update(doing, done, total, ""),
            routing,
            recall,
        ).run()
    open_screen().table(sequences_rows(report), sequences_title(report))
    return report


def sequences_title(report: SequencesReport) -> str:
    """The table's title."""
    rounds = "1 round" if report.repeats == 1 else f"{report.repeats} rounds"
    return f"{report.model}, sequences that decode together: {rounds}, medians (least to most)"


def sequences_rows(report: SequencesReport) -> list[tuple[str, str]]:
    """Rows for the setting, and one for each number of sequences."""
    from edgemoe.cli.terminal.text import printable

    kernels, memory = report.kernels, report.memory
    tokens = f"{report.decode_tokens} tokens each after prompts of {report.prompt_tokens}"
    taken = "random tokens"
    if report.routing is not None:
        ahead = "no prefetch" if report.recall is None else f"simulated prefetch, recall {report.recall:.0%}"
        taken = f"routing of {printable(report.routing)}, another part for each sequence; {ahead}"
    rows = [
        ("kernels", f"{kernels['backend']} {kernels['isa']}, {kernels['threads']} threads"),
        (
            "budget",
            f"{format_size(memory['budget_bytes'])}, {memory['slots']} of {memory['total_experts']} experts in memory",
        ),
        ("decode", f"{tokens}, {taken}"),
        ("one sequence", _results(report.one)),
    ]
    for one in report.together:
        rows.append((f"{one.sequences} sequences", _results(one)))
    return rows


def _results(report: TogetherReport) -> str:
    """The rate, and where experts are streamed the hit rate and the bytes read."""
    from edgemoe.cli.terminal.bench_tables import spread_text

    text = f"{spread_text(report.tokens_per_s, '.1f')} tokens/s"
    if report.sequences > 1:
        text += f" in all, {spread_text(report.against_one)} times one"
    if report.hit_rate < 1:
        text += (
            f"; {report.hit_rate:.1%} of experts hit, {format_size(report.disk_bytes_per_token)} per token from disk"
        )
    return text
