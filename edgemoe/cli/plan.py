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
            help="A store, a checkpoint folder or just its config.json, a .gguf file, or a Hugging Face model id."
            " Default: the bundled model.",
        ),
    ] = None,
    ram: shared.RamOption = None,
    context: shared.ContextOption = None,
    threads: shared.ThreadsOption = None,
    device: shared.DeviceOption = None,
    vram: shared.VramOption = None,
    kv: shared.KvOption = None,
    routing: Annotated[
        str | None,
        typer.Option(
            "--routing",
            metavar="TRACE",
            help="Routing to assume: a recorded trace, or uniform.",
            show_default="a range, from uniform to the skew of recorded traces",
        ),
    ] = None,
    experts: Annotated[
        str | None,
        typer.Option(
            "--experts", metavar="FORMAT", help="Weight format of the experts after conversion.", show_default="q4"
        ),
    ] = None,
    dense: shared.DenseOption = None,
    head: shared.HeadOption = None,
    disk_rate: Annotated[
        str | None,
        typer.Option(
            "--disk-rate", metavar="RATE", help=f"Read rate of the disk: {RATE_HELP}.", show_default="measured"
        ),
    ] = None,
    memory_rate: Annotated[
        str | None,
        typer.Option(
            "--memory-rate", metavar="RATE", help=f"Read rate of the memory: {RATE_HELP}.", show_default="measured"
        ),
    ] = None,
    draft: shared.DraftOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures as JSON.")] = None,
    debug: shared.DebugOption = False,
) -> None:
    """Show how a model would run in a memory budget: parts in memory, expert slots, smallest budget, expected speed.

    No weights are needed: a config.json is enough. Sizes are exact; hit rates and speeds are estimates from read rates
    of this machine, which are measured in a few seconds. If there are no weights on disk to measure with, a file of
    128 MiB is written to the current folder and removed.
    """
    disk_bytes_per_s, memory_bytes_per_s = (
        parse_rate("--disk-rate", disk_rate),
        parse_rate("--memory-rate", memory_rate),
    )
    write_figures = shared.file_writer(json_file, write_json)

    from edgemoe.bench.plan_model import PlanOptions, plan_model
    from edgemoe.cli.terminal.plan_tables import plan_tables
    from edgemoe.cli.terminal.screen import open_screen

    options = PlanOptions(
        ram,
        context,
        threads,
        kv,
        routing,
        experts,
        dense,
        head,
        disk_bytes_per_s,
        memory_bytes_per_s,
        draft,
        device,
        vram,
    )
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
