"""`edgemoe plan`: what a memory budget buys for a model, before it is downloaded, converted or run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from edgemoe.cli import options as shared
from edgemoe.cli.json_text import write_json
from edgemoe.errors import UsageError

RATE_HELP = "bytes per second, such as 1.2GB/s"


def plan(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="A store, a checkpoint's folder or only its config.json, a .gguf file, or a hub id;"
            " left out: the bundled model.",
        ),
    ] = None,
    ram: shared.RamOption = None,
    context: shared.ContextOption = None,
    threads: shared.ThreadsOption = None,
    kv: shared.KvOption = None,
    routing: Annotated[
        str | None,
        typer.Option(
            "--routing",
            metavar="TRACE",
            help="A recorded trace to replay, or uniform.",
            show_default="between uniform and as skewed as recorded traces",
        ),
    ] = None,
    experts: Annotated[
        str | None,
        typer.Option("--experts", metavar="FORMAT", help="Format that experts would get.", show_default="q4"),
    ] = None,
    dense: Annotated[
        str | None,
        typer.Option("--dense", metavar="FORMAT", help="Format that all else would get.", show_default="q8"),
    ] = None,
    disk_rate: Annotated[
        str | None,
        typer.Option("--disk-rate", metavar="RATE", help=f"Of the disk, {RATE_HELP}.", show_default="measured"),
    ] = None,
    memory_rate: Annotated[
        str | None,
        typer.Option("--memory-rate", metavar="RATE", help=f"Of the memory, {RATE_HELP}.", show_default="measured"),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures.")] = None,
    debug: shared.DebugOption = False,
) -> None:
    """Show what a memory budget buys: what stays in memory, slots for experts, the floor, and the speed to expect.

    Needs no weights: a config.json is enough. Sizes are exact; hit rates and speeds are estimates, from rates of this
    machine that are measured in a few seconds. Where there is neither a store nor weights to read from, a file of
    128 MiB is written to the current folder for that, and removed.
    """
    disk_bytes_per_s, memory_bytes_per_s = (
        parse_rate("--disk-rate", disk_rate),
        parse_rate("--memory-rate", memory_rate),
    )
    write_figures = shared.file_writer(json_file, write_json)

    from edgemoe.bench.plan_model import PlanOptions, plan_model
    from edgemoe.cli.terminal.plan_tables import plan_tables
    from edgemoe.cli.terminal.screen import open_screen

    options = PlanOptions(ram, context, threads, kv, routing, experts, dense, disk_bytes_per_s, memory_bytes_per_s)
    planned = plan_model(source, options)
    screen = open_screen()
    for title, rows in plan_tables(planned):
        screen.table(rows, title)
    write_figures(planned)


def parse_rate(option: str, text: str | None) -> float | None:
    """Parse a rate such as `1.2GB/s` into bytes per second; None for None. Raises UsageError, naming the option."""
    from edgemoe.sizes import parse_size

    if text is None:
        return None
    try:
        rate = parse_size(re.sub(r"/s\s*$", "", text))
    except UsageError:
        rate = 0
    if rate <= 0:
        raise UsageError(f"{option}: '{text}' is not a rate.", "Write bytes per second, such as 1.2GB/s or 900MB/s.")
    return rate
