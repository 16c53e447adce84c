"""`edgemoe bench --sequences`, `--clients`, `--speculate`, `--beside`: decoding with others, drafts, busy processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from edgemoe.cli.fetching import fetched
from edgemoe.errors import UsageError
from edgemoe.sizes import format_size

if TYPE_CHECKING:
    from edgemoe.bench.clients import ClientsReport, ServedReport
    from edgemoe.bench.contention import ContentionReport
    from edgemoe.bench.drafts import DraftedReport, DraftsReport
    from edgemoe.bench.guessed_answers import GuessedReport
    from edgemoe.bench.measure import Progress, Settings
    from edgemoe.bench.sequences import SequencesReport, TogetherReport
    from edgemoe.bench.spread import Spread
    from edgemoe.engine.options import EngineOptions
    from edgemoe.kernels.select import KernelChoice

Report = TypeVar("Report", covariant=True)
Table = tuple[str, list[tuple[str, str]]]


class _Measurement(Protocol[Report]):
    def run(self) -> Report: ...


def measure_sequences(
    model: str | None,
    options: EngineOptions,
    settings: Settings,
    counts: Sequence[int],
    routing: Path | None,
    recall: float | None,
) -> SequencesReport:
    """Measure and show. Raises what `SequencesMeasurement` raises."""
    from edgemoe.bench.sequences import SequencesMeasurement

    def make(folder: Path, kernels: KernelChoice, progress: Progress) -> SequencesMeasurement:
        return SequencesMeasurement(folder, settings, kernels, options, counts, progress, routing, recall)

    return _measure(model, options, make, sequences_table)


def measure_clients(
    model: str | None,
    options: EngineOptions,
    settings: Settings,
    counts: Sequence[int],
    against: str | None,
    gguf: Path | None,
    watch: bool,
) -> ClientsReport:
    """Measure and show. Raises what `ClientsMeasurement` raises, UsageError for another peer or one without a file."""
    from edgemoe.bench.clients import LLAMA_SERVER, ClientsMeasurement

    if against not in (None, LLAMA_SERVER):
        raise UsageError(f"--against {against}: expected {LLAMA_SERVER} with --clients.", "Name that, or leave it out.")
    if against is None and gguf is not None:
        raise UsageError("--gguf is for another server.", f"Name it with --against {LLAMA_SERVER}.")

    def make(folder: Path, kernels: KernelChoice, progress: Progress) -> ClientsMeasurement:
        file = gguf or folder
        if against is not None and not file.is_file():
            raise UsageError(
                f"{LLAMA_SERVER} serves a GGUF file: expected one, found {file}.", "Give it with --gguf FILE."
            )
        peer_file = file if against else None
        return ClientsMeasurement(folder, settings, kernels, options, counts, progress, peer_file, watch=watch)

    return _measure(model, options, make, clients_table)


def measure_drafts(
    model: str | None,
    options: EngineOptions,
    settings: Settings,
    counts: Sequence[int],
    routing: Path | None,
    draft: str | None,
) -> DraftsReport:
    """Measure and show. Raises what `DraftsMeasurement` raises."""
    from edgemoe.bench.drafts import DraftsMeasurement

    def make(folder: Path, kernels: KernelChoice, progress: Progress) -> DraftsMeasurement:
        return DraftsMeasurement(folder, settings, kernels, options, counts, progress, routing, draft=fetched(draft))

    return _measure(model, options, make, drafts_table)


def measure_guessed(
    model: str | None, options: EngineOptions, settings: Settings, prompts: Path | None, draft: str | None
) -> GuessedReport:
    """Measure and show. Raises what `GuessedMeasurement` raises."""
    from edgemoe.bench.guessed_answers import GuessedMeasurement

    def make(folder: Path, kernels: KernelChoice, progress: Progress) -> GuessedMeasurement:
        return GuessedMeasurement(folder, settings, kernels, options, progress, prompts, fetched(draft))

    return _measure(model, options, make, guessed_table)


def measure_contention(
    model: str | None, options: EngineOptions, settings: Settings, busy_counts: Sequence[int]
) -> ContentionReport:
    """Measure and show. Raises what `ContentionMeasurement` raises."""
    from edgemoe.bench.contention import ContentionMeasurement

    def make(folder: Path, kernels: KernelChoice, progress: Progress) -> ContentionMeasurement:
        return ContentionMeasurement(folder, settings, kernels, options, busy_counts, progress)

    return _measure(model, options, make, contention_table)


def _measure(
    model: str | None,
    options: EngineOptions,
    make: Callable[[Path, KernelChoice, Progress], _Measurement[Report]],
    table: Callable[[Report], Table],
) -> Report:
    from edgemoe.cli.terminal.render import ProgressBar
    from edgemoe.cli.terminal.screen import open_screen
    from edgemoe.kernels.select import describe_backend
    from edgemoe.session.stores import find_runnable

    found = find_runnable(fetched(model))
    with ProgressBar("measuring", still=True) as bar:

        def progress(doing: str, done: int, total: int) -> None:
            bar.update(doing, done, total, "")

        report = make(found, describe_backend(options.threads), progress).run()
    title, rows = table(report)
    open_screen().table(rows, title)
    return report


def sequences_table(report: SequencesReport) -> Table:
    """The table's title and its rows: the setting, then one for each number of sequences."""
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
        ("one sequence", _together(report.one)),
    ]
    rows += [(f"{one.sequences} sequences", _together(one)) for one in report.together]
    rounds = "1 round" if report.repeats == 1 else f"{report.repeats} rounds"
    return f"{report.model}, sequences that decode together: {rounds}, medians (least to most)", rows


def clients_table(report: ClientsReport) -> Table:
    """The table's title and its rows: the setting, one answer without HTTP, then each number of clients."""
    from edgemoe.cli.terminal.bench_tables import spread_text

    kernels = report.kernels
    rows = [
        ("kernels", f"{kernels['backend']} {kernels['isa']}, {kernels['threads']} threads"),
        ("decode", f"{report.decode_tokens} tokens each after prompts of {report.prompt_tokens}, random tokens"),
        ("without HTTP", f"{spread_text(report.direct, '.1f')} tokens/s; {_first(report.direct_first_s)}"),
    ]
    for one in report.served:
        rows.append((_clients(one), _served(one)))
        if one.watched is not None:
            share = one.watched.over(one.tokens_per_s)
            rates = f"{spread_text(one.watched, '.1f')} tokens/s, {spread_text(share)} times unwatched"
            rows.append((f"{_clients(one)}, watched", rates))
    for one, theirs in zip(report.served, report.peer_served, strict=False):
        times = one.tokens_per_s.over(theirs.tokens_per_s)
        rows.append(
            (f"{report.peer}, {_clients(one)}", f"{_served(theirs)}; edgemoe {spread_text(times)} times as fast")
        )
    rounds = "1 round" if report.repeats == 1 else f"{report.repeats} rounds"
    return f"{report.model}, answers over HTTP: {rounds}, medians (least to most)", rows


def _clients(report: ServedReport) -> str:
    return "1 client" if report.clients == 1 else f"{report.clients} clients"


def _served(report: ServedReport) -> str:
    from edgemoe.cli.terminal.bench_tables import spread_text

    whole = "" if report.clients == 1 else " in all"
    return (
        f"{spread_text(report.tokens_per_s, '.1f')} tokens/s{whole}, {spread_text(report.against_direct)} times one"
        f" without HTTP; {_first(report.first_s)}"
    )


def _first(seconds: Spread) -> str:
    from edgemoe.cli.terminal.bench_tables import spread_text

    return f"first piece after {spread_text(seconds, '.1f', 1e-3)} ms"


def drafts_table(report: DraftsReport) -> Table:
    """The table's title and its rows: the setting, then one for each number of drafts."""
    from edgemoe.cli.terminal.bench_tables import spread_text
    from edgemoe.cli.terminal.text import printable

    kernels, memory = report.kernels, report.memory
    taken = "random tokens" if report.routing is None else f"routing of {printable(report.routing)}"
    beside = "" if report.draft is None else f"; {printable(report.draft)} drafts"
    rows = [
        ("kernels", f"{kernels['backend']} {kernels['isa']}, {kernels['threads']} threads"),
        (
            "budget",
            f"{format_size(memory['budget_bytes'])}, {memory['slots']} of {memory['total_experts']} experts in memory",
        ),
        ("decode", f"{report.decode_tokens} tokens after a prompt of {report.prompt_tokens}, {taken}{beside}"),
        ("no drafts", f"{spread_text(report.none.tokens_per_s, '.1f')} tokens/s; {_experts(report.none)}"),
    ]
    for one in report.drafted:
        rows.append(
            (
                "1 draft" if one.drafts == 1 else f"{one.drafts} drafts",
                f"{spread_text(one.tokens_per_s, '.1f')} tokens/s if all are right,"
                f" {spread_text(one.against_none)} times none (by its bytes {one.by_bytes.median:.2f}); a step takes"
                f" {spread_text(one.step_cost)} times one without; {_experts(one)}",
            )
        )
    rounds = "1 round" if report.repeats == 1 else f"{report.repeats} rounds"
    return f"{report.model}, drafts that are verified: {rounds}, medians (least to most)", rows


def guessed_table(report: GuessedReport) -> Table:
    """The table's title and its rows: the setting, then one for each answer."""
    from edgemoe.cli.terminal.bench_tables import spread_text
    from edgemoe.cli.terminal.text import printable

    kernels = report.kernels
    drafts = "by what followed earlier" if report.draft is None else f"by {printable(report.draft)}"
    rows = [
        ("kernels", f"{kernels['backend']} {kernels['isa']}, {kernels['threads']} threads"),
        ("drafts", f"{drafts}; answers of up to {report.decode_tokens} tokens, the same with them and without"),
    ]
    for one in report.answers:
        first = printable(one.prompt.splitlines()[0])
        rows.append(
            (
                f"{first[:32]}{'…' if len(first) > 32 else ''} at {one.temperature:g}",
                f"{one.tokens} tokens, {spread_text(one.tokens_per_s, '.1f')} tokens/s,"
                f" {spread_text(one.against_none)} times without drafts",
            )
        )
    rounds = "1 round" if report.repeats == 1 else f"{report.repeats} rounds"
    return f"{report.model}, answers with drafts: {rounds}, medians (least to most)", rows


def _experts(report: DraftedReport) -> str:
    """The experts of a step, and where they came from."""
    text = f"{report.distinct_experts:.1f} experts in a layer"
    return text if not report.missed_experts.max else f"{text}, {report.missed_experts.median:.1f} of them from disk"


def _together(report: TogetherReport) -> str:
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


def contention_table(report: ContentionReport) -> Table:
    """The table's title and its rows: the speed alone, then one for each number of busy processes."""
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
    title = f"{report.model}, {report.threads} threads on {report.processors} processors: medians (least to most)"
    return title, rows
