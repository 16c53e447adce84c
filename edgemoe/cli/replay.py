"""`edgemoe replay`: recorded routing over policies and cache sizes, without the model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgemoe.cli import options as shared
from edgemoe.cli.json_text import write_json

if TYPE_CHECKING:
    from edgemoe.bench.replay_report import ReplayReport
    from edgemoe.cli.terminal.screen import Screen


def replay(
    trace: Annotated[
        Path, typer.Argument(metavar="TRACE", help="A trace recorded by edgemoe, or another engine's CSV.")
    ],
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            metavar="LIST",
            help="Eviction policies: lru, lfu:HALF_LIFE, lruf:HALF_LIFE:WEIGHT, belady (the optimum). The numbers are"
            " multiples of the slots and can be left out.",
        ),
    ] = "lru,lfu,lruf,belady",
    capacity: Annotated[
        str, typer.Option("--capacity", metavar="LIST", help="Cache sizes in percent of all experts.")
    ] = "5%,10%,15%,20%,30%,40%,50%,75%,100%",
    disk_rate: Annotated[
        str | None,
        typer.Option(
            "--disk-rate", metavar="RATE", help="Read rate of the disk, such as 1.2GB/s.", show_default="measured"
        ),
    ] = None,
    memory_rate: Annotated[
        str | None,
        typer.Option(
            "--memory-rate", metavar="RATE", help="Read rate of the memory, such as 30GB/s.", show_default="measured"
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures as JSON.")] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the figures (png, svg or pdf).")
    ] = None,
    debug: shared.DebugOption = False,
) -> None:
    """Show the hit rates of an expert cache on recorded routing, by policy and size, and recommend one of each.

    One cache serves all layers; prompts and generated tokens are replayed in the order in which they were recorded.
    Hit rates and bytes are counted. Speeds are estimates from read rates of this machine, which are measured in a few
    seconds: for the disk a file of 128 MiB is written to the current folder and removed.
    """
    from edgemoe.bench.replay_report import parse_capacities, parse_policies
    from edgemoe.cli.plan import parse_rate

    policies, capacities = parse_policies(policy), parse_capacities(capacity)
    disk_bytes_per_s, memory_bytes_per_s = (
        parse_rate("--disk-rate", disk_rate),
        parse_rate("--memory-rate", memory_rate),
    )
    write_figures, write_plot = shared.file_writer(json_file, write_json), _plotter(plot)

    from edgemoe.bench.replay_rates import find_rates
    from edgemoe.bench.replay_report import replay_report
    from edgemoe.cli.compiling import report_replay_compilation
    from edgemoe.cli.terminal.render import ProgressBar
    from edgemoe.cli.terminal.screen import open_screen
    from edgemoe.lab.replay import Replay
    from edgemoe.lab.trace import read_trace

    recorded = Replay(read_trace(trace))
    for percent in capacities:
        recorded.slots(percent)  # raises for a bad capacity, before seconds of measuring
    with ProgressBar("replaying", still=True) as bar, report_replay_compilation():
        bar.update("measuring this machine", 0, None, "")
        rates, basis = find_rates(recorded.record_bytes, disk_bytes_per_s, memory_bytes_per_s)
        report = replay_report(
            recorded, trace, policies, capacities, rates, basis,
            lambda name, done, total: bar.update(f"replaying {name}", done, total, ""),
        )  # fmt: skip
    _show(open_screen(), report)
    write_figures(report)
    write_plot(report)


def _show(screen: Screen, report: ReplayReport) -> None:
    from edgemoe.cli.terminal.heatmap import fold
    from edgemoe.cli.terminal.replay_tables import replay_tables

    tables = replay_tables(report)
    for title, rows in tables[:-1]:
        screen.table(rows, title)
    if sys.stdout.isatty():  # for a pipe it would be a page of numbers, which --json has too
        chosen = report.recommended.result
        uses_map = fold(report.routing.uses, chosen.resident, *screen.map_size)
        if uses_map is not None:
            screen.note(
                f"uses of experts, and those in the cache at the end, {chosen.policy} at {chosen.capacity_percent:g} %:"
            )
            screen.heat_map(uses_map)
    title, rows = tables[-1]
    screen.table(rows, title)


def _plotter(path: Path | None) -> Callable[[Any], None]:
    if path is None:
        return lambda report: None
    from edgemoe.bench.plot import check_plot
    from edgemoe.bench.replay_plot import draw_replay

    check_plot(path)
    return shared.file_writer(path, draw_replay)
