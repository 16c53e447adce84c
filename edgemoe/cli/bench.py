"""`edgemoe bench`: how fast a model runs here, compared with the memory's limit and with another engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgemoe.cli import options as shared
from edgemoe.cli.fetching import fetched
from edgemoe.cli.json_text import write_json
from edgemoe.cli.parameters import flag
from edgemoe.cli.tracing import TraceOption, report_failure, report_summary
from edgemoe.errors import UsageError

if TYPE_CHECKING:
    from edgemoe.bench.measure import Settings
    from edgemoe.bench.report import Report


def bench(
    ctx: typer.Context,
    model: shared.ModelArgument = None,
    prompt: Annotated[
        int, typer.Option("--prompt", metavar="N", help="Length of the prompt before decoding is measured.")
    ] = 32,
    decode: Annotated[int, typer.Option("--decode", metavar="N", help="Number of tokens to decode, one by one.")] = 64,
    prefill: Annotated[
        int, typer.Option("--prefill", metavar="N", help="Length of the prompt for measuring prefill.")
    ] = 256,
    repeats: Annotated[
        int, typer.Option("--repeats", metavar="N", help="Number of measured rounds; one more warms up first.")
    ] = 5,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            metavar="N",
            help="Context length for all engines.",
            show_default="edgemoe: as for a chat; others: as long as needed",
        ),
    ] = None,
    threads: shared.ThreadsOption = None,
    device: shared.DeviceOption = None,
    vram: shared.VramOption = None,
    ram: shared.RamOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures as JSON.")] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the figures (png, svg or pdf).")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="ENGINE", help="Also measure another engine, interleaved with edgemoe: llama.cpp."
        ),
    ] = None,
    gguf: Annotated[
        Path | None,
        typer.Option(
            "--gguf", metavar="FILE", help="GGUF file for the other engine.", show_default="exported from the store"
        ),
    ] = None,
    routing: Annotated[
        Path | None,
        typer.Option(
            "--routing", metavar="TRACE", help="Replay routing from a trace (lets you benchmark random weights)."
        ),
    ] = None,
    recall: Annotated[
        float | None,
        typer.Option(
            "--recall",
            metavar="PERCENT",
            help="With --routing: simulate prefetch with this recall, in percent.",
            show_default="no prefetch",
        ),
    ] = None,
    trace: TraceOption = None,
    mmap: Annotated[
        bool, typer.Option("--mmap", help="Let the other engine memory-map its file instead of reading it.")
    ] = False,
    peer_decode: Annotated[
        int | None,
        typer.Option(
            "--peer-decode",
            metavar="N",
            help="Decode only this many tokens in the other engine.",
            show_default="as --decode",
        ),
    ] = None,
    limit: Annotated[
        str | None,
        typer.Option(
            "--limit",
            metavar="SIZE",
            help="Run each engine in a control group with this memory limit, page cache included"
            " (Linux; needs root or a delegated group).",
        ),
    ] = None,
    policy: shared.PolicyOption = "lru",
    prefetch: shared.PrefetchOption = "auto",
    cache_aware_routing: shared.CacheAwareOption = 0.0,
    drop_cold: shared.DropColdOption = 0.0,
    experts_per_token: shared.ExpertsPerTokenOption = None,
    on_miss: shared.OnMissOption = "wait",
    quality: Annotated[
        bool, typer.Option("--quality", help="Measure the quality loss and the speed-up of the lossy options.")
    ] = False,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Text for --quality; or prompts for --speculate auto, between lines of three dashes.",
            show_default="the bundled model's card; prompts of several kinds",
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", metavar="N", help="Number of positions for --quality.", show_default="1000"),
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(
            "--beside",
            metavar="LIST",
            help="Measure decoding while these numbers of other processes are busy, such as 1,2,4, against a fair share"
            " of the processors.",
        ),
    ] = None,
    sequences: Annotated[
        str | None,
        typer.Option(
            "--sequences",
            metavar="LIST",
            help="Measure these numbers of sequences decoding together, such as 2,4,8, against one.",
        ),
    ] = None,
    clients: Annotated[
        str | None,
        typer.Option(
            "--clients",
            metavar="LIST",
            help="Measure answers that these numbers of clients have written over HTTP, such as 1,4, against one"
            " without HTTP; with --against llama-server also those of that program.",
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="With --clients: measure them also while somebody watches the live picture."),
    ] = False,
    speculate: Annotated[
        str | None,
        typer.Option(
            "--speculate",
            metavar="LIST",
            help="Measure steps with these numbers of drafts, such as 1,3,7, all of them right, against none, and the"
            " gain against that of their bytes; auto: answers to prompts, with as many drafts as pay, against none.",
        ),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option("--draft", metavar="MODEL", help="With --speculate: a model that drafts, whose time counts."),
    ] = None,
    debug: shared.DebugOption = False,
) -> None:
    """Measure decoding, prefill and start-up on random tokens, and where the time goes.

    Rates are medians over rounds. In every round the engines run one after another, each in its own process. If experts
    are streamed, every round also measures the disk's read rate, and the speed is compared with the lower of the
    memory's and the disk's limit. --quality, --beside, --sequences, --clients and --speculate measure
    something else instead.
    """
    from edgemoe.engine.lossy import LossySettings
    from edgemoe.engine.options import EngineOptions

    _refuse_unused(ctx)
    lossy = LossySettings(cache_aware_routing, drop_cold, experts_per_token, on_miss)
    options = EngineOptions(ram, threads, policy=policy, prefetch=prefetch, lossy=lossy, device=device, vram=vram)
    if quality:
        from edgemoe.cli.quality import measure_quality

        write = shared.file_writer(json_file, write_json)
        write(measure_quality(model, options, text, tokens))
        return
    if beside is not None:
        from edgemoe.cli.company import measure_contention

        counts = shared.parse_counts("--beside", beside, "processes, such as 1,2,4")
        write = shared.file_writer(json_file, write_json)
        write(measure_contention(model, options, _company_settings(prompt, decode, repeats, context), counts))
        return
    if tokens is not None or (text is not None and speculate != "auto"):
        raise UsageError(
            "--text and --tokens are for --quality, and --text for --speculate auto.",
            "Give one of these too; --quality with a lossy option.",
        )
    if clients is not None:
        from edgemoe.cli.company import measure_clients

        counts = shared.parse_counts("--clients", clients, "clients, such as 1,4")
        write = shared.file_writer(json_file, write_json)
        settings = _company_settings(prompt, decode, repeats, context)
        write(measure_clients(model, options, settings, counts, against, gguf, watch))
        return
    if watch:
        raise UsageError("--watch is for --clients.", "Give --clients too, with numbers of clients.")
    if against is None and (gguf is not None or mmap or peer_decode is not None):
        raise UsageError(
            "--gguf, --mmap and --peer-decode are for another engine.", "Name it with --against llama.cpp."
        )
    if against is not None and routing is not None:
        raise UsageError(
            "--routing works with edgemoe only, not with another engine.", "Leave --against or --routing out."
        )
    if recall is not None and routing is None:
        raise UsageError(
            "--recall needs --routing: without a trace the model's routers predict.",
            "Leave --recall out, or give --routing.",
        )
    if routing is not None and lossy.on:
        raise UsageError("--routing excludes lossy options, which would change the routing.", "Leave one of them out.")
    share = None if recall is None else recall / 100
    if sequences is not None:
        from edgemoe.cli.company import measure_sequences

        counts = shared.parse_counts("--sequences", sequences, "sequences, such as 2,4,8")
        write = shared.file_writer(json_file, write_json)
        settings = _company_settings(prompt, decode, repeats, context)
        write(measure_sequences(model, options, settings, counts, routing, share))
        return
    if speculate == "auto":
        from edgemoe.cli.company import measure_guessed

        write = shared.file_writer(json_file, write_json)
        settings = _company_settings(prompt, decode, repeats, context)
        write(measure_guessed(model, options, settings, text, draft))
        return
    if speculate is not None:
        from edgemoe.cli.company import measure_drafts

        counts = shared.parse_counts("--speculate", speculate, "drafts, such as 1,3,7")
        write = shared.file_writer(json_file, write_json)
        settings = _company_settings(prompt, decode, repeats, context)
        write(measure_drafts(model, options, settings, counts, routing, draft))
        return
    if draft is not None:
        raise UsageError("--draft is for --speculate.", "Give --speculate too, with numbers of drafts.")
    write_figures, write_plot = shared.file_writer(json_file, write_json), _plotter(plot)

    from contextlib import ExitStack
    from dataclasses import replace

    from edgemoe.bench.benchmark import Benchmark
    from edgemoe.bench.measure import Settings
    from edgemoe.bench.peers import check_peer, open_peer
    from edgemoe.cli.lossy import report_lossy
    from edgemoe.cli.terminal.bench_tables import report_tables
    from edgemoe.cli.terminal.render import ProgressBar
    from edgemoe.cli.terminal.screen import open_screen
    from edgemoe.kernels.select import describe_backend
    from edgemoe.session.stores import find_runnable
    from edgemoe.sizes import parse_size

    settings = Settings(prompt, decode, prefill, repeats, peer_decode_tokens=peer_decode, room_tokens=context)
    limit_bytes = None if limit is None else parse_size(limit)
    kernels, folder = describe_backend(threads), find_runnable(fetched(model))
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
            share,
            trace.path if trace is not None else None,
        )
        report = benchmark.run()
        if device not in (None, "cpu"):
            from edgemoe.bench.device import measure_device

            bar.update("comparing the device's bits", 0, None, "")
            report = replace(report, device=measure_device(folder, options))
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


UNUSED = {
    "quality": "prompt decode prefill repeats context against gguf mmap peer_decode routing recall trace limit plot"
    " beside sequences clients speculate draft watch",
    "beside": "prefill against gguf mmap peer_decode routing recall trace limit plot text tokens cache_aware_routing"
    " drop_cold experts_per_token on_miss sequences clients speculate draft watch",
    "sequences": "prefill against gguf mmap peer_decode trace limit plot text tokens clients speculate draft watch",
    "clients": "prefill mmap peer_decode routing recall trace limit plot text tokens cache_aware_routing drop_cold"
    " experts_per_token on_miss speculate draft",
    "speculate": "prefill against gguf mmap peer_decode recall trace limit plot tokens cache_aware_routing"
    " drop_cold on_miss watch",
}
"""The options that another measurement than the usual one has no use for."""


def _refuse_unused(ctx: typer.Context) -> None:
    """Raise UsageError where an option was given that the measurement that was asked for has no use for."""
    given = {
        name
        for name in ctx.params
        if (source := ctx.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    }
    for other, unused in UNUSED.items():
        refused = [flag(name) for name in unused.split() if name in given]
        if other in given and refused:
            raise UsageError(f"{flag(other)} excludes {' and '.join(refused)}.", "Leave one or the other out.")


def _company_settings(prompt: int, decode: int, repeats: int, context: int | None) -> Settings:
    """Return the settings of a measurement that decodes after prompts and measures no prefill."""
    from edgemoe.bench.measure import Settings

    return Settings(prompt, decode, prompt, repeats, room_tokens=context)


def _plotter(path: Path | None) -> Callable[[Report], None]:
    if path is None:
        return lambda report: None
    from edgemoe.bench.plot import check_plot, draw_report

    check_plot(path)
    return shared.file_writer(path, draw_report)
