"""`edgemoe bench --beside`: decoding while other processes are busy, as a table and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgemoe.bench.contention import ContentionReport
    from edgemoe.bench.measure import Settings
    from edgemoe.engine.options import EngineOptions


def measure_contention(
    model: str | None,
    busy_counts: list[int],
    settings: Settings,
    options: EngineOptions,
) -> ContentionReport:
    """Measure and show. Raises what `ContentionMeasurement` raises."""
    from edgemoe.bench.contention import ContentionMeasurement
    from edgemoe.cli.terminal.render import ProgressBar
    from edgemoe.cli.terminal.screen import open_screen
    from edgemoe.kernels.select import describe_backend
    from edgemoe.session.stores import find_runnable

    with ProgressBar("measuring", still=True) as bar:
        report = ContentionMeasurement(
            find_runnable(model),
            settings,
            describe_backend(options.threads),
            options,
            busy_counts,
            lambda doing, done, total: bar.update(doing, done, total, ""),
        ).run()
    open_screen().table(contention_rows(report), contention_title(report))
    return report


def contention_title(report: ContentionReport) -> str:
    """The table's title."""
    return f"{report.model}, {report.threads} threads on {report.processors} processors: medians (least to most)"


def contention_rows(report: ContentionReport) -> list[tuple[str, str]]:
    """One row for each number of busy processes."""
    from edgemoe.cli.terminal.bench_tables import spread_text

    rows = [
        ("one thread alone", f"{spread_text(report.one_thread_alone, '.1f')} tokens/s"),
        ("all threads alone", f"{spread_text(report.alone, '.1f')} tokens/s"),
    ]
    for company in report.company:
        processes = "process" if company.busy == 1 else "processes"
        rows.append(
            (
                f"beside {company.busy} busy {processes}",
                f"{spread_text(company.tokens_per_s, '.1f')} tokens/s,"
                f" {spread_text(company.of_fair_share, '.2f')} of what one thread alone would give on a fair share of"
                f" {company.share_processors:.2f} processors",
            )
        )
    return rows
