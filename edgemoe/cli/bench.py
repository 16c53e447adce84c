"""`edgemoe bench`: how fast a model runs here, compared with the memory's limit and with another engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgemoe.cli import options as shared
from edgemoe.cli.json_text import write_json
from edgemoe.cli.tracing import TraceOption, report_failure, report_summary
from edgemoe.errors import UsageError

if TYPE_CHECKING:
    from edgemoe.bench.report import Report


def bench(
    model: shared.ModelArgument = None,
    prompt: Annotated[int, typer.Option("--prompt", metavar="N", help="Tokens before those that are decoded.")] = 32,
    decode: Annotated[int, typer.Option("--decode", metavar="N", help="Tokens to decode, one by one.")] = 64,
    prefill: Annotated[int, typer.Option("--prefill", metavar="N", help="Tokens of the prompt to read at once.")] = 256,
    repeats: Annotated[int, typer.Option("--repeats", metavar="N", help="Rounds, after one that warms up.")] = 5,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            metavar="N",
            help="Tokens that every engine makes room for.",
            show_default="as for a chat; elsewhere what is needed",
        ),
    ] = None,
    threads: shared.ThreadsOption = None,
    ram: shared.RamOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw a picture (png, svg, pdf).")] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="ENGINE", help="Measure another engine in turn: llama.cpp.")
    ] = None,
    gguf: Annotated[
        Path | None,
        typer.Option("--gguf", metavar="FILE", help="The other engine's file.", show_default="made from the store"),
    ] = None,
    routing: Annotated[
        Path | None,
        typer.Option("--routing", metavar="TRACE", help="Take the routing from a trace, so that random weights do."),
    ] = None,
    recall: Annotated[
        float | None,
        typer.Option(
            "--recall",
            metavar="PERCENT",
            help="With --routing, read ahead on made-up guesses that name so many of the experts to come.",
            show_default="no reading ahead",
        ),
    ] = None,
    trace: TraceOption = None,
    mmap: Annotated[bool, typer.Option("--mmap", help="Let the other engine map its file, not read it.")] = False,
    peer_decode: Annotated[
        int | None,
        typer.Option(
            "--peer-decode",
            metavar="N",
            help="Tokens that the other engine decodes of them, where it is slow.",
            show_default="all",
        ),
    ] = None,
    limit: Annotated[
        str | None,
        typer.Option(
            "--limit",
            metavar="SIZE",
            help="Run each engine in a control group of so much memory, page cache included"
            " (Linux; root or a delegated group).",
        ),
    ] = None,
    policy: shared.PolicyOption = "lru",
    prediction: shared.PredictionOption = "auto",
    cache_aware_routing: shared.CacheAwareOption = 0.0,
    drop_cold: shared.DropColdOption = 0.0,
    experts_per_token: shared.ExpertsPerTokenOption = None,
    quality: Annotated[
        bool, typer.Option("--quality", help="Measure the quality loss and the speed-up of the lossy options.")
    ] = False,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text", metavar="FILE", help="The text to measure that on.", show_default="the bundled model's card"
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", metavar="N", help="Positions of it.", show_default="1000")
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(
            "--beside",
            metavar="LIST",
            help="Measure decoding while this many other processes are busy, such as 1,2,4,"
            " against a fair share of the processors.",
        ),
    ] = None,
    debug: shared.DebugOption = False,
) -> None:
    """Measure decoding, prefill and start-up on random tokens, and where the time goes.

    Rates are medians over rounds. Engines take turns in every round, each in a process of its own. Where experts are
    streamed, the disk's rate is measured in every round too, and speed is held against the lower of the two limits.
    With --quality instead the lossless and the lossy model read the same text, and are compared.
    """
    from edgemoe.engine.lossy import LossySettings
    from edgemoe.engine.options import EngineOptions

    lossy = LossySettings(cache_aware_routing, drop_cold, experts_per_token)
    options = EngineOptions(ram, threads, policy=policy, prediction=prediction, lossy=lossy)
    if quality:
        if any(given is not None for given in (against, plot, routing, trace, limit)):
            raise UsageError(
                "--quality goes with no --against, --plot, --routing, --trace or --limit.", "Leave them out."
            )
        from edgemoe.cli.quality import measure_quality

        write = shared.file_writer(json_file, write_json)
        write(measure_quality(model, options, text, tokens))
        return
    if beside is not None:
        if any(given is not None for given in (against, plot, routing, trace, limit)) or lossy.on:
            raise UsageError(
                "--beside goes with no --against, --plot, --routing, --trace, --limit or lossy option.",
                "Leave them out.",
            )
        from edgemoe.bench.measure import Settings
        from edgemoe.cli.contention import measure_contention, parse_busy_counts

        counts = parse_busy_counts(beside)
        write = shared.file_writer(json_file, write_json)
        settings = Settings(prompt, decode, prefill, repeats, room_tokens=context)
        write(measure_contention(model, counts, settings, options))
        return
    if text is not None or tokens is not None:
        raise UsageError("--text and --tokens are for --quality.", "Give that too, with a lossy option.")
    if against is None and (gguf is not None or mmap or peer_decode is not None):
        raise UsageError(
            "--gguf, --mmap and --peer-decode are for another engine.", "Name it with --against llama.cpp."
        )
    if against is not None and routing is not None:
        raise UsageError("--routing cannot be forced upon another engine.", "Leave --against or --routing out.")
    if recall is not None and routing is None:
        raise UsageError("--recall is for --routing: without it the routers guess themselves.", "Leave it out.")
    if routing is not None and lossy.on:
        raise UsageError("--routing leaves lossy settings nothing to decide.", "Leave one of them out.")
    write_figures, write_plot = shared.file_writer(json_file, write_json), _plotter(plot)

    from contextlib import ExitStack

    from edgemoe.bench.benchmark import Benchmark
    from edgemoe.bench.measure import Settings
    from edgemoe.bench.peers import check_peer, open_peer
    from edgemoe.cli.lossy import report_lossy
    from edgemoe.cli.terminal.bench_tables import report_tables
    from edgemoe.cli.terminal.render import ProgressBar
    from edgemoe.cli.terminal.screen import open_screen
    from edgemoe.kernels.select import describe_backend
    from edgemoe.session.default_model import find_model
    from edgemoe.sizes import parse_size

    settings = Settings(prompt, decode, prefill, repeats, peer_decode_tokens=peer_decode, room_tokens=context)
    limit_bytes = None if limit is None else parse_size(limit)
    kernels, folder = describe_backend(threads), find_model(model)
    if against is not None:
        check_peer(against, gguf)
    with ExitStack() as stack, ProgressBar("measuring", still=True) as bar:
        peer = None
        if against is not None:
            bar.update(f"making {against}'s file" if gguf is None else "opening", 0, None, "")
            peer = stack.enter_context(open_peer(folder, gguf, kernels.threads, settings.context_tokens, mmap))
        benchmark = Benchmark(
            folder,
            settings,
            kernels,
            options,
            peer,
            lambda doing, done, total: bar.update(doing, done, total, ""),
            limit_bytes,
            routing,
            None if recall is None else recall / 100,
            trace.path if trace is not None else None,
        )
        report = benchmark.run()
    report_lossy(folder, lossy, LossySettings.from_json(report.edgemoe.about["lossy"]), model, ram)
    screen = open_screen()
    for title, rows in report_tables(report):
        screen.table(rows, title)
    write_figures(report)
    write_plot(report)
    if report.trace is not None:
        if report.trace["failure"]:
            report_failure(report.trace["failure"])
        report_summary(report.trace)


def _plotter(path: Path | None) -> Callable[[Report], None]:
    if path is None:
        return lambda report: None
    from edgemoe.bench.plot import check_plot, draw_report

    check_plot(path)
    return shared.file_writer(path, draw_report)
