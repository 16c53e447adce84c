"""`edgemoe upcycle`: makes a mixture of experts of a dense checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgemoe.cli import options as shared_options
from edgemoe.cli.convert import FORMATS_HELP, KEEP_HELP, Report


def upcycle(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DENSE",
            help="A dense checkpoint of the Llama family: a folder, a GGUF file, or a Hugging Face model id.",
        ),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="Folder of the new store.")],
    carve: Annotated[
        bool,
        typer.Option(
            "--carve",
            help="Share the neurons of each FFN out among a shared expert and routed ones. Without it each FFN stays"
            " whole, beside new experts that add nothing until they are trained.",
        ),
    ] = False,
    num_experts: Annotated[int, typer.Option("--num-experts", metavar="E", help="Routed experts of each layer.")] = 8,
    top_k: Annotated[int, typer.Option("--top-k", metavar="K", help="Routed experts of each token.")] = 2,
    shared: Annotated[
        int | None,
        typer.Option(
            "--shared",
            metavar="N",
            help="With --carve: neurons of the shared expert, those of largest weights.",
            show_default="about a quarter",
        ),
    ] = None,
    width: Annotated[
        int, typer.Option("--width", metavar="N", help="Without --carve: neurons of each routed expert.")
    ] = 128,
    experts: Annotated[
        str | None,
        typer.Option(
            "--experts",
            metavar="FORMAT",
            help=f"Weight format of the experts: {FORMATS_HELP}{KEEP_HELP}.",
            show_default="q4",
        ),
    ] = None,
    dense: shared_options.DenseOption = None,
    head: shared_options.HeadOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Discard an unfinished store with other options or from another source.")
    ] = False,
    debug: shared_options.DebugOption = False,
) -> None:
    """Make a mixture of experts of a dense model. After an interruption the same command resumes.

    With all experts on (--top-k as many as --num-experts) a carved model computes what the dense one does; with fewer
    it leaves neurons out, which costs quality: measure it with edgemoe eval. Nothing is trained.
    """
    from edgemoe.cli.terminal.render import ProgressBar
    from edgemoe.conversion.formats import FormatChoice
    from edgemoe.conversion.opening import open_source
    from edgemoe.conversion.pipeline import convert_source
    from edgemoe.conversion.upcycling import Upcycling, plan_upcycled, upcycled
    from edgemoe.session.text_faults import text_faults
    from edgemoe.sizes import format_size
    from edgemoe.store.reader import Store

    how = Upcycling(num_experts, top_k, carve, width, shared)
    try:
        with ProgressBar("upcycling") as bar:
            report = Report(bar, "upcycling")
            path = convert_source(
                lambda downloads: upcycled(open_source(source, downloads=downloads, downloading=report.download), how),
                destination,
                choice=FormatChoice(experts, dense, head),
                force=force,
                progress=report.conversion,
                notice=lambda text: bar.note(f"note: {text}"),
                examine=text_faults,
                planning=plan_upcycled,
            )
    except KeyboardInterrupt:
        typer.echo("interrupted: run the same command again to resume.", err=True)
        raise
    store = Store.open(path)
    typer.echo(f"{destination}: {len(store.manifest.records)} experts, {format_size(store.manifest.total_bytes)}.")
